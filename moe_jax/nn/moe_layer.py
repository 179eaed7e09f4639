"""The sparse layer: its modules, and what surrounds the work of each device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from moe_jax.nn.context import Context, LayerReport, TokenBatch
from moe_jax.nn.moe_config import Grouping, MoEConfig, fine_grained
from moe_jax.nn.moe_shard import ShardArguments, ShardBody, ShardOutputs
from moe_jax.nn.param import Parameters
from moe_jax.parallel.axes import OURS, MeshAxes, Place
from moe_jax.parallel.mesh import with_trivial_axes
from moe_jax.routing.scalars import as_pytree

__all__ = ["Grouping", "MoEConfig", "MoELayer", "fine_grained"]


class MoELayer(nnx.Module):
    """y = sum over the chosen experts of weight * expert(x), plus the shared experts; of several
    gates a y for each, on a leading axis, as all that is reported, and an x for each or one for all
    (nn/gates.py).

    With what stands around the experts (nn/around.py): y = outward(sum of weight *
    expert(inward(x))) + beside(x). The router and what is undispatched (null, copy experts) see
    x itself.
    """

    def __init__(
        self,
        config: MoEConfig,
        *,
        model_dim: int,
        activation: str,
        init_scale: float,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
        axes: MeshAxes = OURS,
        param_dtype: DTypeLike = jnp.float32,
    ):
        D, E = model_dim, config.num_experts
        self.gates = config.gating
        self.router = Parameters(self.gates.params(config.router.params(D, E)), rngs)
        experts = config.expert_params(D, activation, init_scale)
        self.experts = Parameters(experts, rngs, param_dtype)
        # A tuple, so that the graph of a module with this layer can be a static argument.
        self.surroundings = tuple(config.surroundings(activation).items())
        widths = config.widths(D)
        for name, around in self.surroundings:
            params = around.params(widths[name], init_scale)
            setattr(self, name, Parameters(params, rngs, param_dtype))
        self.config, self.activation = config, activation
        self.place = Place() if mesh is None else Place(mesh=mesh, axes=axes)

    def __call__(
        self,
        x_BSD: Float[Array, "*K B S D"],
        batch: TokenBatch,
        context: Context,
        router_state: Mapping[str, Array],
        layer: Int[Array, ""],
        place: Place | None = None,
        asked_K: Bool[Array, "K"] | None = None,
    ) -> tuple[Float[Array, "*K B S D"], LayerReport]:
        """Returns the layer's output and its statistics, per routing group; what the router pools,
        per shard of the batch. place: where it runs, in place of the mesh that it was made for.
        asked: the gates whose outputs are wanted; the others choose nothing, and give 0."""
        place = self.place if place is None else place
        group_size = None if context.whole_rows else self.config.group_size
        grouping = Grouping.of(group_size, x_BSD.shape[-2])
        z_BSL, params, entered = x_BSD, self._surrounding_params(), {}
        for name, around in self.surroundings:
            entered[name] = z_BSL
            z_BSL = around.inward(params[name], z_BSL)
        arguments = ShardArguments(
            x_BSD=x_BSD,
            z_BSL=z_BSL,
            batch=batch,
            group_BP=_group_ids(batch.row_B, grouping),
            experts=self.experts.arrays(),
            router=as_pytree(context.router or self.config.router),
            params=self.router.arrays(),
            state=dict(router_state),
            key=None if context.key is None else jax.random.fold_in(context.key, layer),
            recorded=jax.tree.map(lambda leaf: self.gates.of_layers(leaf)[layer], context.recorded),
            asked_K=asked_K,
        )
        body = ShardBody(
            config=self.config,
            activation=self.activation,
            grouping=grouping,
            axes=place.axes,
            switches=context.switches,
            platform=place.platform,
        )
        outputs = self._on_the_mesh(body, arguments, place)
        y_BSD, undispatched_BSD = outputs.y_BSL, outputs.undispatched_BSD
        for name, around in reversed(self.surroundings):
            y_BSD = around.outward(params[name], y_BSD)
            # Undispatched experts see x itself: they join where the others are back in its width.
            if undispatched_BSD is not None and entered[name] is x_BSD:
                y_BSD, undispatched_BSD = y_BSD + undispatched_BSD, None
            beside = around.beside(params[name], entered[name])
            y_BSD = y_BSD if beside is None else y_BSD + self._of_each_gate(beside)
        if undispatched_BSD is not None:
            y_BSD = y_BSD + undispatched_BSD
        return y_BSD, self.gates.mapped(_flatten_groups, outputs.report)

    def _of_each_gate(self, x_BSD: Array) -> Array:
        return x_BSD if self.gates.number == 1 or self.gates.streams(x_BSD) else x_BSD[None]

    def _surrounding_params(self) -> dict[str, dict[str, Array]]:
        return {name: getattr(self, name).arrays() for name, _ in self.surroundings}

    def _on_the_mesh(
        self, body: ShardBody, arguments: ShardArguments, place: Place
    ) -> ShardOutputs:
        """In one fully manual shard_map; without a mesh as it is."""
        mesh, axes = place.mesh, place.axes
        if mesh is None:
            return body(arguments)
        experts = {
            name: with_trivial_axes(spec, mesh) for name, spec in self.experts.specs(axes).items()
        }
        streams = self.gates.streams(arguments.x_BSD)
        specs = ShardArguments.specs(axes, experts, streams, self.gates.number > 1)
        outputs: ShardOutputs = jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(specs,),
            out_specs=PartitionSpec(*([None] if self.gates.number > 1 else []), *axes.tokens),
            check_vma=False,
        )(arguments)
        return outputs


def _group_ids(row_B: Int[Array, "B"], grouping: Grouping) -> Int[Array, "U P"]:
    """Global numbers of the groups, laid out so that a shard of rows has its groups' numbers."""
    if grouping.rows > 1:
        return row_B[:: grouping.rows, None] // grouping.rows
    piece_P = jnp.arange(grouping.pieces, dtype=row_B.dtype)
    return row_B[:, None] * grouping.pieces + piece_P[None, :]


def _flatten_groups(report: LayerReport) -> LayerReport:
    """Statistics leave the shard_map as (units, pieces, ...); one leading G from here on."""

    def flat(tree: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)

    return dataclasses.replace(report, sums=flat(report.sums), traffic=flat(report.traffic))
