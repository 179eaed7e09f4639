"""What routers share in which each token chooses its experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, Int

from moe_jax.config.fields import Rule, at_least, one_of, schedulable
from moe_jax.routing.base import BaseRouter
from moe_jax.routing.choice import DROP_ORDERS, choose, kernel_spec, make_sums, scatter_gates
from moe_jax.routing.types import Assignments, ParamSpec, RouterInputs, Sums


@dataclass(frozen=True, kw_only=True)
class BaseTokenChoice(BaseRouter):
    """What routers have in which each token chooses K experts.

    drop_order: who is served first where capacity is short; see `choose`.
    """

    drop_order: str = "token_major"

    def check(self) -> Iterator[Rule]:
        yield from one_of(self, DROP_ORDERS, "drop_order")
        yield from at_least(self, 1, *(["k"] if "k" in self.__dataclass_fields__ else []))

    def choices(self, E: int) -> int:
        return self.k  # type: ignore[attr-defined]

    @property
    def causal(self) -> bool:
        """True where a drop never depends on later tokens: token-major, or one choice a token."""
        ranks_matter = self.choices(2) > 1 or self.drop_order == "batch_priority"
        return self.causal_choice and (self.drop_order == "token_major" or not ranks_matter)

    def decide(
        self,
        weight_TK: Float[Array, "T K"],
        expert_TK: Int[Array, "T K"],
        inputs: RouterInputs,
        logits_TE: Float[Array, "T E"],
        prob_TE: Float[Array, "T E"],
        *,
        gate_TE: Float[Array, "T E"] | None = None,
        load_TE: Float[Array, "T E"] | None = None,
        own: Mapping[str, Array] | None = None,
        Z: int = 0,
    ) -> tuple[Assignments, Sums]:
        """The assignments of these choices (`choose`) and their sums (`make_sums`); the gates are
        the weights of the chosen experts unless others are given."""
        E = logits_TE.shape[1]
        assignments = choose(weight_TK, expert_TK, inputs, E, self.drop_order, Z)
        if gate_TE is None:
            gate_TE = scatter_gates(weight_TK, expert_TK, E)
        return assignments, make_sums(
            assignments, logits_TE, prob_TE, gate_TE, inputs.valid_T, load_TE, own
        )


@dataclass(frozen=True, kw_only=True)
class BaseLinearLogits(BaseRouter):
    """What routers have whose logits are x W.

    jitter: input noise, uniform(1 - jitter, 1 + jitter), in training.
    init_scale: the kernel's initial variance is init_scale / D; 0 starts from zeros.
    bias: adds a trained bias to the logits (gpt-oss has one); an expert with bias -inf is never
      chosen.
    """

    jitter: float = schedulable(0.0)
    init_scale: float = 1.0
    bias: bool = False

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 0, "jitter", "init_scale")

    def params(self, D: int, E: int) -> dict[str, ParamSpec]:
        specs = {"kernel": kernel_spec(D, E, self.init_scale)}
        if self.bias:
            zeros = jax.nn.initializers.zeros
            specs["bias"] = ParamSpec(
                shape=(E,), init=zeros, axes=(None,), matrix=None, decays=False
            )
        return specs


@dataclass(frozen=True, kw_only=True)
class BaseLinearChoice(BaseLinearLogits, BaseTokenChoice):
    """Token choice by logits x W."""

    takes_mask = True
