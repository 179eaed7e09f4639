"""Which layers are sparse, and how they are stacked: a prologue and a repeated pattern."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from moe_jax.nn.depth import MixtureOfDepths
from moe_jax.nn.ensemble import Ensemble
from moe_jax.nn.moe_layer import MoEConfig


def is_moe_layer(moe: MoEConfig, layer: int) -> bool:
    """Whether layer number `layer` (from 0) is sparse."""
    return moe.every > 0 and layer >= moe.first and (layer - moe.first) % moe.every == 0


@dataclass(frozen=True)
class Stack:
    """Layers first, first + step, ...: `count` layers of one kind that scan treats as one.

    moe: a sparse layer. depth: only some tokens take part. causal: no token sees a later one.
    crosses: its tokens attend to a memory too, as a decoder's do to what its encoder gives.
    """

    first: int
    step: int
    count: int
    moe: bool
    depth: bool = False
    causal: bool = False
    crosses: bool = False

    @property
    def name(self) -> str:
        """The stack's key in parameters and router state: its first layer's number."""
        return f"{self.first:02d}"

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.first + self.step * i for i in range(self.count))


@dataclass(frozen=True)
class LayerPart:
    """Layers that follow each other: a prologue, then `repeats` x a pattern of blocks; one stack
    per place in the pattern. name: of one of several parts."""

    prologue: tuple[Stack, ...] = ()
    pattern: tuple[Stack, ...] = ()
    name: str = ""

    @property
    def stacks(self) -> tuple[Stack, ...]:
        return self.prologue + self.pattern

    @property
    def runs(self) -> tuple[tuple[Stack, ...], ...]:
        """What one loop goes over, in order: each layer of the prologue by itself, the pattern."""
        return (*((stack,) for stack in self.prologue), self.pattern)

    def unrolled(self) -> LayerPart:
        """Every layer a stack of its own: no loop, and no array of several layers to cut up."""
        layers = sorted(
            (
                dataclasses.replace(stack, first=layer, step=1, count=1)
                for stack in self.stacks
                for layer in stack.layers
            ),
            key=lambda stack: stack.first,
        )
        return LayerPart(prologue=tuple(layers), name=self.name)


@dataclass(frozen=True)
class Layout:
    """The layers of a model: one part, or several that do not feed each other layer by layer, as an
    encoder and a decoder. Layers are numbered through all parts.

    shared: so many layers stand before the first place, of the prologue or the pattern, with a
    sparse one: an ensemble has one copy of them. ensemble: what becomes of rows behind them.
    """

    parts: tuple[LayerPart, ...]
    shared: int = 0
    ensemble: Ensemble = Ensemble()

    def unrolled(self) -> Layout:
        return dataclasses.replace(self, parts=tuple(part.unrolled() for part in self.parts))

    @property
    def prologue(self) -> tuple[Stack, ...]:
        """Of a model of one part."""
        (part,) = self.parts
        return part.prologue

    @property
    def pattern(self) -> tuple[Stack, ...]:
        """Of a model of one part."""
        (part,) = self.parts
        return part.pattern

    @property
    def stacks(self) -> tuple[Stack, ...]:
        return tuple(stack for part in self.parts for stack in part.stacks)

    def stack_of(self, layer: int) -> Stack:
        return next(stack for stack in self.stacks if layer in stack.layers)

    @property
    def part_of_moe_layers(self) -> tuple[int, ...]:
        """Of each sparse layer, in the order of `moe_layers`, the part that it is in."""
        part_of = {
            layer: number
            for number, part in enumerate(self.parts)
            for stack in part.stacks
            for layer in stack.layers
        }
        return tuple(part_of[layer] for layer in self.moe_layers)

    @property
    def layers_by_name(self) -> dict[str, tuple[int, ...]]:
        """The layers of each stack, by its name."""
        return {stack.name: stack.layers for stack in self.stacks}

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The numbers of the sparse layers, in the order in which reports are stacked."""
        return tuple(sorted(layer for stack in self.moe_stacks for layer in stack.layers))

    @property
    def moe_stacks(self) -> tuple[Stack, ...]:
        return tuple(stack for stack in self.stacks if stack.moe)

    @property
    def before_sparse(self) -> tuple[Stack, ...]:
        """The stacks that an ensemble shares."""
        return tuple(stack for stack in self.stacks if stack.first < self.shared)

    @property
    def depth_stacks(self) -> tuple[Stack, ...]:
        return tuple(stack for stack in self.stacks if stack.depth)

    @property
    def depth_layers(self) -> tuple[int, ...]:
        """The numbers of the layers with a router of depths, in the order of their reports."""
        return tuple(sorted(layer for stack in self.depth_stacks for layer in stack.layers))

    def in_layer_order(
        self, by_stack: Mapping[str, PyTree[Array]], stacks: tuple[Stack, ...] | None = None
    ) -> PyTree[Array]:
        """Trees of the stacks (None: the sparse ones), leaves (count, ...), as one with leaves
        (L, ...)."""
        stacks = self.moe_stacks if stacks is None else stacks
        numbers = [layer for stack in stacks for layer in stack.layers]
        order = jnp.asarray([numbers.index(layer) for layer in sorted(numbers)], jnp.int32)
        return jax.tree.map(
            lambda *leaves: jnp.concatenate(leaves, axis=0)[order],
            *[by_stack[stack.name] for stack in stacks],
        )

    def by_stack(self, tree: PyTree[Array]) -> dict[str, PyTree[Array]]:
        """The inverse of `in_layer_order`."""
        rows = {layer: row for row, layer in enumerate(self.moe_layers)}
        parts = {}
        for stack in self.moe_stacks:
            index = jnp.asarray([rows[layer] for layer in stack.layers], jnp.int32)
            parts[stack.name] = jax.tree.map(lambda leaf, index=index: leaf[index], tree)
        return parts


