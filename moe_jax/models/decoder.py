"""The decoder language model: embedding, a prologue and a repeated pattern of blocks, head."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule, at_least, one_of
from moe_jax.nn.attention import KERNELS, KeyValueCache
from moe_jax.nn.block import Block
from moe_jax.nn.context import Context, DepthReport, LayerReport, TokenBatch
from moe_jax.nn.depth import MixtureOfDepths
from moe_jax.nn.ensemble import copies, join_members, mean_prediction, repeat_rows
from moe_jax.nn.mlp import MLP
from moe_jax.nn.moe_layer import MoEConfig, MoELayer
from moe_jax.nn.norm import RMSNorm
from moe_jax.nn.param import fan_in, parameter
from moe_jax.nn.predictions import GivenLogits, Predictions, chunks_of
from moe_jax.ops.embedding import rows_of_table
from moe_jax.ops.expert_ffn import ACTIVATIONS
from moe_jax.parallel.rules import RULES, mesh_size, sharding

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

UNROLLED_ON_CPU = 8

# What the backward pass keeps instead of computing again.
REMAT_POLICIES: dict[str, Any] = {
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
class DecoderConfig:
    """Dimensions and numerics of the decoder.

    vocab_size may exceed the tokenizer's (a multiple of 8 shards better); 0: what the tokenizer
    needs, in whole eights, and 264 where that is less. mlp_dim is the hidden
    width of the dense layers. attention: the kernel, see nn/attention.py. depth: layers in which
    only some tokens take part. logits_chunks: parts of the vocabulary that the loss takes one after
    the other, dividing vocab_size (on a mesh, a device's part of it); None: as many as keep a
    device's float32 logits within 256 MiB; the numbers differ by rounding. unrolled_layers: up to
    so many layers are compiled one by one, more of them as a loop, whose time to compile does not
    grow with them; None: 8 on CPU, where the loop makes a step a fifth longer (it copies what the
    backward pass keeps), 0 elsewhere. init_scale: variance * fan_in of every matrix but the
    router's (Switch: 0.1). Products are computed in dtype; parameters (param_dtype has no
    other value), their gradients' sums, norms, router, softmax and losses are float32 always.
    """

    vocab_size: int = 0
    num_layers: int = 4
    model_dim: int = 128
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 32
    mlp_dim: int = 512
    activation: str = "swiglu"
    qk_norm: bool = False
    rope_theta: float = 10000.0
    attention: str = "auto"
    tie_embeddings: bool = False
    logits_chunks: int | None = None
    unrolled_layers: int | None = None
    init_scale: float = 1.0
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    depth: MixtureOfDepths = field(default_factory=MixtureOfDepths)

    def check(self) -> Iterator[Rule]:
        sizes = ("num_layers", "model_dim", "num_heads", "num_kv_heads")
        yield from at_least(self, 1, *sizes, "head_dim", "mlp_dim", "logits_chunks")
        yield from at_least(self, 0, "vocab_size", "unrolled_layers")
        if self.logits_chunks and self.vocab_size % self.logits_chunks:
            yield "logits_chunks", f"must divide vocab_size = {self.vocab_size}"
        yield from one_of(self, ACTIVATIONS, "activation")
        yield from one_of(self, KERNELS, "attention")
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
        if self.head_dim % 2:
            yield "head_dim", "must be even (rotary positions turn pairs)"
        if self.rope_theta <= 0:
            yield "rope_theta", "must be above 0"
        if self.init_scale <= 0:
            yield "init_scale", "must be above 0"

    @property
    def causal(self) -> bool:
        """Whether no token's output depends on later tokens through the blocks themselves."""
        return self.depth.every == 0


def is_moe_layer(moe: MoEConfig, layer: int) -> bool:
    """Whether layer number `layer` (from 0) is sparse."""
    return moe.every > 0 and layer >= moe.first and (layer - moe.first) % moe.every == 0


@dataclass(frozen=True)
class Stack:
    """Layers first, first + step, ...: `count` layers of one kind that scan treats as one.

    moe: a sparse layer. depth: only some tokens take part.
    """

    first: int
    step: int
    count: int
    moe: bool
    depth: bool = False

    @property
    def name(self) -> str:
        """The stack's key in parameters and router state: its first layer's number."""
        return f"{self.first:02d}"

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.first + self.step * i for i in range(self.count))


