"""The decoder: decoding equals the full forward pass, segments and causality, layouts, counts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.models import transformer
from moe_jax.models.counts import count
from moe_jax.models.decoder import Decoder, DecoderConfig
from moe_jax.models.generation import Generator, sample
from moe_jax.models.layout import layout_of
from moe_jax.models.network import Network
from moe_jax.models.types import IO
from moe_jax.nn.context import Context, TokenBatch, segment_positions
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing import GShard, Mixtral, NoisyTopK, TopK
from tests.drawn import some

V, S = 24, 12
SMALL = DecoderConfig(
    vocab_size=V, num_layers=3, model_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24
)
MOE = MoEConfig(num_experts=4, expert_dim=12, every=2, first=1)


def build(config=SMALL, moe=MOE):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    network = Network(lambda rngs: Decoder(config, moe, mesh, rngs=rngs), mesh)
    params = network.init(jax.random.key(0))
    return network, params, network.module(params).router_state()


def batch_of(tokens_BS, segments_BS=None):
    tokens_BS = jnp.asarray(tokens_BS, jnp.int32)
    segments = jnp.ones_like(tokens_BS) if segments_BS is None else jnp.asarray(segments_BS)
    return TokenBatch(
        token_BS=tokens_BS,
        position_BS=segment_positions(segments),
        segment_BS=segments,
        row_B=jnp.arange(tokens_BS.shape[0], dtype=jnp.int32),
    )


def logits_of(network, params, state, tokens, segments=None, **context):
    output = network.apply(params, batch_of(tokens, segments), Context(**context), state)
    return np.asarray(output.logits_BSV)


def random_tokens(B=1, seed=0):
    return np.random.default_rng(seed).integers(0, V, (B, S)).astype(np.int32)


@pytest.mark.parametrize(
    "config",
    some([SMALL, dataclasses.replace(SMALL, qk_norm=True, tie_embeddings=True)], [SMALL]),
    ids=["plain", "qk_norm, tied"],
)
def test_decoding_equals_the_full_forward_pass(config):
    network, params, state = build(config)
    tokens = random_tokens()[0]
    full = logits_of(network, params, state, tokens[None])[0]
    generator = Generator(
        network=network, params=params, router_state=state, usable_V=np.ones(V, bool)
    )
    for prefill in (1, 5):
        logits, cache, _ = generator.logits(tokens[:prefill].tolist(), S)
        np.testing.assert_allclose(logits[0], full[prefill - 1], rtol=1e-4, atol=1e-5)
        for place in range(prefill, S):
            token = jnp.asarray([[tokens[place]]])
            logits, cache, _ = generator._step(params, state, {}, cache, token, place)
            np.testing.assert_allclose(logits[0], full[place], rtol=1e-4, atol=1e-5)


def lowered(layers, unrolled=None):
    """The text of the gradient's program."""
    config = dataclasses.replace(SMALL, num_layers=layers, unrolled_layers=unrolled)
    network, params, state = build(config, dataclasses.replace(MOE, every=1, first=0))
    batch = batch_of(random_tokens())

    def total(params):
        return jnp.sum(network.apply(params, batch, Context(), state).logits_BSV)

    return jax.jit(jax.grad(total)).lower(params).as_text()


@pytest.mark.grid
def test_layers_one_by_one_and_as_a_loop(monkeypatch):
    """The same numbers; the loop's program does not grow with the layers."""
    tokens = random_tokens()
    one_by_one, loop = (
        logits_of(*build(dataclasses.replace(SMALL, unrolled_layers=most)), tokens)
        for most in (3, 2)
    )
    np.testing.assert_allclose(one_by_one, loop, rtol=1e-5, atol=1e-5)
    length = len(lowered(9))
    assert len(lowered(18)) < 1.02 * length
    monkeypatch.setattr(transformer, "UNROLLED_ON_CPU", 8)  # as users have it
    assert len(lowered(9, unrolled=9)) > 2 * length
    assert len(lowered(4)) == len(lowered(4, unrolled=8)) > 1.3 * len(lowered(4, unrolled=3))


