"""Several gates over one pool of experts (multi-gate mixture of experts): all that there is to
them, behind `Gates`.

Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts"
(KDD 2018), eq. 6 and 7: y^k = sum_i g^k(x)_i f_i(x). Each gate k is a router of its own with its
own parameters, state, capacity and statistics; the experts f are one pool. On a device the gates'
choices are further groups of the same tokens, so that every layout and transport carries them.

Where layers of several gates follow each other, each gate has a stream: x^k is what gate k of the
layer below gave, and y^k = sum_i g^k(x^k)_i f_i(x^k). With `own` experts (progressive layered
extraction, Tang et al., RecSys 2020, eq. 1 to 6) a gate sees its own experts and the shared ones,
the last gate, which is the shared one, sees all; and an expert reads the stream of whom it belongs
to: y^k = sum_(i of k) g^k(x^k)_i f_i(x^k) + sum_(i shared) g^k(x^k)_i f_i(x^shared).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from moe_jax.ops.initializers import Initializer
from moe_jax.ops.precision import upcast
from moe_jax.routing.types import Matrix, ParamSpec, Plan, RouterInputs, SoftPlan, Sums, Traffic

Tree = TypeVar("Tree")
AnyPlan = Plan | SoftPlan
# (tokens of groups, their plans) -> (their outputs, rows without room by group)
Dispatch = Callable[[Array, AnyPlan], tuple[Array, Array]]


@dataclass(frozen=True, kw_only=True)
class Gates:
    """K gates (`config.moe.gates`). Of one there is nothing: every method gives back what it is
    given, and an array has no axis of gates.

    own: experts that belong to each gate but the last one, in the order of the gates; those behind
    them are shared. 0: all are everyone's, and read the stream of the gate that asks.
    """

    number: int = 1
    own: int = 0

    def params(self, specs: Mapping[str, ParamSpec]) -> dict[str, ParamSpec]:
        """The parameters of all gates: each with a leading axis of gates, drawn one by one."""
        return dict(specs) if self.number == 1 else stacked(specs, self.number)

    def state(self, state: Mapping[str, Array]) -> dict[str, Array]:
        if self.number == 1:
            return dict(state)
        return {name: jnp.stack([leaf] * self.number) for name, leaf in state.items()}

    def asked(self, k: float, E: int) -> float:
        """Of k experts that a gate takes of a token, those of all gates; of one that may choose
        among fewer, as many as there are."""
        return float(sum(min(k, n) for n in self.allowed(E).sum(axis=1)))

    # Who sees what

    def owner(self, E: int) -> np.ndarray:
        """(E,): the gate that each expert belongs to; what is shared is the last one's."""
        return np.minimum(np.arange(E) // max(self.own, 1), self.number - 1)

    def allowed(self, E: int) -> np.ndarray:
        """bool (K, E): which experts each gate may choose."""
        gate_K, owner_E = np.arange(self.number), self.owner(E)
        shared = self.number - 1
        own_KE = gate_K[:, None] == owner_E[None]
        seen_KE = own_KE | (owner_E == shared)[None] | (gate_K == shared)[:, None]
        return seen_KE if self.own else np.ones_like(seen_KE)

    def streams(self, x_bsD: Float[Array, "*K b s D"]) -> bool:
        """Whether it is one array for each gate."""
        return x_bsD.ndim == 4

    def each(
        self,
        run: Callable[..., Tree],
        inputs: RouterInputs,
        *of_gate: Mapping[str, Array],
        asked_K: Bool[Array, "K"] | None = None,
    ) -> Tree:
        """run(*of_gate, inputs) of every gate, with noise of its own, for g groups: leaves
        (g, ...), of several gates (K g, ...), one gate's groups after the other's.

        inputs: of the groups; x, and recorded routes, may be of each gate, (K, g, ...). asked: the
        tokens of another gate are as padding.
        """

        def over_groups(inputs: RouterInputs, *of_gate: Mapping[str, Array]) -> Tree:
            found: Tree = jax.vmap(lambda inputs: run(*of_gate, inputs))(inputs)
            return found

        if self.number == 1:
            return over_groups(inputs, *of_gate)
        g = inputs.valid_T.shape[0]
        allowed_KE = jnp.asarray(self.allowed(inputs.E)) if self.own else None

        def one(number: Array, seen: RouterInputs, *of_gate: Mapping[str, Array]) -> Tree:
            keys = seen.key
            if keys is not None:
                keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
            valid_T, allowed_E = seen.valid_T, seen.allowed_E
            if asked_K is not None:
                valid_T = valid_T & asked_K[number]
            if allowed_KE is not None:
                allowed_E = jnp.broadcast_to(allowed_KE[number][None], (g, inputs.E))
            seen = dataclasses.replace(seen, key=keys, valid_T=valid_T, allowed_E=allowed_E)
            return over_groups(seen, *of_gate)

        found: Tree = jax.vmap(one, in_axes=(0, _axes_of_gates(inputs), *(0,) * len(of_gate)))(
            jnp.arange(self.number, dtype=jnp.int32), inputs, *of_gate
        )
        joined: Tree = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
        return joined

    def dispatched(
        self, dispatch: Dispatch, z_gTL: Float[Array, "*K g T L"], plan_g: AnyPlan
    ) -> tuple[Array, Array]:
        """dispatch(z, plan) of the plans of all gates, (K g, ...)."""
        if self.number == 1:
            return dispatch(z_gTL, plan_g)
        K, (g, T, L) = self.number, z_gTL.shape[-3:]
        if z_gTL.ndim == 3:
            return dispatch(_copied(z_gTL, K).reshape(K * g, T, L), plan_g)
        if not self.own:
            return dispatch(z_gTL.reshape(K * g, T, L), plan_g)
        # The tokens of a group are those of all streams, and a choice takes that of the expert's.
        beside_gTL = jnp.swapaxes(z_gTL, 0, 1).reshape(g, K * T, L)
        seen = _copied(beside_gTL, K).reshape(K * g, K * T, L)
        y, overflow = dispatch(seen, self._across_streams(plan_g))
        joined = jnp.sum(upcast(y).reshape(K * g, K, T, L), axis=1)
        return joined.astype(y.dtype), overflow

    def _across_streams(self, plan_g: AnyPlan) -> Plan:
        if isinstance(plan_g, SoftPlan):
            raise TypeError("slots that mix tokens are of one stream: no experts of a gate's own")
        a = plan_g.assignments
        owner_E = jnp.asarray(self.owner(a.E), a.token_R.dtype)
        stream_R = owner_E[jnp.minimum(a.expert_R, a.E - 1)]
        across = dataclasses.replace(
            a, token_R=a.token_R + stream_R * a.T, T=self.number * a.T, k=None, c=None
        )
        return dataclasses.replace(plan_g, assignments=across)

    # What is reported

    def shape(self, *shape: int) -> tuple[int, ...]:
        """Of an array that each gate has."""
        return shape if self.number == 1 else (self.number, *shape)

    def mapped(self, run: Callable[..., Tree], *trees: Tree) -> Tree:
        """run of each gate's."""
        found: Tree = run(*trees) if self.number == 1 else jax.vmap(run)(*trees)
        return found

    def as_layers(self, tree: Tree) -> Tree:
        """Leaves (L, K, ...) as (L K, ...): gates stand where layers do."""
        if self.number == 1:
            return tree
        joined: Tree = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
        return joined

    def of_layers(self, tree: Tree) -> Tree:
        """The inverse of `as_layers`."""
        if self.number == 1:
            return tree
        split: Tree = jax.tree.map(
            lambda leaf: leaf.reshape(-1, self.number, *leaf.shape[1:]), tree
        )
        return split

    def seen(self, tree: Tree, gate: int, E: int) -> Tree:
        """The layers of one gate, of leaves (L K, ...); what is counted by expert, of those alone
        that it may choose."""
        at = np.flatnonzero(self.allowed(E)[gate])

        def of_gate(leaf: Array) -> Array:
            return leaf[gate :: self.number]

        found: Tree = jax.tree.map(of_gate, tree)
        return _of_experts(found, at)

    def loss(
        self, of_layers: Callable[[Sums], Float[Array, ""]], sums_LG: Sums, over_layers: str
    ) -> Float[Array, ""]:
        """of_layers(sums), of each gate over the experts that it may choose. over_layers: "sum" or
        "mean"."""
        if not self.own:
            return of_layers(sums_LG)
        E = sums_LG.wanted_E.shape[-1]
        of_gates = [of_layers(self.seen(sums_LG, gate, E)) for gate in range(self.number)]
        return (jnp.sum if over_layers == "sum" else jnp.mean)(jnp.stack(of_gates))


def _copied(x_g: Array, K: int) -> Array:
    """x for each of K gates; its gradient is summed over them in float32."""
    return jnp.broadcast_to(upcast(x_g)[None], (K, *x_g.shape)).astype(x_g.dtype)


def stacked(specs: Mapping[str, ParamSpec], number: int) -> dict[str, ParamSpec]:
    """Parameters that are there several times: with a leading axis, drawn one by one."""
    return {
        name: dataclasses.replace(
            spec,
            shape=(number, *spec.shape),
            init=_each(spec.init),
            axes=(None, *spec.axes),
            matrix=_behind(spec.matrix, len(spec.shape)),
        )
        for name, spec in specs.items()
    }


def _axes_of_gates(inputs: RouterInputs) -> RouterInputs:
    """For vmap: which leaves are of each gate, (K, g, ...)."""
    none = jax.tree.map(lambda leaf: None, inputs)
    streams = inputs.x_TD.ndim == 4
    recorded = inputs.recorded
    axes: RouterInputs = dataclasses.replace(
        none,
        x_TD=0 if streams else None,
        recorded=None if recorded is None else jax.tree.map(lambda leaf: 0, recorded),
    )
    return axes


def _of_experts(tree: Tree, at: np.ndarray) -> Tree:
    """`Sums` and `Traffic` with some of the experts' columns."""
    if not isinstance(tree, Sums | Traffic):
        return tree
    names = [f.name for f in dataclasses.fields(tree) if f.name.endswith("_E")]
    return dataclasses.replace(tree, **{name: getattr(tree, name)[..., at] for name in names})


def _each(init: Initializer) -> Initializer:
    def all_gates(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return jnp.stack([init(k, shape[1:], dtype) for k in jax.random.split(key, shape[0])])

    return all_gates


def _behind(matrix: Matrix | None, rank: int) -> Matrix | None:
    """The axes of a matrix, counted from the last, so that one may stand in front."""
    if matrix is None:
        return None
    rows, columns = (tuple(axis % rank - rank for axis in part) for part in matrix)
    return rows, columns
