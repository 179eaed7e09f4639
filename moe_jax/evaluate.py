"""Command: evaluates a checkpoint: as its run did, otherwise routed, its leak, its trace."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from absl import flags

from moe_jax.cli import Arguments, command_flags, importing, process_flags, run_command
from moe_jax.config.errors import UserError
from moe_jax.config.json_files import JsonObject
from moe_jax.config.paths import file_to_write, write_whole

if TYPE_CHECKING:
    from moe_jax.analysis.trace import Trace
    from moe_jax.notebook import LoadedRun
    from moe_jax.routing.counterfactual import Counterfactual
    from moe_jax.training.experiment import Experiment

USAGE = """
usage: python -m moe_jax.evaluate --workdir=DIR [--capacity_factor=none,1.0,2.0] [--k=1,2] ...

Evaluates a checkpoint of the run in DIR as the run did itself, on the same batches with the same
capacity (--all: the whole split), or once for each combination of what is given:
  --capacity_factor=none,1.25,0.5   ("none" is dropless)
  --k=1,2,4                         experts per token
  --drop_order=token_major,choice_major,batch_priority
and, each for itself, with routes that are not the router's own:
  --mask_best=1,2                   the best experts of each token are taken away
  --route_by=hash,random,round_robin   routers that do not look at the token
  --replay=FILE                     the routes of a trace
Or says more of the run as it is:
  --trace=FILE                      writes where every token went (docs/traces.md)
  --domains                         which experts serve which domains, or planted sources
  --leak                            how much later tokens decide of earlier ones
  python -m moe_jax.evaluate --workdir=runs/quickstart --capacity_factor=none,1.25,1.0,0.5