@pytest.mark.grid
def test_segments_do_not_see_each_other():
    """Two documents packed into one row give what they give alone."""
    network, params, state = build()
    tokens = random_tokens()
    segments = np.array([[1] * 5 + [2] * 7], np.int32)
    packed = logits_of(network, params, state, tokens, segments)
    for part in (slice(0, 5), slice(5, 12)):
        alone = logits_of(network, params, state, tokens[:, part])
        np.testing.assert_allclose(packed[:, part], alone, rtol=1e-4, atol=1e-5)


def test_causality_and_the_leak_of_choice_major_capacity():
    """Later tokens change nothing earlier where routing is dropless; with first choices served
    before second ones, capacity lets them (perturbing shows it, a gradient would not)."""

    def leak(router, capacity_factor):
        moe = dataclasses.replace(
            MOE, every=1, first=0, router=router, capacity_factor=capacity_factor
        )
        network, params, state = build(moe=moe)
        # A router whose choices do depend on the token: larger than at the start.
        run = jax.jit(
            lambda tokens: (
                network.apply(
                    params, batch_of(tokens), Context(capacity_factor=capacity_factor), state
                ).logits_BSV
            )
        )
        first, worst = random_tokens(), 0.0
        for seed in range(1, 9):
            second = first.copy()
            second[0, -3:] = random_tokens(seed=seed)[0, -3:]
            worst = max(worst, float(jnp.abs(run(first) - run(second))[:, :-3].max()))
        return worst, moe.causal

    assert leak(Mixtral(k=2), None) == (0.0, True)
    assert leak(Mixtral(k=2), 0.75) == (0.0, True)
    worst, causal = leak(GShard(), 0.75)
    assert worst > 1e-3 and not causal


