"""Which routing losses a run uses: coefficient, scope and convention of each.

The scope of a loss is what its `Sums` are reduced over before the loss is taken; the values of
the units are then averaged:
  group         each routing group by itself (GShard)
  row           each row, a sequence (DeepSeek's sequence-wise balance)
  micro_batch   each micro-batch (most codebases); without accumulation the same as global_batch
  global_batch  the whole batch of an optimizer step; exact under accumulation, by two passes
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule, at_least, one_of, schedulable
from moe_jax.routing import balance
from moe_jax.routing.plan import reduce_sums
from moe_jax.routing.types import Router, Sums

SCOPES = ("group", "row", "micro_batch", "global_batch")
OF_ONE_MEMBER = ("group", "row")  # of an ensemble: what such a unit is made of


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """`coefficient` (may follow a schedule) times the loss, over its scope."""

    coefficient: float = schedulable(0.0)
    scope: str = "global_batch"

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "coefficient")
        yield from one_of(self, SCOPES, "scope")

    def values(self, router: Router, sums: Sums) -> dict[str, Float[Array, ""]]:
        """The unweighted losses of one unit of the scope, by name."""
        raise NotImplementedError

    def of_member(self, members: int) -> LossTerm:
        """The same loss of one member of an ensemble, which has 1 / members of the experts."""
        return self


@dataclass(frozen=True, kw_only=True)
class LoadBalance(LossTerm):
    """`balance.load_balance_loss`. Switch uses 0.01 with normalization "one"."""

    count: str = "all"  # or "first": GShard counts first choices only
    normalization: str = "one"

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from one_of(self, ("all", "first"), "count")
        yield from one_of(self, balance.NORMALIZATIONS, "normalization")

    def values(self, router: Router, sums: Sums) -> dict[str, Float[Array, ""]]:
        loss = balance.load_balance_loss(sums, count=self.count, normalization=self.normalization)
        return {"load_balance": loss}


@dataclass(frozen=True, kw_only=True)
class DeviceBalance(LossTerm):
    """`balance.device_balance_loss` over `groups` contiguous blocks of experts, of equal size.

    DeepSeek-V2 has one block per device: groups = mesh.expert. It does not follow the mesh by
    itself, so that the loss does not depend on the devices.
    """

    groups: int = 1

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "groups")

    def of_member(self, members: int) -> LossTerm:
        if self.groups == 1:
            return self
        if self.groups % members:
            raise ValueError(f"{self.groups} groups of experts do not lie in {members} members")
        return replace(self, groups=self.groups // members)

    def values(self, router: Router, sums: Sums) -> dict[str, Float[Array, ""]]:
        return {"device_balance": balance.device_balance_loss(sums, self.groups)}


@dataclass(frozen=True, kw_only=True)
class Importance(LossTerm):
    """`balance.importance_loss`, CV^2 of the summed gates."""

    variance: str = "population"

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from one_of(self, ("population", "unbiased"), "variance")

    def values(self, router: Router, sums: Sums) -> dict[str, Float[Array, ""]]:
        return {"importance": balance.importance_loss(sums, variance=self.variance)}


@dataclass(frozen=True, kw_only=True)
class Load(LossTerm):
    """`balance.load_loss`, CV^2 of the smooth load estimate; needs a router with noise."""

    variance: str = "population"

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from one_of(self, ("population", "unbiased"), "variance")

    def values(self, router: Router, sums: Sums) -> dict[str, Float[Array, ""]]:
        return {"load": balance.load_loss(sums, variance=self.variance)}


@dataclass(frozen=True, kw_only=True)
class RouterZ(LossTerm):
    """`balance.router_z_loss`. ST-MoE uses 0.001."""

    def values(self, router: Router, sums: Sums) -> dict[str, Float[Array, ""]]:
        return {"router_z": balance.router_z_loss(sums)}


@dataclass(frozen=True, kw_only=True)
class RouterOwn(LossTerm):
    """What the router's `losses` method returns, with one coefficient in front."""

    coefficient: float = schedulable(1.0)

    def values(self, router: Router, sums: Sums) -> dict[str, Float[Array, ""]]:
        return router.losses(sums)


@dataclass(frozen=True, kw_only=True)
class RoutingLosses:
    """All the terms. `over_layers`: "sum" (Switch, Megatron-Core, DeepSeek) or "mean"."""

    load_balance: LoadBalance = field(default_factory=LoadBalance)
    device_balance: DeviceBalance = field(default_factory=DeviceBalance)
    importance: Importance = field(default_factory=Importance)
    load: Load = field(default_factory=Load)
    router_z: RouterZ = field(default_factory=RouterZ)
    router: RouterOwn = field(default_factory=RouterOwn)
    over_layers: str = "sum"

    def check(self) -> Iterator[Rule]:
        yield from one_of(self, ("sum", "mean"), "over_layers")

    def terms(self) -> dict[str, LossTerm]:
        """Every term by its field's name, in the order of the fields."""
        values = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, LossTerm)}


