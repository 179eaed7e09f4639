"""Warm starts: the parameters of a new run from those of another one.

Tensors are matched layer by layer, so that runs whose layers are stacked in another way (another
moe.every, a dense model) still find each other.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from moe_jax.models.by_layer import Stacks, layer_names, unstacked
from moe_jax.models.layout import Layout
from moe_jax.training.checkpoint import flatten

BY_TOKEN = ("embedding", "head")  # parameters with a row or a column for each token
GROW = ("noise", "new", "copy")
NOISE = 0.1  # standard deviation, of the root mean square of the column that it is added to


@dataclass(frozen=True)
class Like:
    """How the layers of a model's tree are stacked, and how many experts its sparse ones have."""

    layout: Layout
    num_experts: int


@dataclass
class WarmStartReport:
    """What became of every tensor."""

    used: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        titles = {
            "used": "used as they are",
            "adapted": "made from others",
            "new": "newly initialised",
            "unused": "of the old run, unused",
        }
        lines = ["warm start:"]
        for name, title in titles.items():
            paths = getattr(self, name)
            lines.append(f"  {len(paths)} tensors {title}" + (":" if paths else ""))
            lines += [f"    {path}" for path in _merged(paths)]
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])

    def __add__(self, other: WarmStartReport) -> WarmStartReport:
        return WarmStartReport(*(getattr(self, f) + getattr(other, f) for f in vars(self)))


@dataclass(frozen=True)
class Taken:
    """What a tensor takes over. fresh: where it keeps its new initialisation all the same, a mask
    that broadcasts to it; None: nowhere."""

    values: np.ndarray
    fresh: np.ndarray | None = None


def warm_start(
    new: PyTree[jax.Array],
    old: PyTree[jax.Array],
    *,
    new_like: Like | None = None,
    old_like: Like | None = None,
    same_tokens: bool = True,
    grow: str = "noise",
    seed: int = 0,
) -> tuple[PyTree[jax.Array], WarmStartReport]:
    """The tree `new` with the values of `old`, in the dtypes of `new`:

    - the same path and shape: used as it is;
    - another number of experts (E' for E): expert i is a copy of the old expert i mod E. Copies
      are twins: with equal router columns they are chosen together, get equal gradients and never
      part. `grow` says what the columns w'_i of the router are for i >= E, with j = i mod E:
        noise  w_j + NOISE rms(w_j) n,  n ~ N(0, 1), drawn from `seed` and the path
        new    as the router initialises them
        copy   w_j: with E' / E times as many choices the model computes what it did
    - a sparse layer where the old run has a dense one of its experts' size: each expert is a copy
      of that MLP, the router is new (sparse upcycling, Komatsuzaki et al., 2212.05055);
    - else new; so are embedding and head where the old run had another tokenizer, whose ids mean
      other tokens (same_tokens=False).

    What comes from `old` alone is numpy. new_like, old_like: how the two are stacked; None: the
    leaves of a path are one tensor.
    """
    if grow not in GROW:
        raise ValueError(f"grow = {grow!r}: must be one of {', '.join(GROW)}")
    fresh, structure = flatten(new)
    experts = None
    if new_like is not None and old_like is not None:
        experts = (old_like.num_experts, new_like.num_experts)
    before = {name: np.asarray(leaf) for name, leaf in flatten(old)[0].items()}
    match = _Match(unstacked(before, _stacks(old_like)), experts, same_tokens, grow, seed)
    values = []
    for name, leaf in fresh.items():
        names = layer_names(name, _stacks(new_like))
        shape = leaf.shape[1:] if names else leaf.shape
        taken = [match.take(one, shape) for one in names or (name,)]
        values.append(_joined(taken, leaf, stacked=bool(names)))
    return jax.tree.unflatten(structure, values), match.whole_report()


