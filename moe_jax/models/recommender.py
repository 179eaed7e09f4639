"""Models of rows of a table: embeddings, levels of experts, and a tower for each target."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from moe_jax.config.fields import Rule, at_least, kind
from moe_jax.experts.types import sizes_of
from moe_jax.models.layout import Stack
from moe_jax.models.transformer import Transformer, TransformerConfig
from moe_jax.models.types import IO, Ends, Output, RouterStates, Targets
from moe_jax.nn.attention import MIXERS
from moe_jax.nn.block import BlockReport
from moe_jax.nn.context import Context, TableBatch, TokenBatch
from moe_jax.nn.cost import Cost, Division
from moe_jax.nn.gates import stacked
from moe_jax.nn.head import Towers
from moe_jax.nn.mixer import Mixer, NoMixer
from moe_jax.nn.mlp import feed_forward, feed_forward_params
from moe_jax.nn.moe_layer import MoEConfig, MoELayer
from moe_jax.nn.norm import RMSNorm
from moe_jax.nn.param import Parameters, parameter
from moe_jax.nn.predictions import TargetValues
from moe_jax.nn.sharing import SHARING, MultiGate, Sharing
from moe_jax.ops.embedding import rows_of_table
from moe_jax.ops.initializers import fan_in
from moe_jax.ops.linear import linear
from moe_jax.ops.precision import upcast
from moe_jax.parallel.rules import sharding
from moe_jax.routing.types import LAST_TWO


@dataclass(frozen=True, kw_only=True)
class RecommenderConfig(TransformerConfig):
    """Sizes and numerics of a model of rows of a table; a row is one token.

    embedding_dim: of each category. vocab_size: ids of all categories, rows of one table that lies
    over the mesh as an embedding of text does; 0: what the data has, in whole eights, and 264 where
    that is less. num_layers: levels. sharing: what targets have in common (nn/sharing.py); it says
    how many gates the sparse layers have. tower_dim: hidden units of each target's tower. Of the
    sizes of a transformer those of attention say nothing here.
    """

    num_layers: int = 1
    vocab_size: int = 0
    embedding_dim: int = 8
    tower_dim: int = 64
    sharing: Sharing = kind(SHARING, MultiGate)
    mixer: Mixer = kind(MIXERS, NoMixer)

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "embedding_dim", "tower_dim")
        yield from at_least(self, 0, "vocab_size")
        if not isinstance(self.mixer, NoMixer):
            yield "mixer", "must be none: a row of a table is one token"
        if self.depth.every:
            yield "depth.every", "must be 0: a row of a table is one token"

    def fits(self, io: IO) -> Iterator[Rule]:
        if io.table is None:
            yield "kind", "reads rows of a table, and the data has none"
        elif not isinstance(io.gives, Targets):
            yield "kind", "gives a number for each target (task.kind = multi_task, choice)"
        elif not io.gives.names:
            yield (
                "kind",
                "gives the targets that task.binary and task.real name, and they are empty",
            )

    def row_length(self, io: IO) -> int:
        return 1

    def gated(self, moe: MoEConfig, io: IO) -> MoEConfig:
        """What is said otherwise stays, and is refused."""
        if not moe.every:
            return moe
        gates = max(len(self.sharing.gates(_names(io))), 1)
        return dataclasses.replace(
            moe,
            gates=gates if moe.gates == 1 else moe.gates,
            own_experts=moe.own_experts or self.sharing.owned(),
        )

    def gate_rules(self, moe: MoEConfig, io: IO) -> Iterator[Rule]:
        yield from self.sharing.fits(moe)
        gates = max(len(self.sharing.gates(_names(io))), 1)
        if moe.every and moe.gates != gates:
            yield "gates", f"must be 1: model.sharing says that they are {gates}"
        if moe.every and moe.own_experts != self.sharing.owned():
            yield "own_experts", "must be 0: model.sharing.own_experts says how many"
        if moe.every and moe.ensemble > 1:
            yield "ensemble", "must be 1 in a model of several targets"

    def gate_names(self, moe: MoEConfig, io: IO) -> tuple[str, ...]:
        return self.sharing.gates(_names(io)) if moe.every else ()

    def divisions(self, sizes: Mapping[str, int]) -> Iterator[Division]:
        yield "model.embedding_dim", self.embedding_dim, sizes["fsdp"], "mesh.fsdp"

    def norms(self) -> int:
        return (self.num_layers + 1) * self.model_dim

    def block_cost(self, stack: Stack, moe: MoEConfig, S: int, io: IO) -> Cost:
        """Of several gates also what the last level's shared one would cost, which asks for
        nothing there."""
        if stack.moe:
            return moe.cost(self.model_dim, self.activation, S)
        dense = feed_forward_params(self.model_dim, self.mlp_dim, self.activation, 1.0)
        return Cost.of_matrices(self.sharing.streams(len(_names(io))) * sizes_of(dense))

    def features(self, io: IO) -> int:
        """Width of a row's embeddings and numbers beside each other."""
        C, N = io.table or (0, 0)
        return C * self.embedding_dim + N

    def ends(self, io: IO) -> Ends:
        T, D = len(_names(io)), self.model_dim
        inputs = self.sharing.inputs(T)
        table = inputs * self.vocab_size * self.embedding_dim if (io.table or (0, 0))[0] else 0
        inward = inputs * self.features(io) * D
        uncertain = isinstance(io.gives, Targets) and io.gives.uncertain
        towers = Towers.parameters(D, self.tower_dim, T)
        return Ends(
            parameters=table + inward + inputs * D + towers + T * uncertain,
            multiplied=inward + T * (D + 1) * self.tower_dim,
        )

    def build(self, moe: MoEConfig, io: IO, mesh: Mesh, *, rngs: nnx.Rngs) -> Recommender:
        return Recommender(self, moe, io, mesh, rngs=rngs)


