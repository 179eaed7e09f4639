"""What a router has that needs nothing of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from moe_jax.config.fields import Rule
from moe_jax.routing.types import (
    Assignments,
    ParamSpec,
    RouterInputs,
    RouterParams,
    RouterState,
    Sums,
)


@dataclass(frozen=True, kw_only=True)
class BaseRouter:
    """The defaults of the Router protocol: no parameters, no state, no losses of its own.

    Missing are `choices(E)` and `route`. A router whose choices depend on later tokens sets
    `causal_choice` to False.
    """

    # Whether the router itself gives every expert its number of tokens, so that
    # moe.capacity_factor has nothing to say.
    own_capacity: ClassVar[bool] = False
    # Names in `Sums.own` that no loss reads, only `update` and `metrics`: histograms and the like
    # are summed over a device's groups inside their layer, where few of them are in memory.
    pooled: ClassVar[tuple[str, ...]] = ()
    # Whether `route` gives a SoftPlan, which few layouts can carry (dispatch.SOFT_LAYOUTS).
    soft: ClassVar[bool] = False
    # Whether `route` looks at the ids of tokens, which patches of an image have none of.
    reads_ids: ClassVar[bool] = False
    # Whether `route` looks at the task of each token's row, which few data tell.
    reads_tasks: ClassVar[bool] = False

    # Whether `route` obeys `RouterInputs.allowed_E`, as ensembles of expert groups need.
    takes_mask = False

    def check(self) -> Iterator[Rule]:
        yield from ()

    def warn(self) -> Iterator[str]:
        """What is allowed but perhaps not meant, one sentence each."""
        yield from ()

    def check_experts(self, E: int) -> Iterator[Rule]:
        """The rules that need the number of experts."""
        yield from ()

    @property
    def causal_choice(self) -> bool:
        return True

    @property
    def causal(self) -> bool:
        return self.causal_choice

    def choices(self, E: int) -> int:
        raise NotImplementedError

    def experts_per_token(self, E: int, T: int) -> float:
        return float(self.choices(E))

    def params(self, D: int, E: int) -> dict[str, ParamSpec]:
        return {}

    def state(self, E: int) -> dict[str, Array]:
        return {}

    def own_sums(self, E: int) -> dict[str, Array]:
        return {}

    def undispatched(
        self, params: RouterParams, inputs: RouterInputs, assignments: Assignments
    ) -> Float[Array, "T D"]:
        raise NotImplementedError(f"{type(self).__name__} has no undispatched experts")

    def losses(self, sums: Sums) -> dict[str, Float[Array, ""]]:
        return {}

    def metrics(self, state: RouterState, sums: Sums) -> dict[str, Float[Array, ""]]:
        return {}

    def update(self, state: RouterState, sums: Sums) -> RouterState:
        return state