"""
FLAGS = command_flags("workdir")
flags.DEFINE_list("capacity_factor", None, "factors (default: the config's)", flag_values=FLAGS)
flags.DEFINE_list("k", None, "experts per token (default: the config's)", flag_values=FLAGS)
flags.DEFINE_list("drop_order", None, "orders (default: the router's)", flag_values=FLAGS)
flags.DEFINE_list("mask_best", None, "how many best experts are masked", flag_values=FLAGS)
flags.DEFINE_list("route_by", None, "kinds of routers in its place", flag_values=FLAGS)
flags.DEFINE_string("replay", None, "a trace whose routes are used", flag_values=FLAGS)
flags.DEFINE_string("trace", None, "write a trace to this file", flag_values=FLAGS)
flags.DEFINE_boolean("domains", False, "show the experts by domain", flag_values=FLAGS)
flags.DEFINE_boolean("leak", False, "measure what later tokens decide", flag_values=FLAGS)
flags.DEFINE_integer("batches", None, "batches (default: the run's own)", flag_values=FLAGS)
flags.DEFINE_boolean("all", False, "the whole split", flag_values=FLAGS)
flags.DEFINE_integer("step", None, "checkpoint (default: the newest)", flag_values=FLAGS)
flags.DEFINE_boolean(
    "allow_changes", False, "evaluate although the data are not the run's", flag_values=FLAGS
)
flags.DEFINE_string("json", None, "also write all metrics to this file", flag_values=FLAGS)
process_flags(FLAGS)

ROUTED = (  # of the routing, what is shown behind all that the task measures
    "moe/max_violation",
    "moe/experts_per_token",
    "moe/dropped_fraction",
    "moe/dropped_token_fraction",
)


@dataclass(frozen=True)
class Point:
    """One evaluation: config values by path, or a counterfactual."""

    label: str = ""  # "": as the run evaluates itself
    overrides: dict[str, str] = field(default_factory=dict)
    counterfactual: Counterfactual | None = None


def main(arguments: Arguments) -> int:
    if FLAGS.batches is not None and FLAGS.batches < 1:
        raise UserError("--batches must be at least 1")
    for name in ("json", "trace"):
        if path := FLAGS[name].value:
            file_to_write(path, f"--{name}")  # said now, not behind minutes of evaluation
    with importing():
        from moe_jax.parallel.compiler import keep_compiled_programs
        from moe_jax.parallel.hosts import joined

    keep_compiled_programs()
    with joined(
        FLAGS.coordinator,
        FLAGS.processes,
        FLAGS.process,
        timeout=FLAGS.join_timeout,
        debug=FLAGS.debug,
    ):
        results = evaluate_all()
        _write(results)
    return 0


def evaluate_all() -> list[JsonObject]:
    """Everything that the flags ask for, printed as it becomes known."""
    from moe_jax.notebook import config_of

    config = config_of(FLAGS.workdir)
    batches, results = chosen_batches(), []
    extra = FLAGS.trace or FLAGS.domains or FLAGS.leak or FLAGS.replay
    for point in points(config, alone=bool(extra)):
        run = _load(point.overrides, own_mesh=True)
        if point.counterfactual is not None:
            run = run.with_counterfactual(point.counterfactual)
        try:
            metrics = run.evaluate(batches)
        except ValueError as error:
            if point.counterfactual is None:
                raise
            raise UserError(f"{point.label}: {error}") from error
        label = point.label or f"as the run evaluates itself ({routing_of(run.config)})"
        covered = run.covered(batches)
        results.append(_print_result(run.step, label, metrics, point.overrides, covered=covered))
    if extra:
        results += _more(_load())
    return results


def chosen_batches() -> int | None:
    """-1 for all, None for those that the run evaluates itself on."""
    return -1 if FLAGS.all else FLAGS.batches


def routing_of(config: Experiment) -> str:
    """The capacity of evaluations, and that of training where it is another one: drops of the one
    say nothing of the other."""
    if not config.moe.every:
        return "a dense model"
    if config.moe.router.own_capacity:
        return "the router's own capacity"
    here, training = config.evaluation.capacity_factor, config.moe.capacity_factor
    if here == training:
        return _capacity(here)
    return f"{_capacity(here)}; training: {_capacity(training)}"


def _capacity(factor: float | None) -> str:
    return "dropless" if factor is None else f"capacity factor {factor:g}"


def _load(overrides: dict[str, str] | None = None, own_mesh: bool = False) -> LoadedRun:
    from moe_jax.notebook import load

    return load(
        FLAGS.workdir,
        step=FLAGS.step,
        overrides=overrides,
        allow_changes=FLAGS.allow_changes,
        own_mesh=own_mesh,
    )


def _more(run: LoadedRun) -> Iterable[JsonObject]:
    """What says more of the run as it is."""
    from moe_jax.analysis.trace import Trace

    if FLAGS.replay:
        yield _print_result(
            run.step, f"replay of {FLAGS.replay}", run.replay(Trace.read(FLAGS.replay))
        )
    if FLAGS.trace or FLAGS.domains:
        trace = run.trace(chosen_batches())
        if FLAGS.trace:
            trace.save(FLAGS.trace)
            print(f"wrote {trace.rows} rows to {FLAGS.trace}")
        if FLAGS.domains:
            yield _domains(run.step, trace)
    if FLAGS.leak:
        for train in (False, True):
            label = f"leak, routed as in {'training' if train else 'evaluation'}"
            metrics = {f"leak/{n}": x for n, x in run.leak(chosen_batches(), train=train).items()}
            shown = ("leak/routes_changed", "leak/nats", "leak/absolute_nats")
            yield _print_result(run.step, label, metrics, shown=shown)


def _domains(step: int, trace: Trace) -> JsonObject:
    """Tells the shares of the experts by domain, and how much an expert says of the domain."""
    from moe_jax.analysis.specialisation import (
        domain_counts,
        specialisation,
        specialisation_table,
    )

    names, by_layer = domain_counts(trace)[1], specialisation(trace)
    shares_LDE = specialisation_table(trace)
    for number, share_DE in enumerate(shares_LDE):
        print(f"{trace.router_name(number)}: share of each domain's assignments by expert")
        for name, share_E in zip(names, share_DE, strict=True):
            print(f"  {name:24} " + " ".join(f"{100 * x:5.1f}" for x in share_E) + " %")
    metrics: JsonObject = {f"specialisation/layer_{i:02d}": x for i, x in by_layer.items()}
    metrics["specialisation"] = sum(by_layer.values()) / len(by_layer)
    result = _print_result(
        step, "specialisation, I(domain; expert) / H(domain)", metrics, shown=metrics
    )
    return {**result, "domains": list(names), "shares": shares_LDE.tolist()}


def _print_result(
    step: int,
    label: str,
    metrics: JsonObject,
    overrides: dict[str, str] | None = None,
    shown: Iterable[str] | None = None,
    covered: str = "",
) -> JsonObject:
    from moe_jax.parallel.agreement import say

    say(f"step {step}, {label}" + (f", on {covered}" if covered else ""))
    for name in shown or [*(name for name in metrics if "/" not in name), *ROUTED]:
        if name in metrics:
            say(f"  {name:28} {metrics[name]:.4f}")
    result = {"step": step, "told": label, "overrides": overrides or {}, "metrics": metrics}
    return {**result, "covered": covered} if covered else result


def _write(results: list[JsonObject]) -> None:
    from moe_jax.parallel.hosts import is_primary

    if FLAGS.json and is_primary():
        write_whole(file_to_write(FLAGS.json, "--json"), json.dumps(results, indent=2))


def points(config: Experiment, alone: bool) -> list[Point]:
    """Every combination of other values, then each counterfactual. alone: other flags ask for
    something too, so that without these flags there is nothing to evaluate here."""
    own = config.moe.router.own_capacity
    factor = "moe.router.capacity_factor" if own else "evaluation.capacity_factor"
    flag_of = {
        factor: FLAGS.capacity_factor,
        "moe.router.k": FLAGS.k,
        "moe.router.drop_order": FLAGS.drop_order,
    }
    axes = [[(path, value) for value in values] for path, values in flag_of.items() if values]
    found = []
    if axes:
        for pairs in itertools.product(*axes):
            label = ", ".join(f"{path}={value}" for path, value in pairs)
            found.append(Point(label, dict(pairs)))
    others = list(_counterfactuals(config))
    return (found or ([] if alone and not others else [Point()])) + others


def _counterfactuals(config: Experiment) -> Iterable[Point]:
    from moe_jax.config.kinds import Kinds
    from moe_jax.routing import ROUTERS
    from moe_jax.routing.counterfactual import MaskBest, RouteBy
    from moe_jax.routing.types import Router

    E, D = config.moe.num_experts, config.model.model_dim
    for text in FLAGS.mask_best or ():
        if not text.isdigit() or not 1 <= int(text) < E:
            raise UserError(f"--mask_best={text}: must be from 1 to {E - 1}")
        yield Point(f"mask_best={text}", counterfactual=MaskBest(n=int(text)))
    for name in FLAGS.route_by or ():
        router_class = Kinds(ROUTERS, Router).load(name)
        k = round(config.moe.experts_per_token(config.row_length))
        options = {"k": k} if "k" in router_class.__dataclass_fields__ else {}
        router = router_class(**options)
        if router.params(D, E) or not router.causal_choice:
            raise UserError(f"--route_by={name}: must be a router without parameters, like hash")
        yield Point(f"route_by={name}", counterfactual=RouteBy(router=router))


if __name__ == "__main__":
    sys.exit(run_command(main, usage=USAGE, flags=FLAGS))