def _names(io: IO) -> tuple[str, ...]:
    return io.gives.names if isinstance(io.gives, Targets) else ()


class Recommender(Transformer):
    """Categories (B, C) and numbers (B, N) -> a number for each target, (B, T).

    x = (embeddings, numbers) W + b; through the levels, each y^k = experts(norm(x^k)) without a
    residual, as in the papers; then tower_k(norm(x^k)). We differ: the norms.
    """

    config: RecommenderConfig

    def __init__(
        self, config: RecommenderConfig, moe: MoEConfig, io: IO, mesh: Mesh, *, rngs: nnx.Rngs
    ):
        assert isinstance(io.gives, Targets)
        self.io, self.gives = io, io.gives
        self.streams = config.sharing.streams(len(io.gives.names))
        super().__init__(config, moe, mesh, rngs=rngs)
        D, T = config.model_dim, len(io.gives.names)
        self.towers = Towers(D, config.tower_dim, T, init_scale=config.init_scale, rngs=rngs)
        zeros = jax.nn.initializers.zeros
        self.log_variance = (
            parameter(rngs, zeros, (T,), (None,), matrix=None, decays=False)
            if io.gives.uncertain
            else None
        )

    def make_input(self, rngs: nnx.Rngs) -> None:
        config, D = self.config, self.config.model_dim
        C, inputs = (self.io.table or (0, 0))[0], config.sharing.inputs(len(self.gives.names))
        form: dict[str, Any] = dict(matrix=LAST_TWO, decays=True)
        small = jax.nn.initializers.normal(config.embedding_dim**-0.5)
        shape = (config.vocab_size, inputs * config.embedding_dim)
        self.table = parameter(rngs, small, shape, ("vocab", "embed"), **form) if C else None
        inward = (inputs, config.features(self.io), D)
        draw = fan_in(config.init_scale, batch_axis=0)
        self.inward = parameter(rngs, draw, inward, (None, None, "embed"), **form)
        zeros = jax.nn.initializers.zeros
        self.bias = parameter(rngs, zeros, (inputs, D), (None, "embed"), matrix=None, decays=False)

    def make_block(self, stack: Stack, rngs: nnx.Rngs) -> Level:
        moe = self.moe if stack.moe else None
        return Level(self.config, moe, self.streams, self.mesh, rngs=rngs)

    def __call__(
        self, rows: TableBatch, context: Context, router_state: RouterStates, cache: None = None
    ) -> Output:
        x_BSD, output = self.through_layers(
            self._streams(rows), rows.as_tokens(), context, router_state
        )
        T, (B, _, D) = len(self.gives.names), x_BSD.shape[-3:]
        x_KBD = upcast(x_BSD).reshape(-1, B, D)
        x_TBD = jnp.broadcast_to(x_KBD, (T, B, D)) if self.streams == 1 else x_KBD[:T]
        predictions = TargetValues(
            value_BT=self.towers(x_TBD),
            log_variance_T=None if self.log_variance is None else self.log_variance[...],
            binary=len(self.gives.binary),
        )
        return dataclasses.replace(output, predictions=self.predicted(predictions, context))

    def _streams(self, rows: TableBatch) -> Float[Array, "*K B S D"]:
        """What enters the first level: a row as one token, for each stream where there are
        several."""
        inputs, parts = self.inward.shape[0], []
        if self.table is not None:
            # Whole along its width, as the embedding of text is (models/text.py).
            target = sharding(self.mesh, ("vocab", "model"), self.table.shape, "table")
            table_VN = jax.lax.with_sharding_constraint(self.table[...], target)
            found = rows_of_table(table_VN, jnp.asarray(rows.id_BC), self.dtype)
            B, C, _ = found.shape
            by_input = jnp.moveaxis(found.reshape(B, C, inputs, -1), 2, 0)
            parts.append(by_input.reshape(inputs, B, -1))
        if rows.number_BN is not None:
            number_BN = jnp.asarray(rows.number_BN).astype(self.dtype)
            parts.append(jnp.broadcast_to(number_BN[None], (inputs, *number_BN.shape)))
        x_IBF = jnp.concatenate(parts, axis=2)
        x_IBD = jax.vmap(linear)(x_IBF, self.inward[...])
        # In float32, so that no gradient is summed, over rows or streams, in a smaller type.
        x_IBSD = (upcast(x_IBD) + self.bias[...][:, None])[:, :, None]
        if self.streams == 1:
            return x_IBSD[0].astype(self.dtype)
        shape = (self.streams, *x_IBSD.shape[1:])
        return jnp.broadcast_to(x_IBSD, shape).astype(self.dtype)