def test_bfloat16_compute_keeps_float32_parameters_and_routing():
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    network, params, state = build(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    # Tokens none of which is so near a tie that rounding changes its expert.
    tokens = random_tokens(seed=1)
    output = network.apply(params, batch_of(tokens), Context(capture=True), state)
    assert output.logits_BSV.dtype == jnp.float32
    assert output.report.routes.weight_BSK.dtype == jnp.float32
    exact = logits_of(*build(SMALL), tokens)
    rounded = np.asarray(output.logits_BSV)
    assert 0 < np.abs(rounded - exact).max() < 0.1


@pytest.mark.parametrize(
    ("layers", "every", "first", "sparse", "prologue"),
    [
        (4, 1, 0, (0, 1, 2, 3), 0),
        (4, 2, 1, (1, 3), 0),
        (5, 2, 1, (1, 3), 1),
        (5, 1, 1, (1, 2, 3, 4), 1),
        (6, 3, 0, (0, 3), 0),
        (7, 3, 2, (2, 5), 1),
        (6, 2, 3, (3, 5), 2),
        (3, 0, 0, (), 0),
    ],
)
def test_layout(layers, every, first, sparse, prologue):
    layout = layout_of(layers, MoEConfig(every=every, first=first))
    assert layout.moe_layers == sparse
    everything = sorted(layer for stack in layout.stacks for layer in stack.layers)
    assert everything == list(range(layers))
    assert len(layout.prologue) == prologue
    assert all(
        len(stack.layers) == (layers - prologue) // max(every, 1) for stack in layout.pattern
    )
    if sparse:
        by_stack = layout.by_stack(jnp.asarray(sparse))
        np.testing.assert_array_equal(layout.in_layer_order(by_stack), sparse)


@pytest.mark.parametrize(
    ("config", "moe"),
    [
        (SMALL, MOE),
        (dataclasses.replace(SMALL, tie_embeddings=True, activation="gelu"), MOE),
        (dataclasses.replace(SMALL, qk_norm=True), dataclasses.replace(MOE, num_shared=2)),
        (SMALL, dataclasses.replace(MOE, router=NoisyTopK(k=2), num_shared=1, shared_dim=7)),
        (dataclasses.replace(SMALL, num_layers=5), dataclasses.replace(MOE, every=3, first=1)),
        (SMALL, dataclasses.replace(MOE, every=0)),
    ],
)
def test_counts_of_real_parameters(config, moe):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    network = Network(lambda rngs: Decoder(config, moe, mesh, rngs=rngs), mesh)
    flat = jax.tree_util.tree_leaves_with_path(network.abstract)
    sizes = {jax.tree_util.keystr(path): leaf.size for path, leaf in flat}

    def size_of(*names):
        return sum(n for path, n in sizes.items() if any(f"['{name}']" in path for name in names))

    counts = count(config, moe, IO(length=S))
    assert counts.total == sum(sizes.values())
    assert counts.router == size_of("router")
    assert counts.embedding == size_of("embedding", "head")
    idle = 1 - moe.router.k / moe.num_experts
    assert counts.active == counts.total - round(idle * size_of("experts"))


def test_published_flops_and_sizes():
    """Mixtral 8x7B and 8x22B at S=4096 (82.93 and 250.67 GFLOP per token), OLMoE 6.9B / 1.3B."""
    small = DecoderConfig(
        vocab_size=32000,
        num_layers=32,
        model_dim=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
    )
    counts = count(small, MoEConfig(num_experts=8, expert_dim=14336), IO(length=4096))
    assert counts.matmul_flops / 1e9 == pytest.approx(76.49, abs=0.01)
    assert counts.attention_flops / 1e9 == pytest.approx(6.44, abs=0.01)
    assert counts.flops_per_token / 1e9 == pytest.approx(82.93, abs=0.01)
    assert counts.total / 1e9 == pytest.approx(46.7, abs=0.05)
    large = dataclasses.replace(
        small, vocab_size=32768, num_layers=56, model_dim=6144, num_heads=48
    )
    counts = count(large, MoEConfig(num_experts=8, expert_dim=16384), IO(length=4096))
    assert counts.flops_per_token / 1e9 == pytest.approx(250.67, abs=0.05)
    olmoe = dataclasses.replace(
        small,
        vocab_size=50304,
        num_layers=16,
        model_dim=2048,
        num_heads=16,
        num_kv_heads=16,
        qk_norm=True,
    )
    counts = count(
        olmoe, MoEConfig(num_experts=64, expert_dim=1024, router=TopK(k=8)), IO(length=4096)
    )
    assert counts.total / 1e9 == pytest.approx(6.92, abs=0.01)
    assert counts.active / 1e9 == pytest.approx(1.28, abs=0.01)


def test_sampling_from_the_nucleus():
    logits_V = jnp.log(jnp.asarray([0.05, 0.5, 0.15, 0.3]))
    keys = jax.random.split(jax.random.key(0), 3000)
    draw = jax.vmap(sample, in_axes=(None, 0, None, None))
    counts = np.bincount(np.asarray(draw(logits_V, keys, 1.0, 1.0)), minlength=4) / 3000
    np.testing.assert_allclose(counts, [0.05, 0.5, 0.15, 0.3], atol=0.04)
    counts = np.bincount(np.asarray(draw(logits_V, keys, 1.0, 0.75)), minlength=4) / 3000
    np.testing.assert_allclose(counts, [0, 0.625, 0, 0.375], atol=0.04)
    counts = np.bincount(np.asarray(draw(logits_V, keys, 0.5, 1.0)), minlength=4) / 3000
    squared = np.array([0.05, 0.5, 0.15, 0.3]) ** 2
    np.testing.assert_allclose(counts, squared / squared.sum(), atol=0.04)
    assert np.all(np.asarray(draw(logits_V, keys[:20], 0.0, 1.0)) == 1)
    assert np.all(np.asarray(draw(logits_V, keys[:20], 1.0, 1e-6)) == 1)
