"""What a transport is, and what it knows of experts."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Array

from moe_jax.routing.types import Plan, SoftPlan


@runtime_checkable
class Experts(Protocol):
    """Expert networks on buffers; `ops.expert_ffn.ExpertWeights` is the usual one."""

    def slots(self, x_ECD: Array) -> Array:
        """(E, C, D) -> (E, C, D): every expert on its own slots."""
        ...

    def rows(self, x_RD: Array, sizes_E: Array, expected: int | None = None) -> Array:
        """(R, D) -> (R, D), rows sorted by expert; rows past sum(sizes) give zeros. expected: how
        many there are under an even load; None: R."""
        ...

    def all(self, x_TD: Array) -> Array:
        """(T, D) -> (T, E, D): every expert on every token."""
        ...


@runtime_checkable
class Transport(Protocol):
    """Brings g groups of tokens to the devices that hold their experts, and the results back.

    layout: "rows" or a name of `slots.FILLS`. axis: the mesh axis that experts are spread over;
    this device holds E / n of them. receive_factor: as in `dispatch`.
    Returns outputs (g, T, D) and, per group, the rows lost to a full receive buffer (int32).
    """

    def __call__(
        self,
        x_gTD: Array,
        plan_g: Plan | SoftPlan,
        experts: Experts,
        *,
        layout: str,
        axis: str,
        receive_factor: float,
    ) -> tuple[Array, Array]: ...