def global_terms(
    losses: RoutingLosses, router: Router, E: int, scheduled: Collection[str] = ()
) -> tuple[str, ...]:
    """The terms that need the sums of the whole global batch: those of that scope which have a
    value, and a coefficient that is not 0 or whose path is in `scheduled`."""

    def counts(name: str, term: LossTerm) -> bool:
        weighted = term.coefficient or f"moe.losses.{name}.coefficient" in scheduled
        # Few routers have losses of their own, although their coefficient is 1.
        return bool(weighted) and bool(
            jax.eval_shape(lambda: term.values(router, _zeros(router, E)))
        )

    return tuple(
        name
        for name, term in losses.terms().items()
        if term.scope == "global_batch" and counts(name, term)
    )


def _zeros(router: Router, E: int) -> Sums:
    count_E, sum_E = jnp.zeros((E,), jnp.int32), jnp.zeros((E,), jnp.float32)
    return Sums(
        wanted_E=count_E,
        first_E=count_E,
        prob_E=sum_E,
        importance_E=sum_E,
        load_E=sum_E,
        z=jnp.zeros((), jnp.float32),
        entropy=jnp.zeros((), jnp.float32),
        valid=jnp.zeros((), jnp.int32),
        largest_logit=jnp.zeros((), jnp.float32),
        own=router.own_sums(E),
    )


def scoped_loss(
    losses: RoutingLosses,
    router: Router,
    sums_LG: Sums,
    scopes: tuple[str, ...],
    pieces: int,
    members: int = 1,
) -> Float[Array, ""]:
    """The weighted loss of all terms whose scope is among `scopes`.

    sums_LG: leaves (L, G, ...), of L layers and the G groups at hand. pieces: groups per row (1
    where a group is one row or more). A unit's values are averaged over units, then summed or
    averaged over layers.

    members: of an ensemble. A group, and a row, is one member's, which chooses among its E /
    members experts only: over these its losses are taken.
    """
    total = jnp.zeros((), jnp.float32)
    for term in losses.terms().values():
        if term.scope not in scopes:
            continue
        units_LU = _units(term.scope, sums_LG, pieces, router.pooled)
        if members > 1 and term.scope in OF_ONE_MEMBER:
            units_LU, term = _own_experts(units_LU, members), term.of_member(members)
        per_unit = jax.vmap(jax.vmap(lambda sums, term=term: term.values(router, sums)))
        for value_LU in per_unit(units_LU).values():
            value_L = jnp.mean(value_LU, axis=1)
            combine = jnp.sum if losses.over_layers == "sum" else jnp.mean
            total += term.coefficient * combine(value_L)
    return total


def _own_experts(sums_LU: Sums, members: int) -> Sums:
    """The sums of units of one member each over that member's experts alone: of the others, with
    which they are interleaved in blocks, they have zeros."""

    def fold(leaf_LUE: Array) -> Array:
        L, U, E, *rest = leaf_LUE.shape
        blocks = leaf_LUE.reshape(L, U, members, E // members, *rest)
        return jnp.sum(blocks, axis=2, dtype=leaf_LUE.dtype)

    by_expert = {f.name for f in fields(Sums) if f.name.endswith("_E")}
    folded = {name: fold(getattr(sums_LU, name)) for name in by_expert}
    own = {
        name: fold(leaf) if name.rpartition("_")[2].startswith("E") else leaf
        for name, leaf in sums_LU.own.items()
    }
    return replace(sums_LU, **folded, own=own)


def _units(scope: str, sums_LG: Sums, pieces: int, pooled: tuple[str, ...]) -> Sums:
    """Leaves (L, U, ...): the sums of each unit of the scope; of a part of the batch without those
    that its router pools."""
    if scope in ("group", "row"):
        own = {name: leaf for name, leaf in sums_LG.own.items() if name not in pooled}
        sums_LG = replace(sums_LG, own=own)
    if scope == "group":
        return sums_LG
    if scope == "row":
        cut = jax.tree.map(
            lambda leaf: leaf.reshape(leaf.shape[0], -1, pieces, *leaf.shape[2:]), sums_LG
        )
        return reduce_sums(cut, axis=2)
    return jax.tree.map(lambda leaf: leaf[:, None], reduce_sums(sums_LG, axis=1))
