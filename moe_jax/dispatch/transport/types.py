"""What a transport is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Array

from moe_jax.experts.types import Networks
from moe_jax.routing.types import Plan, SoftPlan


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
        experts: Networks,
        *,
        layout: str,
        axis: str,
        receive_factor: float,
    ) -> tuple[Array, Array]: ...
