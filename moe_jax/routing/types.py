"""The three small pytrees between a router, a capacity and a dispatcher.

A router decides (`Assignments`), a plan fits the decision into capacity (`Plan`), a dispatcher
moves tokens. Everything here is written for ONE group of T tokens and vmapped over groups; under
the vmap every array has a leading G. Shape letters: T tokens of a group, E experts, R assignments
(static), D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from moe_jax.config.fields import Rule

# (rows, columns): the axes of one matrix of a parameter. All its other axes hold further matrices.
Matrix = tuple[tuple[int, ...], tuple[int, ...]]
LAST_TWO: Matrix = ((-2,), (-1,))
ROW_PARTS = 8  # parts of a row by which drops are counted
MAX_SERVED = 16  # a token with more experts counts as one with so many


def _static(**kwargs: Any) -> Any:
    return field(metadata={"static": True}, **kwargs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Assignments:
    """What a router wants, before capacity; row r is one (token, expert) pair.

    Experts 0..E-1 have matrices; E..E+Z-1 are null, copy or constant experts, undispatched
    without capacity; E+Z marks an unused row (padding, a ReLU zero). Unused is not dropped.
    """

    token_R: Int[Array, "*G R"]  # 0..T-1
    expert_R: Int[Array, "*G R"]
    weight_R: Float[Array, "*G R"]  # combine weight, float32, differentiable
    # Served by ascending (priority, row); None: rows stand in the order of service.
    priority_R: Float[Array, "*G R"] | None = None
    T: int = _static()
    E: int = _static()
    Z: int = _static(default=0)
    # Regular layouts let a dispatcher combine by a reshape instead of a scatter.
    k: int | None = _static(default=None)  # token_R[r] == r // k
    c: int | None = _static(default=None)  # expert_R[r] == r // c, where the row is used

    @property
    def unused(self) -> int:
        """The expert id of an unused row, E+Z."""
        return self.E + self.Z


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Plan:
    """Assignments after capacity.

    slot_R: place of the row in its expert's queue, from 0 (also of rows over capacity).
    kept_R: has a matrix expert and a slot below the capacity. accepted_E: kept rows per expert.
    """

    assignments: Assignments
    slot_R: Int[Array, "*G R"]
    kept_R: Bool[Array, "*G R"]
    accepted_E: Int[Array, "*G E"]
    capacity: int | None = _static()  # slots per expert and group; None: dropless

    @property
    def slots(self) -> int:
        """Slots per expert that a fixed buffer needs; dropless: T, since choices are distinct."""
        return self.assignments.T if self.capacity is None else self.capacity


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SoftPlan:
    """Soft MoE: every slot is a mixture of tokens, every token a mixture of slots."""

    dispatch_TEC: Float[Array, "*G T E C"]
    combine_TEC: Float[Array, "*G T E C"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Sums:
    """Additive statistics of routing: the sum over valid tokens of a group, so that reducing over
    groups, micro-batches or devices is a plain sum and no mean is taken too early.

    Counts are int32 (integers through every reduction: bfloat16 cannot hold 257).
    """

    wanted_E: Int[Array, "*G E"]  # assignments per expert, before any drop
    first_E: Int[Array, "*G E"]  # first choices per expert
    prob_E: Float[Array, "*G E"]  # sum of the router's probabilities
    importance_E: Float[Array, "*G E"]  # sum of the gates, as the router's paper defines them
    load_E: Float[Array, "*G E"]  # smooth, differentiable estimate of wanted_E (or 0)
    z: Float[Array, "*G"]  # sum of logsumexp(logits)^2
    entropy: Float[Array, "*G"]  # sum of the entropy of the router's probabilities, nats
    valid: Int[Array, "*G"]  # tokens counted
    largest_logit: Float[Array, "*G"]  # max |logit|: the one leaf that reduces by maximum
    # What one router keeps for its own losses and its update: float32, additive too.
    own: Mapping[str, Float[Array, "*G ..."]] = field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Additive statistics of what a plan and a dispatcher did with the wanted assignments."""

    accepted_E: Int[Array, "*G E"]
    dropped: Int[Array, "*G"]  # wanted assignments over capacity
    dropped_tokens: Int[Array, "*G"]  # valid tokens that lost every expert they wanted
    overflow: Int[Array, "*G"]  # kept, but over a bounded receive buffer; never part of dropped
    slots: Int[Array, "*G"]  # slots offered, E * capacity; 0 where dropless or all is padding
    wanted_K: Int[Array, "*G K"]  # wanted by rank of choice; of no ranks all at rank 0
    dropped_K: Int[Array, "*G K"]
    wanted_N: Int[Array, "*G N"]  # wanted by place in the row, in ROW_PARTS equal parts
    dropped_N: Int[Array, "*G N"]
    served_H: Int[Array, "*G H"]  # tokens by how many experts they got, the last: that or more


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Routes of a trace: experts (E + Z or more: none) and weights of each token."""

    expert_TK: Int[Array, "*L T K"]
    weight_TK: Float[Array, "*L T K"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RouterInputs:
    """What a router may look at, for one group."""

    x_TD: Float[Array, "*G T D"]
    valid_T: Bool[Array, "*G T"]  # False: padding, which is never routed and never counted
    id_T: Int[Array, "*G T"] | None  # token ids; None where tokens are no ids
    position_T: Int[Array, "*G T"]
    segment_T: Int[Array, "*G T"]
    # A function of (seed, step, layer, global group id); None: no noise.
    key: Key[Array, "*G"] | None = None
    # Which of the ROW_PARTS parts of its row each token is in; None: all in the first.
    row_part_T: Int[Array, "*G T"] | None = None
    # The experts that this group may choose (one member of an ensemble); None: all.
    allowed_E: Bool[Array, "*G E"] | None = None
    # The task of each token's row (its language, say); None: not told.
    task_T: Int[Array, "*G T"] | None = None
    recorded: Recorded | None = None  # other routes, for who replays them
    E: int = _static()  # matrix experts
    train: bool = _static(default=False)


@dataclass(frozen=True, kw_only=True)
class ParamSpec:
    """A parameter of a router or of experts: shape, initializer(key, shape, dtype), logical axis
    names, and what an optimizer cannot see from the shape.

    matrix: its (row axes, column axes), say ((0,), (1, 2)) where (D, E, C) is one map from D to
      E * C; None: a vector along the last axis, or a scalar.
    decays: whether weight decay acts on it.
    """

    shape: tuple[int, ...]
    init: Callable[..., Array]
    axes: tuple[str | None, ...]
    matrix: Matrix | None
    decays: bool


RouterParams = Mapping[str, Shaped[Array, "..."]]
RouterState = Mapping[str, Shaped[Array, "..."]]


@runtime_checkable
class Router(Protocol):
    """A frozen dataclass whose fields are its config; pure methods, no Flax, no collective.

    `causal`: a token's routing never depends on later tokens of its row, also where capacity
    drops. Routers with causal=False refuse to generate. `causal_choice`: the same of what is
    wanted, before capacity. `routing.base.BaseRouter` has defaults of all but `choices` and
    `route`, and says what the class variables mean.
    """

    own_capacity: ClassVar[bool]
    pooled: ClassVar[tuple[str, ...]]
    soft: ClassVar[bool]
    reads_ids: ClassVar[bool]
    reads_tasks: ClassVar[bool]

    @property
    def takes_mask(self) -> bool:
        """Whether `route` obeys `RouterInputs.allowed_E`, as ensembles of expert groups need."""
        ...

    def warn(self) -> Iterator[str]:
        """What is allowed but perhaps not meant, one sentence each."""
        ...

    def check_experts(self, E: int) -> Iterator[Rule]:
        """The rules that need the number of experts."""
        ...

    @property
    def causal(self) -> bool: ...

    @property
    def causal_choice(self) -> bool: ...

    def choices(self, E: int) -> int:
        """K, how many of E experts one token may want at the most."""
        ...

    def experts_per_token(self, E: int, T: int) -> float:
        """Of E matrix experts those of a token, on average over a group of T tokens: for FLOPs and
        capacities."""
        ...

    def params(self, D: int, E: int) -> dict[str, ParamSpec]: ...

    def state(self, E: int) -> dict[str, Array]:
        """Initial non-trained state (a balancing bias, a Lagrange multiplier); {} for most."""
        ...

    def own_sums(self, E: int) -> dict[str, Array]:
        """Zeros in the shapes of `Sums.own` of one group in training; {} for most."""
        ...

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments | SoftPlan, Sums]:
        """Routes one group."""
        ...

    def undispatched(
        self, params: RouterParams, inputs: RouterInputs, assignments: Assignments
    ) -> Float[Array, "T D"]:
        """The weighted outputs of the experts E..E+Z-1; called only where Z > 0."""
        ...

    def losses(self, sums: Sums) -> dict[str, Float[Array, ""]]:
        """The router's own losses by name, unweighted, from sums reduced over a loss's scope."""
        ...

    def metrics(self, state: RouterState, sums: Sums) -> dict[str, Float[Array, ""]]:
        """What only this router has to report of one layer (`moe/router/NAME`), from sums reduced
        over all tokens; {} for most. `Sums.own` may be empty (in evaluation)."""
        ...

    def update(self, state: RouterState, sums: Sums) -> RouterState:
        """The next state, from the sums of the whole global batch; once per optimizer step."""
        ...
