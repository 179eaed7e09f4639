"""Experts of low rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
from jaxtyping import Array

from moe_jax.config.fields import Rule, at_least
from moe_jax.experts.base import BaseExpert, matrices
from moe_jax.experts.types import View
from moe_jax.routing.types import ParamSpec


@dataclass(frozen=True, kw_only=True)
class LowRank(BaseExpert):
    """silu(x A_up B_up) A_down B_down: both matrices of an expert as products of rank r.

    rank: r, of both. a_up (E, D, r), b_up (E, r, F), a_down (E, F, r), b_down (E, r, D): with
    r (D + F) in the place of D F parameters a matrix, an expert of the same size may be wider.
    """

    rank: int = 16

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "rank")

    def params(self, E: int, D: int, F: int, init_scale: float) -> dict[str, ParamSpec]:
        r = self.rank
        return {
            "a_up": matrices((E, D, r), "Dr", init_scale),
            "b_up": matrices((E, r, F), "rF", init_scale),
            "a_down": matrices((E, F, r), "Fr", init_scale),
            "b_down": matrices((E, r, D), "rD", init_scale),
        }

    def apply(self, x: Array, view: View) -> Array:
        h = jax.nn.silu(view.times(view.times(x, "a_up"), "b_up"))
        return view.times(view.times(h, "a_down"), "b_down")