def growth_warnings(
    experts: tuple[int, int], k: tuple[int | None, int | None], grow: str
) -> Iterator[str]:
    """What a model with more copies of its experts is to look out for. experts, k: (old, new)."""
    copies = -(-experts[1] // experts[0])
    if copies < 2:
        return
    if grow == "copy":
        yield (
            "the copies of an expert have equal router columns: they are chosen together and stay "
            "equal unless something else parts them (--grow=noise or --grow=new do)"
        )
    if k[1] is not None and k[1] < copies:
        before = f"; moe.router.k = {copies * k[0]} is what the old run had" if k[0] else ""
        yield (
            f"moe.router.k = {k[1]} is smaller than the {copies} copies of each expert: a token's "
            f"choices may all be copies of one{before}"
        )


class _Match:
    """Finds for each tensor, by its name, what it takes over, and keeps account of it."""

    def __init__(
        self,
        old: Mapping[str, np.ndarray],
        experts: tuple[int, int] | None,  # old, new
        same_tokens: bool,
        grow: str,
        seed: int,
    ):
        self._old, self._experts, self._same_tokens = old, experts, same_tokens
        self._grow, self._seed = grow, seed
        self._done: set[str] = set()  # of the old ones: used, or told to be unused
        self.report = WarmStartReport()

    def take(self, name: str, shape: tuple[int, ...]) -> Taken | None:
        """None: newly initialised."""
        if not self._same_tokens and name in BY_TOKEN:
            return self._new(f"{name} (another tokenizer)")
        source = name if name in self._old else name.replace(".moe.experts.", ".mlp.")
        if source not in self._old:
            return self._new(name)
        before = self._old[source]
        self._done.add(source)
        if source != name and before.shape == shape[1:]:
            self.report.adapted.append(f"{name} {shape}: copies of {source}")
            return Taken(np.broadcast_to(before, shape))
        if source == name and before.shape == shape:
            self.report.used.append(name)
            return Taken(before)
        if source == name and (axis := self._expert_axis(name, before.shape, shape)) is not None:
            return self._grown(name, before, axis, shape)
        self.report.unused.append(f"{source} {before.shape}, now {shape}")
        return self._new(name)

    def _new(self, entry: str) -> Taken | None:
        self.report.new.append(entry)
        return None

    def whole_report(self) -> WarmStartReport:
        self.report.unused += [name for name in self._old if name not in self._done]
        return self.report

    def _expert_axis(self, name: str, old: tuple[int, ...], new: tuple[int, ...]) -> int | None:
        """The axis of the experts, where that alone differs: counted from the last."""
        differ = [i - len(new) for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
        if len(old) != len(new) or len(differ) != 1:
            return None
        if "experts" in name.split("."):
            # The first layer stands for all; without layouts the trees may be stacked.
            expert_axis = -3 if self._experts is None else -len(new)
            return expert_axis if differ == [expert_axis] else None
        (axis,) = differ
        more = None if self._experts is None else self._experts[1] - self._experts[0]
        of_router = any(part.startswith("router") for part in name.split("."))
        return axis if of_router and more in (None, new[axis] - old[axis]) else None

    def _grown(self, name: str, before: np.ndarray, axis: int, shape: tuple[int, ...]) -> Taken:
        """Copies along the axis of the experts; behind those, a router may have outputs that are
        no experts, which stay as they are."""
        experts = before.shape[axis] if self._experts is None else self._experts[0]
        others = before.shape[axis] - experts
        index = np.arange(shape[axis] - others) % experts
        index = np.concatenate([index, experts + np.arange(others)])
        values = np.take(before, index, axis)
        copies = np.arange(len(index)) != index
        copies[len(index) - others :] = False
        mask = np.moveaxis(copies.reshape((-1,) + (1,) * (values.ndim - 1)), 0, axis)
        entry = f"{name} {before.shape} -> {shape}"
        if "router" not in name.split(".") or values.ndim < 2 or not copies.any():
            self.report.adapted.append(entry)
            return Taken(values)
        self.report.adapted.append(f"{entry}, columns of copies: {self._grow}")
        if self._grow == "noise":
            others_axes = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
            rms = np.sqrt(np.mean(np.square(values), axis=others_axes, keepdims=True))
            rng = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
            values = values + mask * NOISE * rms * rng.normal(size=values.shape)
        return Taken(values, fresh=mask if self._grow == "new" else None)


def _stacks(like: Like | None) -> Stacks:
    return {} if like is None else like.layout.layers_by_name


def _joined(
    taken: Sequence[Taken | None], leaf: jax.Array, *, stacked: bool
) -> jax.Array | np.ndarray:
    """The leaf with what its layers take over."""
    if all(one is None for one in taken):
        return leaf
    shape = leaf.shape[1:] if stacked else leaf.shape
    dtype = np.dtype(leaf.dtype)
    values = [np.zeros(shape, dtype) if one is None else one.values for one in taken]
    masks = [True if one is None else one.fresh for one in taken]
    if stacked:
        value = np.stack(values).astype(dtype)
    else:
        value = values[0].astype(dtype)
    if all(mask is None for mask in masks):
        return value
    fresh = np.stack([np.broadcast_to(False if mask is None else mask, shape) for mask in masks])
    return jnp.where(fresh if stacked else fresh[0], leaf, value)


def _merged(lines: Sequence[str]) -> list[str]:
    """Lines that differ in the layer's number alone as one, with the numbers."""
    layer = re.compile(r"\blayers\.(\d+)\.")
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(layer.sub("layers.*.", line), []).append(line)
    merged = []
    for text, group in groups.items():
        numbers = [str(int(found[1])) for line in group if (found := layer.search(line))]
        many = len(group) > 1 and numbers
        merged.append(f"{text} (layers {', '.join(numbers)})" if many else group[0])
    return merged
