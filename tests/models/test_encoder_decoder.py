"""The encoder-decoder: what sees what, decoding with a cache, layouts, counts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.models.counts import count
from moe_jax.models.encoder_decoder import EncoderDecoderConfig
from moe_jax.models.network import Network
from moe_jax.models.types import IO
from moe_jax.nn.context import Context, PairBatch, TokenBatch
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig, make_mesh

V, S = 24, 12
SMALL = EncoderDecoderConfig(
    vocab_size=V, num_layers=4, model_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24
)
MOE = MoEConfig(num_experts=4, expert_dim=12, every=2, first=1, capacity_factor=None)
PAIRS = IO(length=S, source=S)


def build(config=SMALL, moe=MOE):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    network = Network(lambda rngs: config.build(moe, PAIRS, mesh, rngs=rngs), mesh)
    params = network.init(jax.random.key(0))
    return network, params, network.module(params).router_state()


def text_of(tokens_BS, lengths):
    segment_BS = (np.arange(tokens_BS.shape[1]) < np.asarray(lengths)[:, None]).astype(np.int32)
    rows = jnp.arange(len(tokens_BS), dtype=jnp.int32)
    return TokenBatch.packed(jnp.asarray(tokens_BS), jnp.asarray(segment_BS), rows)


def some_pairs(lengths=((12, 4), (5, 12), (3, 7)), seed=0):
    rng = np.random.default_rng(seed)
    source_BS, target_BS = (
        rng.integers(0, V, (len(lengths), S)).astype(np.int32) for _ in range(2)
    )
    sources, targets = zip(*lengths, strict=True)
    return PairBatch(source=text_of(source_BS, sources), target=text_of(target_BS, targets))


def changed(text, row, place):
    token_BS = text.token_BS.at[row, place].set((text.token_BS[row, place] + 1) % V)
    return dataclasses.replace(text, token_BS=token_BS)


@pytest.mark.parametrize("unrolled_layers", [8, 0])
def test_what_sees_what(unrolled_layers):
    """The encoder sees all of a source, the decoder what is earlier and the source; neither sees
    padding or another row."""
    network, params, state = build(dataclasses.replace(SMALL, unrolled_layers=unrolled_layers))
    pairs = some_pairs()

    @jax.jit
    def logits_of(pairs):
        output = network.apply(params, pairs, Context(whole_rows=True), state)
        return output.logits_BSV

    before = np.asarray(logits_of(pairs))

    def moved(source=None, target=None):
        found = dataclasses.replace(
            pairs,
            source=changed(pairs.source, *source) if source else pairs.source,
            target=changed(pairs.target, *target) if target else pairs.target,
        )
        return np.any(np.asarray(logits_of(found)) != before, axis=-1)

    late = moved(source=(1, 4))
    assert late[1].all() and not late[[0, 2]].any()
    assert not moved(source=(1, 5)).any(), "padding of the source is seen"

    @jax.jit
    def memory_of(source):
        memory, _ = network.module(params).encode(source, Context(whole_rows=True), state)
        return memory.hidden_BPD

    gap = np.abs(np.asarray(memory_of(changed(pairs.source, 1, 4)) - memory_of(pairs.source)))
    assert (gap[1, :5].max(axis=-1) > 0).all(), "the encoder reads in order"
    place = moved(target=(1, 6))
    assert place[1, 6:].all() and not place[1, :6].any() and not place[[0, 2]].any()


@pytest.mark.parametrize("unrolled_layers", [8, 0])
def test_decoding_with_a_cache_is_the_whole_forward_pass(unrolled_layers):
    network, params, state = build(dataclasses.replace(SMALL, unrolled_layers=unrolled_layers))
    pairs, context, copies = some_pairs(), Context(whole_rows=True), 2
    whole = jax.jit(lambda: network.apply(params, pairs, context, state).logits_BSV)()
    module = network.module(params)

    @jax.jit
    def start():
        memory, _ = module.encode(pairs.source, context, state)
        return module.make_memory_cache(memory, S, copies)

    @jax.jit
    def step(cache, token_B1, place):
        rows = token_B1.shape[0]
        text = TokenBatch(
            token_BS=token_B1,
            position_BS=jnp.full((rows, 1), place, jnp.int32),
            segment_BS=jnp.ones((rows, 1), jnp.int32),
            row_B=jnp.arange(rows, dtype=jnp.int32),
        )
        output = module.decode(text, context, state, cache=cache)
        return output.logits_BSV[:, 0], output.cache

    cache = start()
    for place in range(S):
        token_B1 = jnp.repeat(pairs.target.token_BS[:, place : place + 1], copies, axis=0)
        logits, cache = step(cache, token_B1, place)
        real = np.asarray(pairs.target.segment_BS[:, place]) > 0
        right = np.repeat(np.asarray(whole)[:, place], copies, axis=0)
        there = np.repeat(real, copies)
        np.testing.assert_allclose(np.asarray(logits)[there], right[there], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unrolled_layers", [8, 0])
def test_routes_and_sums_of_both_halves(unrolled_layers):
    """Sparse layers of the encoder come first; each counts the tokens of its own texts."""
    network, params, state = build(dataclasses.replace(SMALL, unrolled_layers=unrolled_layers))
    pairs = some_pairs()
    layout = network.abstract_module.layout
    assert layout.moe_layers == (1, 3)
    assert layout.part_of_moe_layers == (0, 1)
    assert [part.name for part in layout.parts] == ["encoder", "decoder"]
    context = Context(whole_rows=True, capture=True)
    report = jax.jit(lambda: network.apply(params, pairs, context, state).report)()
    k = MOE.router.choices(4)
    tokens = [int(text.segment_BS.sum()) for text in (pairs.source, pairs.target)]
    assert np.asarray(report.traffic.wanted_K).sum(axis=(1, 2)).tolist() == [k * n for n in tokens]
    for layer, text in enumerate((pairs.source, pairs.target)):
        used = np.asarray(report.routes.expert_BSK[layer]) != report.routes.unused
        assert np.array_equal(used.any(axis=-1), np.asarray(text.segment_BS) > 0)


@pytest.mark.parametrize("moe", [MOE, dataclasses.replace(MOE, every=0)])
@pytest.mark.parametrize("changes", [{}, {"encoder_layers": 1}, {"tie_embeddings": True}])
def test_counts_are_those_of_the_parameters(moe, changes):
    config = dataclasses.replace(SMALL, qk_norm=True, **changes)
    _, params, _ = build(config, moe)
    there = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count(config, moe, PAIRS).total == there


def test_rules():
    def rules(**changes):
        return [name for name, _ in dataclasses.replace(SMALL, **changes).check()]

    assert not rules()
    assert rules(num_layers=1) == ["num_layers"]
    assert rules(encoder_layers=4) == ["encoder_layers"]
    assert [name for name, _ in SMALL.fits(IO(length=S))] == ["kind"]
    assert [name for name, _ in SMALL.fits(IO(length=S, source=S + 1))] == ["kind"]
    assert not list(SMALL.fits(PAIRS))
