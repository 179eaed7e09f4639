"""A plan as a table for people and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from moe_jax.config.json_files import JsonObject
from moe_jax.planning.advice import would_fit
from moe_jax.planning.compiled import Compiled
from moe_jax.planning.estimate import mesh_name
from moe_jax.planning.hardware import Topology
from moe_jax.planning.roofline import EFFICIENCY, Roofline, roofline
from moe_jax.planning.search import FILLED, Candidate

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class LayoutPlan:
    """One layout on one topology: estimated, and compiled where a compiler is there."""

    topology: Topology
    candidate: Candidate
    compiled: Compiled | None = None

    @property
    def peak(self) -> float:
        """Bytes: the compiler's where it told them."""
        return self.compiled.peak if self.compiled else self.candidate.estimate.peak

    @property
    def limit(self) -> float:
        available = self.compiled.available if self.compiled else None
        return available or self.topology.chip.memory

    @property
    def refusal(self) -> str | None:
        """Why the compiler does not make a program of it; None where it does, or was not asked."""
        if self.compiled is not None:
            return self.compiled.refused
        if self.candidate.experiment.moe.transport == "ragged" and not self.topology.chip.ragged:
            return f"{self.topology.name} has no ragged all-to-all; take another moe.transport"
        return None

    @property
    def fits(self) -> bool:
        return self.refusal is None and self.peak <= self.limit

    @property
    def roofline(self) -> Roofline:
        """With the compiled collectives in place of the estimated ones, where there are."""
        estimate, compiled = self.candidate.estimate, self.compiled
        if compiled is None or not compiled.sent:
            return self.candidate.roofline
        return roofline(
            self.topology,
            estimate.sizes,
            model_flops=estimate.model_flops,
            hardware_flops=estimate.hardware_flops,
            memory_traffic=estimate.memory_traffic,
            sent=[(s.op, s.axes, s.bytes_sent) for s in compiled.sent],
        )


def text(plan: LayoutPlan) -> str:
    """The whole plan as a table."""
    lines = [*_head(plan), "", *_memory(plan), "", *_network(plan), "", *_time(plan)]
    return "\n".join(lines)


def _head(plan: LayoutPlan) -> list[str]:
    e, topology = plan.candidate.experiment, plan.topology
    estimate = plan.candidate.estimate
    rows = e.batch_size // e.accumulation
    return [
        f"{e.name} on {topology.name}: {topology.devices} devices, {mesh_name(estimate.sizes)}",
        f"{e.moe.transport}, {e.moe.layout}; remat {e.model.remat}; {e.batch_size} rows of "
        f"{e.row_length} a step, {e.accumulation} micro-batches of {rows}",
        f"{estimate.counts.total:,} parameters, {estimate.counts.active:,} active; "
        f"{estimate.counts.flops_per_token / 1e9:.2f} GFLOP a token",
    ]


def _memory(plan: LayoutPlan) -> list[str]:
    estimate, compiled = plan.candidate.estimate, plan.compiled
    lines = ["memory of a device, GiB           estimate  compiled"]
    state = ("parameters", "optimizer", "other")
    for name in (*state, "gradients", "activations", "workspace"):
        lines.append(f"  {name:30} {getattr(estimate, name) / GIB:9.2f}")
    if compiled is not None and not compiled.refused:
        arguments = sum(getattr(estimate, name) for name in state) / GIB
        lines.append(f"  {'state':30} {arguments:9.2f} {compiled.arguments / GIB:9.2f}")
        temporary = (estimate.peak / GIB) - arguments
        lines.append(f"  {'temporary':30} {temporary:9.2f} {compiled.temporaries / GIB:9.2f}")
    message = f"{plan.peak / GIB:9.2f}" if compiled and math.isfinite(plan.peak) else ""
    lines.append(f"  {'peak':30} {estimate.peak / GIB:9.2f} {message}")
    gap = abs(plan.limit - plan.peak) / GIB
    verdict = f"fits, {gap:.2f} GiB to spare" if plan.fits else f"DOES NOT FIT, by {gap:.2f} GiB"
    if math.isfinite(plan.peak):
        lines.append(f"  of {plan.limit / GIB:.2f}: {verdict}")
    if plan.refusal:
        lines.append(f"  THE COMPILER REFUSES: {plan.refusal}")
    return lines