ALL_TOKENS = MixtureOfDepths()


def layout_of(
    num_layers: int,
    moe: MoEConfig,
    depth: MixtureOfDepths = ALL_TOKENS,
    *,
    causal: bool = False,
    crosses: bool = False,
    behind: int = 0,
    name: str = "",
) -> Layout:
    """Cuts the layers into a prologue and a repeated pattern, as long as the least common multiple
    of moe.every and depth.every.

    The prologue is what does not fit: layers well before moe.first or depth.first, and the
    remainder. behind: so many layers of other parts are numbered before these, whose kinds are
    counted from their own first. name: of the part.
    """
    period = math.lcm(moe.every or 1, depth.every or 1)
    # Layers before the first of a kind belong to the pattern as far as it reaches back.
    start = max([0] + [kind.first - kind.every + 1 for kind in (moe, depth) if kind.every])
    start += (num_layers - start) % period if start < num_layers else 0
    start = min(start, num_layers)

    def stack(first: int, step: int, count: int) -> Stack:
        sparse, chooses = is_moe_layer(moe, first), depth.chooses_in(first)
        return Stack(behind + first, step, count, sparse, chooses, causal, crosses)

    repeats = (num_layers - start) // period
    places = range(start, start + period if repeats else start)
    prologue = tuple(stack(layer, 1, 1) for layer in range(start))
    dense = itertools.takewhile(lambda stack: not stack.moe, prologue)
    pattern = tuple(stack(at, period, repeats) for at in places)
    layout = Layout(parts=(LayerPart(prologue, pattern, name),), shared=len(tuple(dense)))
    return dataclasses.replace(layout, ensemble=moe.members) if layout.moe_layers else layout


def joined(*layouts: Layout) -> Layout:
    """A layout with the parts of all, which have no ensembles."""
    return Layout(parts=tuple(part for layout in layouts for part in layout.parts))