@dataclass(frozen=True)
class Layout:
    """A prologue, then `repeats` x a pattern of blocks; one stack per place in the pattern."""

    prologue: tuple[Stack, ...]
    pattern: tuple[Stack, ...]

    @property
    def stacks(self) -> tuple[Stack, ...]:
        return self.prologue + self.pattern

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The numbers of the sparse layers, in the order in which reports are stacked."""
        return tuple(sorted(layer for stack in self.moe_stacks for layer in stack.layers))

    @property
    def moe_stacks(self) -> tuple[Stack, ...]:
        return tuple(stack for stack in self.stacks if stack.moe)

    @property
    def before_sparse(self) -> tuple[Stack, ...]:
        """The stacks before the first part, of the prologue or the pattern, with a sparse one: an
        ensemble shares them."""
        return tuple(itertools.takewhile(lambda stack: not stack.moe, self.prologue))

    @property
    def depth_stacks(self) -> tuple[Stack, ...]:
        return tuple(stack for stack in self.stacks if stack.depth)

    @property
    def depth_layers(self) -> tuple[int, ...]:
        """The numbers of the layers with a router of depths, in the order of their reports."""
        return tuple(sorted(layer for stack in self.depth_stacks for layer in stack.layers))

    def in_layer_order(
        self, by_stack: Mapping[str, Any], stacks: tuple[Stack, ...] | None = None
    ) -> Any:
        """Trees of the stacks (None: the sparse ones), leaves (count, ...), as one with leaves
        (L, ...)."""
        stacks = self.moe_stacks if stacks is None else stacks
        numbers = [layer for stack in stacks for layer in stack.layers]
        order = jnp.asarray([numbers.index(layer) for layer in sorted(numbers)], jnp.int32)
        return jax.tree.map(
            lambda *leaves: jnp.concatenate(leaves, axis=0)[order],
            *[by_stack[stack.name] for stack in stacks],
        )

    def by_stack(self, tree: Any) -> dict[str, Any]:
        """The inverse of `in_layer_order`."""
        rows = {layer: row for row, layer in enumerate(self.moe_layers)}
        parts = {}
        for stack in self.moe_stacks:
            index = jnp.asarray([rows[layer] for layer in stack.layers], jnp.int32)
            parts[stack.name] = jax.tree.map(lambda leaf, index=index: leaf[index], tree)
        return parts


ALL_TOKENS = MixtureOfDepths()


def layout_of(num_layers: int, moe: MoEConfig, depth: MixtureOfDepths = ALL_TOKENS) -> Layout:
    """Cuts the layers into a prologue and a repeated pattern, as long as the least common multiple
    of moe.every and depth.every.

    The prologue is what does not fit: layers well before moe.first or depth.first, and the
    remainder.
    """
    period = math.lcm(moe.every or 1, depth.every or 1)
    # Layers before the first of a kind belong to the pattern as far as it reaches back.
    start = max([0] + [kind.first - kind.every + 1 for kind in (moe, depth) if kind.every])
    start += (num_layers - start) % period if start < num_layers else 0
    start = min(start, num_layers)

    def stack(first: int, step: int, count: int) -> Stack:
        return Stack(first, step, count, is_moe_layer(moe, first), depth.chooses_in(first))

    repeats = (num_layers - start) // period
    places = range(start, start + period if repeats else start)
    return Layout(
        prologue=tuple(stack(layer, 1, 1) for layer in range(start)),
        pattern=tuple(stack(at, period, repeats) for at in places),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DecoderOutput:
    """report: leaves (L, G, ...) over the sparse layers; None in a dense model. depth: leaves
    (L, B) over the layers in which some tokens take part; None without any."""

    predictions: Predictions | GivenLogits
    report: LayerReport | None
    depth: DepthReport | None
    cache: dict[str, KeyValueCache] | None

    @property
    def logits_BSV(self) -> Float[Array, "B S V"]:
        """All logits, float32."""
        return self.predictions.logits_BSV


class Decoder(nnx.Module):
    """token ids -> logits. Parameters of a stack of layers are stacked on a leading axis."""

    def __init__(self, config: DecoderConfig, moe: MoEConfig, mesh: Mesh, *, rngs: nnx.Rngs):
        D, V = config.model_dim, config.vocab_size
        self.param_dtype, self.dtype = DTYPES[config.param_dtype], DTYPES[config.dtype]
        self.config, self.moe, self.mesh = config, moe, mesh
        self.layout = layout_of(config.num_layers, moe, config.depth)
        # Unit-variance logits at the start: rows of the embedding have norm 1 (variance 1 / D).
        init = jax.nn.initializers.normal(D**-0.5)
        weights = partial(parameter, rngs, dtype=self.param_dtype, matrix=((0,), (1,)), decays=True)
        self.embedding = weights(init, (V, D), ("vocab", "embed"))
        self.layers = nnx.Dict(
            {stack.name: self._make_stack(stack, rngs) for stack in self.layout.stacks}
        )
        self.final_norm = RMSNorm(D, rngs=rngs)
        self.head = (
            None
            if config.tie_embeddings
            else weights(fan_in(config.init_scale), (D, V), ("embed", "vocab"))
        )

    def _make_stack(self, stack: Stack, rngs: nnx.Rngs) -> Block:
        config = self.config
        numerics: dict[str, Any] = dict(init_scale=config.init_scale, param_dtype=self.param_dtype)
        attention = dict(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rope_theta=config.rope_theta,
            qk_norm=config.qk_norm,
            mesh=self.mesh,
            kernel=config.attention,
            **numerics,
        )
        options: dict[str, Any] = dict(activation=config.activation, **numerics)
        if stack.moe:
            options |= dict(config=self.moe, mesh=self.mesh)
        else:
            options |= dict(hidden_dim=config.mlp_dim)

        def make(key: Array) -> Block:
            return Block(
                model_dim=config.model_dim,
                attention=attention,
                feed_forward=MoELayer if stack.moe else MLP,
                feed_forward_options=options,
                depth=config.depth if stack.depth else None,
                mesh=self.mesh,
                rngs=nnx.Rngs(params=key),
            )

        return nnx.vmap(make)(jax.random.split(rngs.params(), stack.count))

    def router_state(self) -> dict[str, dict[str, Array]]:
        """The initial state of all routers, stacked like the layers; {} values for most."""
        state = self.moe.router.state(self.moe.num_experts)
        return {
            stack.name: jax.tree.map(lambda leaf, n=stack.count: jnp.stack([leaf] * n), state)
            for stack in self.layout.moe_stacks
        }

    def make_cache(self, B: int, P: int) -> dict[str, KeyValueCache]:
        """An empty cache for B rows of up to P positions."""
        config, members = self.config, self.moe.ensemble if self.layout.moe_layers else 1
        caches = {}
        for stack in self.layout.stacks:
            rows = B if stack in self.layout.before_sparse else B * members
            shape = (stack.count, rows, P, config.num_kv_heads, config.head_dim)
            caches[stack.name] = KeyValueCache(
                key_BPMH=jnp.zeros(shape, self.dtype),
                value_BPMH=jnp.zeros(shape, self.dtype),
                length=jnp.zeros((stack.count,), jnp.int32),
            )
        return caches

    def __call__(
        self,
        batch: TokenBatch,
        context: Context,
        router_state: Mapping[str, Mapping[str, Array]],
        cache: Mapping[str, KeyValueCache] | None = None,
    ) -> DecoderOutput:
        x_BSD = rows_of_table(self._embedding_table(), jnp.asarray(batch.token_BS), self.dtype)
        # Embedding rows have norm 1; the blocks expect elements of variance 1.
        x_BSD = self._constrain(x_BSD * jnp.asarray(self.config.model_dim**0.5, self.dtype))
        reports: dict[str, LayerReport] = {}
        depths: dict[str, DepthReport] = {}
        caches: dict[str, KeyValueCache] = {}
        members = 1
        for stacks in [(stack,) for stack in self.layout.prologue] + [self.layout.pattern]:
            if members < self.moe.ensemble and any(stack.moe for stack in stacks):
                members = self.moe.ensemble
                x_BSD, batch = self._constrain(repeat_rows(x_BSD, members)), copies(batch, members)
            x_BSD, (new_reports, new_depths, new_caches) = self._run(
                stacks, x_BSD, batch, context, router_state, cache
            )
            reports |= new_reports
            depths |= new_depths
            caches |= new_caches
        x_BSD = self.final_norm(x_BSD)
        predictions: Predictions | GivenLogits = self._predictions(x_BSD)
        report = self.layout.in_layer_order(reports) if reports else None
        if members > 1:
            if not context.apart:
                mean_BSV = mean_prediction(predictions.logits_BSV, members)
                predictions = GivenLogits(logits_BSV=mean_BSV)
            report = join_members(report, members)
        return DecoderOutput(
            predictions=predictions,
            report=report,
            depth=self.layout.in_layer_order(depths, self.layout.depth_stacks) if depths else None,
            cache=caches if cache is not None else None,
        )

    def _predictions(self, x_BSD: Array) -> Predictions:
        head_DV = self.embedding[...].T if self.head is None else self.head[...]
        (B, S, _), V = x_BSD.shape, head_DV.shape[1]
        shards = mesh_size(self.mesh, RULES["vocab"])
        rows = mesh_size(self.mesh, RULES["batch"]) * mesh_size(self.mesh, RULES["position"])
        return Predictions(
            hidden_BSD=x_BSD,
            head_DV=head_DV,
            chunks=chunks_of(V, -(-B * S // rows), shards, self.config.logits_chunks),
            shards=shards,
        )

    def _embedding_table(self) -> Array:
        """The embedding, whole along D: where `fsdp` splits the table as well as the rows of the
        batch, XLA would gather the whole vocabulary on every device to look them up."""
        table_VD = self.embedding[...]
        target = sharding(self.mesh, ("vocab", "model"), table_VD.shape, "embedding")
        return jax.lax.with_sharding_constraint(table_VD, target)

    def _constrain(self, x_BSD: Array) -> Array:
        target = sharding(self.mesh, ("batch", "position", "model"), x_BSD.shape, "activations")
        return jax.lax.with_sharding_constraint(x_BSD, target)

    def _run(
        self,
        stacks: tuple[Stack, ...],
        x_BSD: Array,
        batch: TokenBatch,
        context: Context,
        router_state: Mapping[str, Mapping[str, Array]],
        cache: Mapping[str, KeyValueCache] | None,
    ) -> tuple[Array, tuple[dict[str, LayerReport], dict[str, DepthReport], dict[str, Any]]]:
        """Scans over the repeats of a pattern whose places are `stacks`: the activations, and by
        stack what was reported of sparse layers, of depths, and the caches."""
        if not stacks:
            return x_BSD, ({}, {}, {})
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

        def body(x_BSD: Array, layers: dict[str, Any]) -> tuple[Array, Any]:
            reports: dict[str, LayerReport] = {}
            depths: dict[str, DepthReport] = {}
            caches: dict[str, KeyValueCache] = {}
            for name, layer in layers.items():
                block = nnx.merge(graphs[name], layer["params"])
                x_BSD, report, new_cache = block(
                    x_BSD, batch, context, layer["state"], layer["number"], layer["cache"]
                )
                x_BSD = self._constrain(x_BSD)
                reports |= {name: report.moe} if report.moe is not None else {}
                depths |= {name: report.depth} if report.depth is not None else {}
                caches |= {name: new_cache} if new_cache is not None else {}
            return x_BSD, (reports, depths, caches)

        unroll = self.config.num_layers <= self._most_unrolled
        if self.config.remat != "none":
            policy = REMAT_POLICIES[self.config.remat]
            # Of a loop's two bodies none is taken for the other.
            body = jax.checkpoint(body, policy=policy, prevent_cse=unroll)
        return jax.lax.scan(body, x_BSD, per_layer, unroll=unroll)

    @property
    def _most_unrolled(self) -> int:
        if self.config.unrolled_layers is not None:
            return self.config.unrolled_layers
        return UNROLLED_ON_CPU if self.mesh.devices.flat[0].platform == "cpu" else 0