def _network(plan: LayoutPlan) -> list[str]:
    lines = ["sent by a device in a step, estimate                          GB"]
    for t in plan.candidate.estimate.traffic:
        where = ", ".join(t.axes)
        lines.append(f"  {t.op:20} {where:24} {t.what:24} {t.bytes_sent / 1e9:10.3f}")
    if plan.compiled is not None and plan.compiled.sent:
        lines.append("sent by a device in a step, compiled              times       GB")
        for s in plan.compiled.sent:
            if s.bytes_sent < 1e6:
                continue
            mark = f"  {s.asynchronous} asynchronous" if s.asynchronous else ""
            mark += f", {s.beside_products} beside products" if s.beside_products else ""
            where = ", ".join(s.axes)
            lines.append(f"  {s.op:20} {where:24} {s.times:8d} {s.bytes_sent / 1e9:10.3f}{mark}")
    return lines


def _time(plan: LayoutPlan) -> list[str]:
    line, estimate = plan.roofline, plan.candidate.estimate
    lines = [
        "seconds of a step at the hardware's peaks",
        f"  compute {line.compute:.3f}   memory {line.memory:.3f}   network {line.network:.3f}"
        f"   -> {line.binds} binds",
        f"model FLOPs a device {estimate.model_flops:.4g}, with recomputation "
        f"{estimate.hardware_flops:.4g}",
        f"expected MFU {line.expected_mfu:.1%} = bound {line.bound:.1%} x efficiency {EFFICIENCY} "
        "(docs/plan.md: how far it was off)",
    ]
    if plan.compiled is not None and plan.compiled.flops_once:
        lines.append(
            f"compiled in {plan.compiled.seconds:.0f} s; XLA's own count, loops counted once: "
            f"{plan.compiled.flops_once:.4g} FLOP"
        )
    return lines


def ranking(candidates: Sequence[Candidate], shown: int = 10) -> str:
    """The best of a search, one line each."""
    lines = [
        f"{len(candidates)} layouts fit; the best {min(shown, len(candidates))}, by the estimate:",
        f"{'':4}{'mesh':44}{'transport':12}{'remat':15}{'micro-batches':>13}{'GiB':>8}{'MFU':>8}"
        "  binds",
    ]
    for i, c in enumerate(candidates[:shown], 1):
        name = mesh_name(c.estimate.sizes)
        remat, transport = c.experiment.model.remat, c.experiment.moe.transport
        lines.append(
            f"{i:<4}{name:44}{transport:12}{remat:15}{c.experiment.accumulation:13}"
            f"{c.estimate.peak / GIB:8.1f}{c.roofline.expected_mfu:8.1%}  {c.roofline.binds}"
        )
    return "\n".join(lines)


def advice(plan: LayoutPlan) -> str:
    """What would fit in place of a plan that takes too much memory; "" for any other plan."""
    if not math.isfinite(plan.peak) or plan.peak <= plan.limit:
        return ""
    # The compiler needed more than the search allows for: use what it needed.
    room = plan.limit * min(FILLED, plan.candidate.estimate.peak / plan.peak)
    changes = would_fit(plan.candidate, plan.topology, filled=room / plan.topology.chip.memory)
    if not changes:
        return "nothing was found that fits: not in other layouts, nor on more devices of this kind"
    lines = ["what would fit, and the memory that it is estimated to take:"]
    settings = [" ".join(change.flags) for change in changes]
    for flags, change in zip(settings, changes, strict=True):
        peak = change.candidate.estimate.peak / GIB
        lines.append(f"  {flags:{max(map(len, settings))}}  {peak:9.2f} GiB")
    return "\n".join(lines)


def to_json(plan: LayoutPlan) -> JsonObject:
    """The whole plan; bytes, FLOPs and seconds, of one device and step."""
    e, line = plan.candidate.experiment, plan.roofline
    compiled = dataclasses.asdict(plan.compiled) if plan.compiled else None
    return {
        "config": e.name,
        "topology": plan.topology.name,
        "devices": plan.topology.devices,
        "mesh": plan.candidate.estimate.sizes,
        "transport": e.moe.transport,
        "layout": e.moe.layout,
        "remat": e.model.remat,
        "batch_size": e.batch_size,
        "accumulation": e.accumulation,
        "sequence_length": e.row_length,
        "estimate": dataclasses.asdict(plan.candidate.estimate)
        | {"peak": plan.candidate.estimate.peak},
        "compiled": compiled,
        "peak": plan.peak if math.isfinite(plan.peak) else None,
        "limit": plan.limit,
        "fits": plan.fits,
        "roofline": dataclasses.asdict(line)
        | {"binds": line.binds, "bound": line.bound, "expected_mfu": line.expected_mfu},
        "efficiency": EFFICIENCY,
    }