class Level(nnx.Module):
    """y^k = experts(norm(x^k)) of each stream k: of a sparse layer, or dense with weights of each
    stream's own."""

    def __init__(
        self,
        config: RecommenderConfig,
        moe: MoEConfig | None,
        streams: int,
        mesh: Mesh,
        *,
        rngs: nnx.Rngs,
    ):
        D, options = config.model_dim, dict[str, Any](init_scale=config.init_scale)
        self.mlp_norm = RMSNorm(D, rngs=rngs)
        self.activation, self.streams = config.activation, streams
        self.last = config.num_layers - 1
        self.moe = (
            None
            if moe is None
            else MoELayer(
                moe, mesh=mesh, model_dim=D, activation=self.activation, rngs=rngs, **options
            )
        )
        dense = feed_forward_params(D, config.mlp_dim, config.activation, config.init_scale)
        weights = dense if streams == 1 else stacked(dense, streams)
        self.mlp = Parameters(weights, rngs) if moe is None else None

    def __call__(
        self,
        x_BSD: Float[Array, "*K B S D"],
        batch: TokenBatch,
        context: Context,
        router_state: Mapping[str, Array],
        layer: Int[Array, ""],
        cache: None = None,
        memory: None = None,
    ) -> tuple[Float[Array, "*K B S D"], BlockReport, None]:
        inner_BSD = self.mlp_norm(x_BSD)
        if self.moe is not None:
            asked_K = self._asked(layer)
            y_BSD, report = self.moe(
                inner_BSD, batch, context, router_state, layer, asked_K=asked_K
            )
            return y_BSD, BlockReport(moe=report), None
        assert self.mlp is not None
        weights = self.mlp.arrays()
        if self.streams == 1:
            return feed_forward(weights, inner_BSD, self.activation), BlockReport(), None
        each = jax.vmap(lambda weights, x_BSD: feed_forward(weights, x_BSD, self.activation))
        return each(weights, inner_BSD), BlockReport(), None

    def _asked(self, layer: Int[Array, ""]) -> Array | None:
        """Nothing reads the shared stream behind the last level."""
        assert self.moe is not None
        if not self.moe.gates.own:
            return None
        target_K = jnp.arange(self.streams, dtype=jnp.int32) < self.streams - 1
        return target_K | (layer < self.last)
