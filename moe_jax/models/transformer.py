"""What all models share: sizes and numerics, and the layers between their two ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from moe_jax.config.fields import Rule, at_least, kind, one_of
from moe_jax.experts.types import sizes_of
from moe_jax.models.layout import Layout, Stack, layout_of
from moe_jax.models.types import IO, Cache, Ends, Output, RouterStates
from moe_jax.nn.attention import KERNELS, MIXERS, GroupedQuery
from moe_jax.nn.block import Block
from moe_jax.nn.context import Context, LayerReport, TokenBatch
from moe_jax.nn.cost import Cost, Division, Here, Planned
from moe_jax.nn.cross import CrossAttention, Memory
from moe_jax.nn.depth import DepthReport, DepthRouter, MixtureOfDepths
from moe_jax.nn.ensemble import AnyPredictions
from moe_jax.nn.mixer import Mixer, RowSizes
from moe_jax.nn.mlp import MLP, feed_forward_params
from moe_jax.nn.moe_layer import MoEConfig, MoELayer
from moe_jax.nn.norm import RMSNorm
from moe_jax.ops.expert_ffn import ACTIVATIONS
from moe_jax.parallel.rules import sharding

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

UNROLLED_ON_CPU = 8

# What the backward pass keeps instead of computing again.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,  # keep everything: no recomputation
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    # Rows that crossed devices are kept: recomputing them would communicate again.
    "received": jax.checkpoint_policies.save_only_these_names(
        "received", "returned", "attention_out"
    ),
    # The experts' products too: only attention, norms and routing are computed again.
    "expert_hidden": jax.checkpoint_policies.save_only_these_names(
        "received", "returned", "attention_out", "expert_hidden"
    ),
}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The config of a model, a row of MODELS: sizes and numerics of its layers here, and what it
    reads and gives in the subclass (`fits`, `row_length`, `ends`, `build`).

    mlp_dim is the hidden width of the dense layers. mixer: how the tokens of a row see each other,
    attention as a rule. attention: its kernel, see nn/attention.py.
    depth: layers in which only some tokens take part. unrolled_layers: up to so many layers are
    compiled one by one, more of them as a loop, whose time to compile does not grow with them;
    None: 8 on CPU, where the loop makes a step a fifth longer (it copies what the backward pass
    keeps), 0 elsewhere. init_scale: variance * fan_in of every matrix but the router's (Switch:
    0.1). Products are computed in dtype; parameters (param_dtype has no other value), their
    gradients' sums, norms, router, softmax and losses are float32 always.
    """

    num_layers: int = 4
    model_dim: int = 128
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 32
    mlp_dim: int = 512
    activation: str = "swiglu"
    qk_norm: bool = False
    attention: str = "auto"
    unrolled_layers: int | None = None
    init_scale: float = 1.0
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    mixer: Mixer = kind(MIXERS, GroupedQuery)
    depth: MixtureOfDepths = field(default_factory=MixtureOfDepths)

    def check(self) -> Iterator[Rule]:
        sizes = ("num_layers", "model_dim", "num_heads", "num_kv_heads")
        yield from at_least(self, 1, *sizes, "head_dim", "mlp_dim")
        yield from at_least(self, 0, "unrolled_layers")
        yield from one_of(self, ACTIVATIONS, "activation")
        yield from one_of(self, KERNELS, "attention")
        if self.attention == "splash" and not self.in_order:
            yield "attention", "must not be splash: that kernel is of models that read in order"
        yield from one_of(self, DTYPES, "dtype")
        if self.param_dtype != "float32":
            yield (
                "param_dtype",
                "must be float32: in bfloat16 an update below 1/256 of a weight is lost; "
                "model.dtype says what products are computed in",
            )
        yield from one_of(self, REMAT_POLICIES, "remat")
        if self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads:
            yield "num_heads", f"must be a multiple of num_kv_heads = {self.num_kv_heads}"
        if self.init_scale <= 0:
            yield "init_scale", "must be above 0"

    @property
    def in_order(self) -> bool:
        """Whether a row is read in its order: no token attends to a later one."""
        return False

    @property
    def causal(self) -> bool:
        """Whether no token's output depends on later tokens through the blocks themselves."""
        return self.in_order and self.depth.every == 0

    @property
    def rotary_theta(self) -> float | None:
        """Of rotary positions in attention; None: it knows no positions."""
        return None

    @property
    def row_sizes(self) -> RowSizes:
        """What a mixer knows of the model."""
        return RowSizes(
            model_dim=self.model_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            causal=self.in_order,
            rope_theta=self.rotary_theta,
            qk_norm=self.qk_norm,
            kernel=self.attention,
            init_scale=self.init_scale,
        )

    @property
    def keeps_cache(self) -> bool:
        """Whether it can go on behind a token without computing the row again, as generation
        does."""
        return self.mixer.cache(self.row_sizes, 1, 1, jnp.float32) is not None

    def sizes_of(self, stack: Stack) -> RowSizes:
        """What the mixers of a stack know of the model."""
        return replace(self.row_sizes, causal=stack.causal)

    def attention_cost(self, stack: Stack, S: int) -> Cost:
        """Of what the tokens of a row see of each other, and of a memory as long as the row."""
        cost = self.mixer.cost(self.sizes_of(stack), S)
        if not stack.crosses:
            return cost
        crossed = GroupedQuery().cost(self.row_sizes, S)
        return cost + crossed + Cost.of_vectors(self.model_dim)

    def attention_planned(self, stack: Stack, here: Here) -> Planned:
        planned = self.mixer.planned(self.sizes_of(stack), here)
        if not stack.crosses:
            return planned
        return planned + GroupedQuery().planned(replace(self.row_sizes, causal=False), here)

    def gated(self, moe: MoEConfig, io: IO) -> MoEConfig:
        """The sparse layers with the gates that the model has, where it has several."""
        return moe

    def gate_rules(self, moe: MoEConfig, io: IO) -> Iterator[Rule]:
        """What is wrong with the gates of the sparse layers: (path below `moe`, rule)."""
        if moe.every and moe.gates > 1:
            yield "gates", "must be 1: this model has one gate (model.kind = recommender: several)"
        if moe.every and moe.own_experts:
            yield "own_experts", "must be 0: this model has one gate"

    def gate_names(self, moe: MoEConfig, io: IO) -> tuple[str, ...]:
        """Of several gates, what each is for; () of one."""
        return ()

    def divisions(self, sizes: Mapping[str, int]) -> Iterator[Division]:
        """What a mesh of these sizes must divide, but for what its layers all have."""
        yield from self.mixer.divisions(self.row_sizes, sizes)

    def norms(self) -> int:
        """Parameters of the norms of all blocks, and of the last one."""
        return (2 * self.num_layers + 1) * self.model_dim

    def block_cost(self, stack: Stack, moe: MoEConfig, S: int, io: IO) -> Cost:
        """Of a block for rows of S tokens, without the norms that every block has."""
        mixer = self.attention_cost(stack, S)
        if stack.moe:
            return mixer + moe.cost(self.model_dim, self.activation, S)
        dense = feed_forward_params(self.model_dim, self.mlp_dim, self.activation, 1.0)
        return mixer + Cost.of_matrices(sizes_of(dense))

    def layout(self, moe: MoEConfig) -> Layout:
        """Which layers are sparse, and how they are stacked."""
        return layout_of(max(self.num_layers, 0), moe, self.depth, causal=self.in_order)

    def fits(self, io: IO) -> Iterator[Rule]:
        """What keeps it from taking and giving that: (field, rule)."""
        yield from ()

    def row_length(self, io: IO) -> int:
        """S, the tokens of a row as its layers see them."""
        raise NotImplementedError

    def grid(self, io: IO) -> tuple[int, int]:
        """Of a model of images, patches along height and width; they are its last tokens."""
        raise NotImplementedError

    def ends(self, io: IO) -> Ends:
        """What stands before and behind the layers, but for the last norm."""
        raise NotImplementedError

    def build(self, moe: MoEConfig, io: IO, mesh: Mesh, *, rngs: nnx.Rngs) -> Transformer:
        """The module: (inputs, context, router_state) -> Output."""
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Passed:
    """What layers report, by the stack that they are of: sparse layers, depths, new caches, and,
    where that is asked for, the tokens behind each layer."""

    reports: dict[str, LayerReport] = field(default_factory=dict)
    depths: dict[str, DepthReport] = field(default_factory=dict)
    caches: dict[str, PyTree[Array]] = field(default_factory=dict)
    hidden: dict[str, Float[Array, "*L B S D"]] = field(default_factory=dict)

    def and_of(self, other: Passed) -> Passed:
        return Passed(
            reports=self.reports | other.reports,
            depths=self.depths | other.depths,
            caches=self.caches | other.caches,
            hidden=self.hidden | other.hidden,
        )


