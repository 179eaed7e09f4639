"""What a trained model does token by token: traces, replays, and what later tokens decide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.analysis.leak import LeakSums, Observed, replace_later
from moe_jax.analysis.trace import Trace
from moe_jax.config.errors import UserError
from moe_jax.data.types import FILLS, NO_LABEL, DataInfo
from moe_jax.models.types import Targets
from moe_jax.routing.types import Recorded
from moe_jax.training.build import Program
from moe_jax.training.evaluation import counted_batches
from moe_jax.training.state import TrainState

Batch = Mapping[str, np.ndarray]
CUTS = (0.25, 0.5, 0.75)  # where the future begins, as parts of a row


def trace(program: Program, state: TrainState, batches: Iterable[Batch], info: DataInfo) -> Trace:
    """The trace of the batches, with evaluation's capacity, without rows that only fill the last
    one. UserError for a dense model."""
    if not program.layout.moe_layers:
        raise UserError("a dense model has no routes")
    parts: list[dict[str, np.ndarray]] = []
    unused, gives = 0, program.experiment.io.gives
    targets = gives.names if isinstance(gives, Targets) else ()
    for number, raw in enumerate(counted_batches("tracing", batches)):
        seen = _observe(program, state, raw, number)
        routes, unused = seen.routes, seen.routes.unused
        token_PNS, segment_PNS = program.tokens_and_segments(raw)
        token_NS, segment_NS = token_PNS[-1], segment_PNS[-1]
        part = {
            "token_NS": token_NS,
            "segment_NS": segment_NS,
            "nats_NS": np.where(segment_NS > 0, np.broadcast_to(seen.loss_BS, segment_NS.shape), 0),
            "domain_N": raw.get("domain", np.zeros(len(token_NS), np.int32)),
            "expert_LNSK": routes.expert_BSK,
            "weight_LNSK": routes.weight_BSK,
            "kept_LNSK": routes.kept_BSK,
        }
        if len(token_PNS) > 1:
            part |= {"token_PNS": token_PNS, "segment_PNS": segment_PNS}
        part |= _told_by_data(program, raw, targets)
        is_row_N = np.asarray(segment_NS.any(axis=1))
        parts.append({name: _rows(name, np.asarray(x), is_row_N) for name, x in part.items()})
    joined: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts], axis=_axis_of_rows(name))
        for name in parts[0]
    }
    moe, layout = program.experiment.moe, program.layout
    names = tuple(one.name for one in layout.parts)
    return Trace(
        step=int(state.step),
        num_experts=moe.num_experts,
        unused=unused,
        capacity_factor=program.experiment.evaluation.capacity_factor,
        layers_L=np.repeat(np.asarray(program.layout.moe_layers, np.int32), moe.gates),
        gates=program.gates * len(program.layout.moe_layers) or None,
        domains=info.domains or ("all",),
        targets=targets or None,
        classes=info.classes if {"label_N", "class_NS"} & joined.keys() else None,
        parts=names if len(names) > 1 else None,
        part_L=np.repeat(layout.part_of_moe_layers, moe.gates) if len(names) > 1 else None,
        **joined,
    )


def _told_by_data(program: Program, raw: Batch, targets: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What else a trace has of rows, as far as their data know it."""
    e, found = program.experiment, {}
    if "source" in raw and "tokens" in raw:
        found["source_NS"] = raw["source"][:, :-1]
    if "label" in raw:
        found["label_N"] = raw["label"]
    if "label_map" in raw:
        grid = e.model.grid(e.io)
        found["class_NS"] = classes_of_patches(raw["label_map"], grid, e.row_length)
    if "boxes" in raw:
        grid = e.model.grid(e.io)
        found["class_NS"] = classes_below_patches(raw["boxes"], raw["classes"], grid)
    if targets:
        found["target_NT"] = np.stack([raw[name] for name in targets], axis=1)
    return found


