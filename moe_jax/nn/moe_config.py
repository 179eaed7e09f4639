"""The config of sparse layers, and how they cut a batch into routing groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jax import Array

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least, kind, one_of
from moe_jax.dispatch import LAYOUTS, TRANSPORTS
from moe_jax.experts import EXPERTS, Expert, FeedForward
from moe_jax.experts.types import sizes_of
from moe_jax.nn.around import AROUND, Around, Nothing
from moe_jax.nn.cost import Cost
from moe_jax.nn.ensemble import Ensemble
from moe_jax.nn.gates import Gates
from moe_jax.nn.latent import Latent
from moe_jax.nn.shared import Shared
from moe_jax.ops.expert_ffn import OLDER_NAMES, ROW_BACKENDS
from moe_jax.routing import ROUTERS, Mixtral
from moe_jax.routing.capacity import ROUNDINGS
from moe_jax.routing.losses import RoutingLosses
from moe_jax.routing.types import ParamSpec, Router


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """The sparse layers of a model.

    every, first: MoE in layers first, first + every, ... (counting from 0), dense elsewhere;
      every=0: nowhere, a dense model.
    expert_dim: hidden width F of one expert. expert: what one computes.
    num_shared, shared_dim: experts that see every token.
    latent_dim: width L in which the routed experts work and tokens travel (`Latent`); None: the
      model's width D. around: what else stands around them.
    ensemble: M members, each with E / M of the experts (docs/layers.md); 1: none.
    gates: routers over the one pool of experts, each with an output of its own (nn/gates.py).
      own_experts: of each gate but the last one, which no other of them sees; 0: none.
    capacity_factor: None is dropless. group_size: tokens of a routing group, a divisor or a
      multiple of the row length; None: one row.
    layout, transport, receive_factor, matmul: see `dispatch` and `ops.grouped_matmul`.
    overlap_chunks: parts of a device's groups that travel on their own, so that the communication
      of one can run beside the experts of another.
    """

    num_experts: int = 8
    every: int = 1
    first: int = 0
    expert_dim: int = 256
    num_shared: int = 0
    shared_dim: int | None = None  # width of one shared expert; None: expert_dim
    latent_dim: int | None = None
    around: Around = kind(AROUND, Nothing)
    ensemble: int = 1
    gates: int = 1
    own_experts: int = 0
    expert: Expert = kind(EXPERTS, FeedForward)
    router: Router = kind(ROUTERS, Mixtral)
    losses: RoutingLosses = field(default_factory=RoutingLosses)
    capacity_factor: float | None = None
    capacity_rounding: str = "ceil"
    min_capacity: int = 1
    renormalize_after_drop: bool = False
    group_size: int | None = None
    layout: str = "rows"
    transport: str = "all_to_all"
    receive_factor: float = 2.0
    overlap_chunks: int = 1
    matmul: str = "auto"

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "num_experts", "expert_dim", "shared_dim", "group_size")
        yield from at_least(self, 1, "min_capacity", "overlap_chunks", "latent_dim", "ensemble")
        yield from at_least(self, 1, "gates")
        if self.gates > 1 and self.ensemble > 1:
            yield "gates", "must be 1 in an ensemble"
        yield from at_least(self, 0, "every", "first", "num_shared", "own_experts")
        if self.own_experts > 0:
            yield from self.owned()
        for name in ("capacity_factor", "receive_factor"):
            if (value := getattr(self, name)) is not None and value <= 0:
                yield name, "must be above 0"
        yield from one_of(self, LAYOUTS, "layout")
        yield from one_of(self, TRANSPORTS, "transport")
        yield from one_of(self, ROUNDINGS, "capacity_rounding")
        if self.matmul not in OLDER_NAMES:
            yield from one_of(self, ("auto", *ROW_BACKENDS), "matmul")

    def owned(self) -> Iterator[Rule]:
        """The rules of experts that belong to a gate."""
        if self.gates > 1 and self.own_experts * (self.gates - 1) >= self.num_experts:
            rule = f"must leave shared ones: {self.gates - 1} gates of {self.num_experts} experts"
            yield "own_experts", rule
        if self.capacity_factor is not None:
            rule = "must be none: with own_experts a gate's load is over its experts alone"
            yield "capacity_factor", rule
        if self.router.soft or not self.router.takes_mask:
            yield "own_experts", "must be 0: this router cannot choose among some of the experts"
        if self.losses.device_balance.coefficient:
            rule = "must be 0 with own_experts: its groups are blocks of all experts"
            yield "losses.device_balance.coefficient", rule

    def expert_params(
        self, model_dim: int, activation: str, init_scale: float = 1.0
    ) -> dict[str, ParamSpec]:
        """The parameters of all experts of a layer of that width."""
        expert = self.expert.completed(activation)
        width = self.width(model_dim)
        return expert.params(self.num_experts, width, self.expert_dim, init_scale)

    def _surroundings(self) -> dict[str, Around]:
        """What stands around the routed experts, from the outside, by the names of its parameters.
        A new one that has settings here is a new file and one row."""
        hidden, own = self.shared_dim or self.expert_dim, self.shared_dim is not None
        shared = Shared(number=self.num_shared, hidden=hidden, own_width=own)
        rows: dict[str, Around | None] = {
            "shared": shared if self.num_shared else None,
            "latent": Latent(latent_dim=self.latent_dim) if self.latent_dim else None,
            "around": None if isinstance(self.around, Nothing) else self.around,
        }
        return {name: around for name, around in rows.items() if around is not None}

    def surroundings(self, activation: str) -> dict[str, Around]:
        """What stands around the routed experts of a model of that activation, by name."""
        return {name: one.completed(activation) for name, one in self._surroundings().items()}

    def widths(self, model_dim: int) -> dict[str, int]:
        """The width of what each of `surroundings` gets."""
        found, width = {}, model_dim
        for name, around in self._surroundings().items():
            found[name] = width
            width = around.width(width)
        return found

    def width(self, model_dim: int) -> int:
        """In which the routed experts work and tokens travel."""
        width = model_dim
        for around in self._surroundings().values():
            width = around.width(width)
        return width

    def cost(self, model_dim: int, activation: str, S: int) -> Cost:
        """Of a layer, for groups of S tokens, or of group_size."""
        expert, k = self.expert.completed(activation), self.experts_per_token(S)
        width, F = self.width(model_dim), self.expert_dim
        one = sizes_of(expert.params(1, width, F, 1.0))
        gates = self.gating
        asked = gates.asked(k, self.num_experts)
        multiplied = asked * expert.multiplied(width, F)
        router = sizes_of(gates.params(self.router.params(model_dim, self.num_experts)))
        found = Cost(parameters=router, active=router, multiplied=router, router=router)
        found += Cost(
            parameters=self.num_experts * one,
            active=min(asked, self.num_experts) * one,
            multiplied=multiplied,
            routed=multiplied,
        )
        widths = self.widths(model_dim)
        for name, around in self.surroundings(activation).items():
            found += around.cost(widths[name])
        return found

    def experts_per_token(self, sequence_length: int) -> float:
        """Matrix experts of a token, on average."""
        return self.router.experts_per_token(self.num_experts, self.group_size or sequence_length)

    @property
    def gating(self) -> Gates:
        return Gates(number=self.gates, own=self.own_experts if self.gates > 1 else 0)

    @property
    def members(self) -> Ensemble:
        return Ensemble(members=self.ensemble)

    @property
    def experts_of_one(self) -> int:
        """Experts among which a group chooses: all, or those of its member of an ensemble."""
        return self.num_experts // self.ensemble

    @property
    def choices(self) -> int:
        """Experts that one token may want at the most, over all members of an ensemble."""
        return self.ensemble * self.router.choices(self.num_experts)

    @property
    def causal(self) -> bool:
        """Whether no token's output depends on later tokens through routing. Without capacity
        only the choice itself matters, not the order of service."""
        dropless = self.capacity_factor is None
        return self.router.causal_choice if dropless else self.router.causal


def fine_grained(moe: MoEConfig, m: int) -> MoEConfig:
    """Each expert cut into m: E m experts of width F / m, of which a token chooses k m.

    Fine-grained segmentation, DeepSeekMoE (2401.06066) section 3.1: total and active parameters,
    FLOPs and slots stay as they are, but for the router's E m columns. Shared experts keep their
    width, groups of experts their number. UserError where m does not divide F, and for a router
    without a `k`.
    """
    if m < 1 or moe.expert_dim % m:
        raise UserError(f"moe.expert_dim = {moe.expert_dim} cannot be cut into {m} equal parts")
    router: Any = moe.router
    if "k" not in {f.name for f in dataclasses.fields(router)}:
        raise UserError(f"{type(router).__name__} has no k to multiply by {m}")
    return dataclasses.replace(
        moe,
        num_experts=moe.num_experts * m,
        expert_dim=moe.expert_dim // m,
        shared_dim=moe.shared_dim or moe.expert_dim,
        router=dataclasses.replace(router, k=router.k * m),
    )


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """How a (B, S) batch is cut into groups of T tokens: pieces of a row, or whole rows."""

    T: int
    rows: int  # rows of one group, 1 if it is a piece
    pieces: int  # groups of one row, 1 if a group has whole rows

    @classmethod
    def of(cls, group_size: int | None, S: int) -> Grouping:
        T = group_size or S
        if T % S and S % T:
            raise ValueError(f"group of {T} tokens against rows of {S}: neither divides the other")
        return cls(T=T, rows=max(T // S, 1), pieces=max(S // T, 1))

    def cut(self, x_bs: Array) -> Array:
        """(b, s, ...) of one shard -> (g, T, ...)."""
        return x_bs.reshape(-1, self.T, *x_bs.shape[2:])