def with_equal_rows(reports: dict[str, LayerReport]) -> dict[str, LayerReport]:
    """Routes of parts whose rows have not the same length, filled up with tokens that no expert
    takes."""
    routes = [report.routes for report in reports.values() if report.routes is not None]
    S = max((route.expert_BSK.shape[2] for route in routes), default=0)
    if all(route.expert_BSK.shape[2] == S for route in routes):
        return reports
    return {
        name: replace(report, routes=report.routes and report.routes.filled(S))
        for name, report in reports.items()
    }


class Transformer(nnx.Module):
    """The layers and the last norm; a subclass has what stands before and behind them.
    Parameters of a stack of layers are stacked on a leading axis."""

    def __init__(self, config: TransformerConfig, moe: MoEConfig, mesh: Mesh, *, rngs: nnx.Rngs):
        self.param_dtype, self.dtype = DTYPES[config.param_dtype], DTYPES[config.dtype]
        self.config, self.moe, self.mesh = config, moe, mesh
        stacked = config.layout(moe)
        self.layout = stacked.unrolled() if self._unrolls else stacked
        self.make_input(rngs)
        # Drawn by stacks in any case: how layers are run changes no number.
        layers: dict[int, tuple[nnx.Module, int]] = {}
        for stack in stacked.stacks:
            block = self._make_stack(stack, rngs)
            layers |= {layer: (block, row) for row, layer in enumerate(stack.layers)}
        self.layers = nnx.Dict(
            {stack.name: _rows(*layers[stack.first], stack.count) for stack in self.layout.stacks}
        )
        self.final_norm = RMSNorm(config.model_dim, rngs=rngs)

    def make_input(self, rngs: nnx.Rngs) -> None:
        """Creates the parameters before the layers, first of all: a model with and without experts
        so starts from the same ones."""
        raise NotImplementedError

    def _make_stack(self, stack: Stack, rngs: nnx.Rngs) -> nnx.Module:
        def make(key: Array) -> nnx.Module:
            return self.make_block(stack, nnx.Rngs(params=key))

        return nnx.vmap(make)(jax.random.split(rngs.params(), stack.count))

    def make_block(self, stack: Stack, rngs: nnx.Rngs) -> nnx.Module:
        """A block of a stack, called as `Block`."""
        config = self.config
        D = config.model_dim
        options = dict(activation=config.activation, init_scale=config.init_scale)

        def mixer(rngs: nnx.Rngs) -> nnx.Module:
            return config.mixer.make(config.sizes_of(stack), self.mesh, rngs)

        def cross(rngs: nnx.Rngs) -> CrossAttention:
            return CrossAttention(config.row_sizes, self.mesh, rngs)

        def feed_forward(rngs: nnx.Rngs) -> MLP | MoELayer:
            given: dict[str, Any] = dict(model_dim=D, rngs=rngs, **options)
            if stack.moe:
                return MoELayer(self.moe, mesh=self.mesh, **given)
            return MLP(hidden_dim=config.mlp_dim, **given)

        def depth(rngs: nnx.Rngs) -> DepthRouter:
            return config.depth.make(D, self.mesh, rngs)

        return Block(
            D,
            mixer=mixer,
            feed_forward=feed_forward,
            cross=cross if stack.crosses else None,
            depth=depth if stack.depth else None,
            rngs=rngs,
        )

    def router_state(self) -> dict[str, dict[str, Array]]:
        """The initial state of all routers, stacked like the layers; {} values for most."""
        state = self.moe.gating.state(self.moe.router.state(self.moe.num_experts))
        return {
            stack.name: jax.tree.map(lambda leaf, n=stack.count: jnp.stack([leaf] * n), state)
            for stack in self.layout.moe_stacks
        }

    def through_layers(
        self,
        x_BSD: Float[Array, "*K B S D"],
        batch: TokenBatch,
        context: Context,
        router_state: RouterStates,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "*K N S D"], Output]:
        """What the layers and the last norm make of the tokens, a row for each copy in an ensemble;
        and all of the output but its predictions. Of several gates x has an axis of them, and what
        is reported stands gate by gate where layers do."""
        x_BSD, passed = self.through_part(0, x_BSD, batch, context, router_state, cache)
        return self.final_norm(x_BSD), self.output_of([passed])

    def through_part(
        self,
        part: int,
        x_BSD: Float[Array, "*K B S D"],
        batch: TokenBatch,
        context: Context,
        router_state: RouterStates,
        cache: Cache | None = None,
        memory: Memory | None = None,
        every_layer: bool = False,
    ) -> tuple[Float[Array, "*K N S D"], Passed]:
        """The tokens behind the layers of one part of the layout, and what these report.
        every_layer: with the tokens behind each."""
        passed = Passed()
        x_BSD, ensemble = self.constrain(x_BSD), self.layout.ensemble
        entered = ensemble.members == 1
        for stacks in self.layout.parts[part].runs:
            if not entered and stacks and stacks[0].first >= self.layout.shared:
                x_BSD, batch = ensemble.enter(x_BSD, batch)
                x_BSD, entered = self.constrain(x_BSD), True
            if stacks:
                x_BSD, new = self._run(
                    stacks, x_BSD, batch, context, router_state, cache, memory, every_layer
                )
                passed = passed.and_of(new)
        return x_BSD, passed

    def output_of(self, parts: Sequence[Passed]) -> Output:
        """All of the output but its predictions, of what the parts of the layout report."""
        layout, all_parts = self.layout, Passed()
        for passed in parts:
            all_parts = all_parts.and_of(passed)
        reports = with_equal_rows(all_parts.reports)
        report = layout.in_layer_order(reports) if reports else None
        depths = all_parts.depths
        return Output(
            predictions=None,
            report=self.moe.gating.as_layers(layout.ensemble.joined_report(report)),
            depth=layout.in_layer_order(depths, layout.depth_stacks) if depths else None,
            cache=all_parts.caches or None,
        )

    def predicted(self, predictions: AnyPredictions, context: Context) -> AnyPredictions:
        """Of rows; of all copies where they are wanted one by one."""
        return predictions if context.per_member else self.layout.ensemble.joined(predictions)

    def constrain(self, x_BSD: Array) -> Array:
        axes = (*[None] * (x_BSD.ndim - 3), "batch", "position", "model")
        target = sharding(self.mesh, axes, x_BSD.shape, "activations")
        return jax.lax.with_sharding_constraint(x_BSD, target)

    def _run(
        self,
        stacks: tuple[Stack, ...],
        x_BSD: Array,
        batch: TokenBatch,
        context: Context,
        router_state: RouterStates,
        cache: Cache | None,
        memory: Memory | None,
        every_layer: bool,
    ) -> tuple[Array, Passed]:
        """Scans over the repeats of a pattern whose places are `stacks`."""
        split = {stack.name: nnx.split(self.layers[stack.name]) for stack in stacks}
        graphs = {name: graph for name, (graph, _) in split.items()}
        per_layer = {
            stack.name: {
                "params": split[stack.name][1],
                "number": jnp.asarray(stack.layers, jnp.int32),
                "state": dict(router_state.get(stack.name, {})),
                "cache": None if cache is None else cache[stack.name],
            }
            for stack in stacks
        }

        def body(x_BSD: Array, layers: dict[str, PyTree]) -> tuple[Array, Passed]:
            passed = Passed()
            for name, layer in layers.items():
                block = nnx.merge(graphs[name], layer["params"])
                own, number = layer["state"], layer["number"]
                x_BSD, report, new_cache = block(
                    x_BSD, batch, context, own, number, layer["cache"], memory
                )
                x_BSD = self.constrain(x_BSD)
                passed = passed.and_of(
                    Passed(
                        reports={name: report.moe} if report.moe is not None else {},
                        depths={name: report.depth} if report.depth is not None else {},
                        caches={name: new_cache} if new_cache is not None else {},
                        hidden={name: x_BSD} if every_layer else {},
                    )
                )
            return x_BSD, passed

        unroll = stacks[0].count == 1
        if self.config.remat != "none":
            policy = REMAT_POLICIES[self.config.remat]
            # Of a loop's two bodies none is taken for the other.
            body = jax.checkpoint(body, policy=policy, prevent_cse=unroll)
        return jax.lax.scan(body, x_BSD, per_layer, unroll=unroll)

    def block(self, stack: Stack, row: int) -> Any:
        """One layer of a stack, called as `Block`."""
        graph, state = nnx.split(self.layers[stack.name])
        return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[row], state))

    @property
    def _unrolls(self) -> bool:
        most = self.config.unrolled_layers
        if most is None:
            most = UNROLLED_ON_CPU if self.mesh.devices.flat[0].platform == "cpu" else 0
        return self.config.num_layers <= most


def _rows(block: nnx.Module, first: int, count: int) -> nnx.Module:
    """So many layers of a stack of them."""
    graph, state = nnx.split(block)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[first : first + count], state))