def classes_of_patches(label_NHW: np.ndarray, grid: tuple[int, int], length: int) -> np.ndarray:
    """int32 (N, S): the class that most pixels of each patch have, NO_LABEL where none counts, and
    of the tokens before the patches."""
    N, H, W = label_NHW.shape
    rows, columns = grid
    cut = label_NHW.reshape(N, rows, H // rows, columns, W // columns).swapaxes(2, 3)
    pixels_NPX = cut.reshape(N, rows * columns, -1)
    counts_NPC = np.stack(
        [(pixels_NPX == c).sum(axis=2) for c in range(int(label_NHW.max(initial=0)) + 1)], axis=2
    )
    found = np.where(counts_NPC.any(axis=2), counts_NPC.argmax(axis=2), NO_LABEL)
    ahead = np.full((N, length - rows * columns), NO_LABEL)
    return np.concatenate([ahead, found], axis=1).astype(np.int32)


def classes_below_patches(
    box_NM4: np.ndarray, class_NM: np.ndarray, grid: tuple[int, int]
) -> np.ndarray:
    """int32 (N, S): the class of the smallest object whose box has the middle of a patch in it,
    NO_LABEL where there is none."""
    rows, columns = grid
    y, x = np.meshgrid(
        (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij"
    )
    middle_S2 = np.stack([x.ravel(), y.ravel()], axis=1)
    away_NSM2 = np.abs(middle_S2[None, :, None] - box_NM4[:, None, :, :2])
    inside_NSM = (away_NSM2 <= box_NM4[:, None, :, 2:] / 2).all(axis=-1)
    inside_NSM &= (class_NM != NO_LABEL)[:, None]
    size_NSM = np.where(inside_NSM, np.prod(box_NM4[..., 2:], axis=-1)[:, None], np.inf)
    found_NS = np.take_along_axis(class_NM, size_NSM.argmin(axis=2), axis=1)
    return np.where(inside_NSM.any(axis=2), found_NS, NO_LABEL).astype(np.int32)


def _axis_of_rows(name: str) -> int:
    """The axes in front of it are of layers or of parts."""
    return int(name.endswith(("LNSK", "PNS")))


def _rows(name: str, array: np.ndarray, wanted_N: np.ndarray) -> np.ndarray:
    return np.compress(wanted_N, array, axis=_axis_of_rows(name))


def recorded_batches(
    program: Program, trace: Trace, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, Recorded]]:
    """(batch, Recorded) of all rows of the trace: what a batch has beyond them becomes padding, as
    in the last batch of an evaluation, so that any batch size replays a trace of another one.

    UserError where its layers, experts or tokens are not those of this run and data, or where it
    has more rows than the data.
    """
    if program.experiment.moe.ensemble > 1:
        raise UserError("the routes of an ensemble (config.moe.ensemble) cannot be replayed")
    gates, E = program.experiment.moe.gates, program.experiment.moe.num_experts
    moe_layers = tuple(np.repeat(program.layout.moe_layers, gates))
    if tuple(trace.layers_L) != moe_layers or trace.num_experts != E:
        raise UserError(
            f"the trace has {trace.num_experts} experts in layers {trace.layers_L.tolist()}, "
            f"the run {E} in layers {list(map(int, moe_layers))}"
        )
    size, K = program.eval_batch_size, trace.expert_LNSK.shape[-1]
    whole = int(np.max(np.flatnonzero(trace.segment_NS.any(axis=1)), initial=-1)) + 1
    places = [layer * gates + n % gates for n, layer in enumerate(moe_layers)]
    done = 0
    for number, raw in enumerate(batches):
        if done >= whole:
            return
        rows = slice(done, min(done + size, whole))
        count = rows.stop - rows.start
        token_PNS, segment_PNS = program.tokens_and_segments(raw)
        if count > np.count_nonzero(segment_PNS[-1].any(axis=1)):
            break  # the rest of the batch is no data
        if not np.array_equal(trace.tokens_of_parts[:, rows], token_PNS[:, :count]):
            raise UserError(f"the trace was made of other data (batch {number} differs)")
        layers = program.experiment.model.num_layers * gates
        shape = (layers, size, trace.token_NS.shape[1], K)
        expert = np.full(shape, trace.unused, np.int32)
        weight = np.zeros(shape, np.float32)
        expert[places, :count] = trace.expert_LNSK[:, rows]
        weight[places, :count] = trace.weight_LNSK[:, rows]
        beyond = np.arange(size) >= count
        filled = {name: spec.filled(size) for name, spec in program.columns.items()}
        raw = {
            name: np.where(beyond.reshape(-1, *(1,) * (x.ndim - 1)), filled[name], x)
            for name, x in raw.items()
            if name in filled
        } | {FILLS: beyond}
        yield raw, Recorded(expert_TK=jnp.asarray(expert), weight_TK=jnp.asarray(weight))
        done = rows.stop
    if done < whole:
        raise UserError(f"the trace has more rows ({whole}) than the data")


def leak(
    program: Program,
    state: TrainState,
    batches: Iterable[Batch],
    *,
    train: bool = False,
    seed: int = 0,
    cuts: Sequence[float] = CUTS,
) -> dict[str, float]:
    """`LeakSums.metrics` over batches and cuts: the tokens of each row from a cut on are replaced,
    and the ones before looked at again.

    train: with the routing and the capacity of training (without its noise) instead of
    evaluation's. UserError for a dense model.
    """
    if not program.layout.moe_layers:
        raise UserError("a dense model has no routes")
    sums = LeakSums()
    for number, raw in enumerate(counted_batches("measuring the leak", batches)):
        before = _on_host(program, state, raw, number, train)
        S = raw["tokens"].shape[1] - 1
        for i, part in enumerate(cuts):
            cut = max(int(S * part), 2)
            other = replace_later(raw["tokens"], raw["segments"], cut, seed + 1000 * number + i)
            after = _on_host(program, state, {**raw, "tokens": other}, number, train)
            sums.add(before, after, cut, program.layout.moe_layers)
    return sums.metrics()


def _observe(
    program: Program, state: TrainState, raw: Batch, number: int, train: bool = False
) -> Any:  # an Observation of numpy arrays
    batch = program.put(raw, first_row=number * program.eval_batch_size)
    scalars = program.scalars(int(state.step))
    return jax.device_get(
        program.observe_step(state.params, state.router_state, batch, scalars, train=train)
    )


def _on_host(program: Program, state: TrainState, raw: Batch, number: int, train: bool) -> Observed:
    seen = _observe(program, state, raw, number, train)
    segments = {"segments": jnp.asarray(raw["segments"])}
    task: Any = program.step.task  # of the next token, which alone leaks
    return Observed(
        nll_BS=seen.loss_BS,
        target_BS=np.asarray(task.target_mask(segments)),
        segment_BS=raw["segments"][:, :-1],
        expert_LBSK=seen.routes.expert_BSK,
        weight_LBSK=seen.routes.weight_BSK,
        kept_LBSK=seen.routes.kept_BSK,
        num_experts=program.experiment.moe.num_experts,
    )
