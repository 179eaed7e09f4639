"""The sparse layer: its modules, and what surrounds the work of each device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from moe_jax.nn.context import Context, LayerReport, TokenBatch
from moe_jax.nn.experts import Experts, Latent, RouterParams
from moe_jax.nn.mlp import MLP
from moe_jax.nn.moe_config import Grouping, MoEConfig, fine_grained
from moe_jax.nn.moe_shard import ShardArguments, ShardBody, ShardOutputs
from moe_jax.parallel.axes import OURS, MeshAxes, Place
from moe_jax.parallel.mesh import with_trivial_axes

__all__ = ["Grouping", "MoEConfig", "MoELayer", "fine_grained"]


class MoELayer(nnx.Module):
    """y = sum over the chosen experts of weight * expert(x), plus the shared experts.

    With `latent_dim` = L: y = (sum of weight * expert(x W_down)) W_up + shared(x). The router, the
    shared experts and what is computed at home (null, copy experts) see the whole width.
    """

    def __init__(
        self,
        config: MoEConfig,
        *,
        model_dim: int,
        activation: str,
        init_scale: float,
        param_dtype: jnp.dtype,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
        axes: MeshAxes = OURS,
    ):
        D, E = model_dim, config.num_experts
        created: dict[str, Any] = dict(init_scale=init_scale, param_dtype=param_dtype, rngs=rngs)
        common = dict(activation=activation, **created)
        self.router = RouterParams(config.router, D, E, rngs)
        self.experts = Experts(E, config.latent_dim or D, config.expert_dim, **common)
        # Shared experts that all see every token are one wider MLP.
        width = config.num_shared * (config.shared_dim or config.expert_dim)
        self.shared = MLP(model_dim=D, hidden_dim=width, **common) if width else None
        L = config.latent_dim
        self.latent = Latent(D, L, **created) if L else None
        self.config, self.activation = config, activation
        self.place = Place() if mesh is None else Place(mesh=mesh, axes=axes)

    def __call__(
        self,
        x_BSD: Float[Array, "B S D"],
        batch: TokenBatch,
        context: Context,
        router_state: Mapping[str, Array],
        layer: Int[Array, ""],
        place: Place | None = None,
    ) -> tuple[Float[Array, "B S D"], LayerReport]:
        """Returns the layer's output and its statistics, per routing group; what the router pools,
        per shard of the batch. place: where it runs, in place of the mesh that it was made for."""
        place = self.place if place is None else place
        group_size = None if context.whole_rows else self.config.group_size
        grouping = Grouping.of(group_size, x_BSD.shape[1])
        arguments = ShardArguments(
            x_BSD=x_BSD,
            z_BSL=x_BSD if self.latent is None else self.latent.inward(x_BSD),
            batch=batch,
            group_BP=_group_ids(batch.row_B, grouping),
            experts=self.experts.arrays(),
            router=self.router.arrays(),
            state=dict(router_state),
            knobs=dict(context.knobs),
            key=None if context.key is None else jax.random.fold_in(context.key, layer),
            recorded=jax.tree.map(lambda leaf: leaf[layer], context.recorded),
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
        y_BSD = outputs.y_BSL
        if self.latent is not None:
            y_BSD = self.latent.outward(y_BSD)
        if outputs.home_BSD is not None:
            y_BSD = y_BSD + outputs.home_BSD
        if self.shared is not None:
            y_BSD = y_BSD + self.shared(x_BSD)
        return y_BSD, _flatten_groups(outputs.report)

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
        specs = ShardArguments.specs(axes, experts)
        outputs: ShardOutputs = jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(specs,),
            out_specs=axes.tokens,
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

    def flat(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)

    return dataclasses.replace(report, sums=flat(report.sums), traffic=flat(report.traffic))
