"""A config made small enough to be compiled some twenty times in a minute.

What decides whether parallelism changes the numbers stays: the router and its settings, the losses
with their coefficients and scopes, capacity, groups, shared experts, schedules, the
optimizer. Sizes shrink, each to a value that eight devices can divide.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from moe_jax.config.errors import UserError
from moe_jax.config.nearest import nearest
from moe_jax.config.tree import value_at
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.training.experiment import Experiment

LENGTH = 32  # positions of a row
ROWS = 16  # a batch; of groups of several rows, so many groups


@dataclass(frozen=True)
class Change:
    """One value of the config, before and after. why: where that is not plain from the path."""

    path: str
    before: object
    after: object
    why: str = ""

    def __str__(self) -> str:
        return f"{self.path} {self.before} -> {self.after}" + (f" ({self.why})" if self.why else "")


def shrink(
    experiment: Experiment, steps: int, keep: Collection[str] = ()
) -> tuple[Experiment, tuple[Change, ...]]:
    """The small experiment, of `steps` steps, and what was changed.

    keep: paths that keep their value, for routers whose settings depend on a size. Raises UserError
    for a path that is not among those that shrink.
    """
    experiment = experiment.completed()
    wanted = {change.path: change for change in _changes(experiment, steps, frozenset(keep))}
    if unknown := sorted(set(keep) - set(wanted)):
        match = nearest(unknown[0], wanted)
        meant = f"did you mean {match}?" if match else f"those that shrink: {', '.join(wanted)}"
        raise UserError(f"--keep={unknown[0]}: nothing that the check shrinks; {meant}")
    changes = [
        change
        for path, change in wanted.items()
        if path not in keep and change.before != change.after
    ]
    for change in changes:
        experiment = _replace(experiment, change.path, change.after)
    return experiment, tuple(changes)


def _replace(config: Any, path: str, value: object) -> Any:
    name, _, rest = path.partition(".")
    value = _replace(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: value})


def _changes(experiment: Experiment, steps: int, keep: Collection[str]) -> Iterator[Change]:
    e = experiment

    def change(path: str, after: object, why: str = "") -> Change:
        return Change(path, value_at(e, path), after, why)

    def at_most(path: str, most: int) -> Change:
        value = value_at(e, path)
        return change(path, value if value is None else min(value, most))

    yield from _layers(e)
    if e.vocabulary is not None:
        yield at_most("model.vocab_size", 64)
    yield at_most("model.model_dim", 16)
    heads, kv_heads = e.model.num_heads, e.model.num_kv_heads
    yield at_most("model.num_heads", 4)
    small = min(heads, 4) if kv_heads == heads else min(kv_heads, 2)
    yield change("model.num_kv_heads", small if min(heads, 4) % small == 0 else 1)
    yield at_most("model.head_dim", 8)
    yield at_most("model.mlp_dim", 32)
    for name in ("dtype", "param_dtype"):
        yield change(f"model.{name}", "float32", "rounding would hide what is looked for")
    if e.moe.every:
        yield from _experts(e)
    yield from _batch(e, "data.sequence_length" in keep)
    yield change("steps", steps)
    if (warmup := getattr(e.optimizer.schedule, "warmup_steps", None)) is not None:
        why = "so that the first steps move the parameters"
        yield change("optimizer.schedule.warmup_steps", min(warmup, 1), why)
    if hasattr(e.optimizer, "min_dim_size_to_factor"):
        yield at_most("optimizer.min_dim_size_to_factor", 8)


def _layers(e: Experiment) -> Iterator[Change]:
    """One dense layer at most before the pattern, a pattern of two layers at most, twice."""
    every, first = min(e.moe.every, 2), min(e.moe.first, 1)
    prologue = first if every == 1 else 0
    depth = e.model.depth
    few = min(depth.every, 2)
    layers = min(e.model.num_layers, prologue + 2 * max(every, few, 1))
    yield Change("model.num_layers", e.model.num_layers, layers)
    if e.moe.every:
        yield Change("moe.every", e.moe.every, every)
        yield Change("moe.first", e.moe.first, min(first, layers - 1))
    if depth.every:
        yield Change("model.depth.every", depth.every, few)
        yield Change("model.depth.first", depth.first, min(depth.first, few - 1))


def _experts(e: Experiment) -> Iterator[Change]:
    moe = e.moe
    E = min(moe.num_experts, 8)
    yield Change("moe.num_experts", moe.num_experts, E)
    yield Change("moe.expert_dim", moe.expert_dim, min(moe.expert_dim, 16))
    yield Change("moe.num_shared", moe.num_shared, min(moe.num_shared, 2))
    yield Change("moe.ensemble", moe.ensemble, min(moe.ensemble, 2))
    if moe.latent_dim is not None:
        yield Change("moe.latent_dim", moe.latent_dim, min(moe.latent_dim, 8))
    if moe.shared_dim is not None:
        yield Change("moe.shared_dim", moe.shared_dim, min(moe.shared_dim, 16))
    if moe.num_experts > E:
        yield from _choices(moe, E)
    for name in ("k_max", "max_experts"):
        most = getattr(moe.router, name, None)
        if isinstance(most, int) and most > E:
            yield Change(f"moe.router.{name}", most, E, f"{E} experts are left")
    yield Change("moe.matmul", moe.matmul, "reference", "compiles fastest")


def _choices(moe: MoEConfig, E: int) -> Iterator[Change]:
    """What counts experts, or groups of them, when E are left."""
    why = f"{E} experts are left"
    blocks = moe.losses.device_balance.groups
    yield Change("moe.losses.device_balance.groups", blocks, math.gcd(blocks, E), why)
    most = max(E // (2 * moe.ensemble), 1)
    groups, kept = (getattr(moe.router, f"{name}_groups", None) for name in ("expert", "kept"))
    if isinstance(groups, int) and isinstance(kept, int):
        few = math.gcd(groups, E)
        few_kept = max(kept * few // groups, 1)
        yield Change("moe.router.expert_groups", groups, few, why)
        yield Change("moe.router.kept_groups", kept, few_kept, why)
        most = min(most, E // few * few_kept)
    k = getattr(moe.router, "k", None)
    if isinstance(k, int):
        yield Change("moe.router.k", k, min(k, most), why)


def _batch(e: Experiment, keep_length: bool) -> Iterator[Change]:
    S = length = e.row_length
    if hasattr(e.data, "sequence_length"):
        shorter = min(S, LENGTH) if S % 4 == 0 else LENGTH
        yield Change("data.sequence_length", S, shorter)
        length = S if keep_length else shorter
    rows, group, why = ROWS, None, ""
    if e.moe.every:
        T = e.moe.group_size or S
        if e.model.depth.every and e.moe.group_size is None:
            pass  # there a group is the chosen tokens of a row
        elif T > S:
            rows, group = 2 * ROWS, 2 * length
        else:
            group = _piece(length, 2 if S // T <= 2 else 4)
            if T == S and group == length / 2:
                why = "half a row, so that mesh.sequence = 2 can be tried"
        yield Change("moe.group_size", e.moe.group_size, group, why)
    yield Change("batch_size", e.batch_size, rows)
    yield Change("evaluation.batch_size", e.evaluation.batch_size, None)


def _piece(length: int, parts: int) -> int | None:
    """A row's length cut into `parts` equal pieces, or into as few more as divide it; None, which
    is the whole row, where only pieces of one position do."""
    return next((length // n for n in range(parts, length) if length % n == 0), None)
