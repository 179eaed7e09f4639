"""What several targets of a row have in common: nothing, all, experts by gates, or some of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moe_jax.config.fields import Rule, at_least
from moe_jax.nn.moe_config import MoEConfig

SHARED_GATE = "shared"


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """A row of SHARING; its defaults are those of one network for all. T: targets. A stream is a
    representation of a row."""

    def check(self) -> Iterator[Rule]:
        yield from ()

    def inputs(self, T: int) -> int:
        """Streams that have embeddings of their own."""
        return 1

    def streams(self, T: int) -> int:
        """Streams through the levels; the first T are those of the targets, or there is one."""
        return 1

    def gates(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        """What each of several gates is for; () of one gate, or none."""
        return ()

    def owned(self) -> int:
        """Experts of each gate's own, but for a shared one (nn/gates.py)."""
        return 0

    def fits(self, moe: MoEConfig) -> Iterator[Rule]:
        """What is wrong with the sparse layers: (path below `moe`, rule)."""
        yield from ()


@dataclass(frozen=True, kw_only=True)
class Single(Sharing):
    """A network for each target, with embeddings of its own: as if each were trained alone."""

    def inputs(self, T: int) -> int:
        return T

    def streams(self, T: int) -> int:
        return T

    def fits(self, moe: MoEConfig) -> Iterator[Rule]:
        if moe.every:
            yield "every", "must be 0: the networks of model.sharing.kind = single are dense"


@dataclass(frozen=True, kw_only=True)
class SharedBottom(Sharing):
    """One network for all, behind it a tower for each target (Caruana, 1997). With sparse layers it
    is the mixture of one gate that the MMoE paper calls OMoE."""


@dataclass(frozen=True, kw_only=True)
class MultiGate(Sharing):
    """A gate for each target over one pool of experts. Ma et al., MMoE (KDD 2018)."""

    def streams(self, T: int) -> int:
        return T

    def gates(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        return targets if len(targets) > 1 else ()

    def fits(self, moe: MoEConfig) -> Iterator[Rule]:
        yield from _all_sparse(moe)


@dataclass(frozen=True, kw_only=True)
class Extraction(Sharing):
    """Progressive layered extraction: each target has `own_experts` in every level, the rest of
    moe.num_experts is shared, and a gate sees its target's and the shared ones; between levels a
    shared gate sees all. One level is customized gate control. Tang et al., PLE (RecSys 2020)."""

    own_experts: int = 2

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "own_experts")

    def streams(self, T: int) -> int:
        return T + 1

    def gates(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        return (*targets, SHARED_GATE)

    def owned(self) -> int:
        return self.own_experts

    def fits(self, moe: MoEConfig) -> Iterator[Rule]:
        yield from _all_sparse(moe)
        yield from moe.owned()


def _all_sparse(moe: MoEConfig) -> Iterator[Rule]:
    if moe.every != 1:
        yield "every", "must be 1: each level has experts (dense: model.sharing.kind)"
    if moe.first:
        yield "first", "must be 0: each level has experts"


SHARING: dict[str, type[Sharing]] = {
    "single": Single,
    "shared_bottom": SharedBottom,
    "mmoe": MultiGate,
    "ple": Extraction,
}
