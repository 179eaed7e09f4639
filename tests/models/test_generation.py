"""Sampling against numpy, and what a generator yields."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.models.decoder import Decoder, DecoderConfig
from moe_jax.models.generation import Generator, sample
from moe_jax.models.network import Network
from moe_jax.nn.context import Context, TokenBatch
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig, make_mesh

V = 12
MOE = MoEConfig(num_experts=4, expert_dim=8, group_size=4, every=2, first=1)
PROMPT = [3, 1, 4, 1, 5]


def nucleus(logits_V, temperature, top_p):
    """The smallest set of best tokens whose probability reaches top_p, in float64."""
    scaled = logits_V.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p)
    size = int(np.searchsorted(np.cumsum(p[order]), top_p - 1e-6)) + 1
    return set(order[:size].tolist())


def test_samples_fill_the_nucleus_and_nothing_else():
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(sample, in_axes=(None, 0, None, None)))
    for seed, (temperature, top_p) in enumerate([(1.0, 0.9), (2.0, 0.5), (0.7, 0.3), (1.5, 1.0)]):
        logits_V = np.random.default_rng(seed).normal(size=V).astype(np.float32)
        drawn = np.asarray(draw(jnp.asarray(logits_V), keys, temperature, top_p))
        assert set(drawn.tolist()) == nucleus(logits_V, temperature, top_p)
        greedy = np.asarray(draw(jnp.asarray(logits_V), keys[:50], 0.0, top_p))
        assert set(greedy.tolist()) == {int(np.argmax(logits_V))}


@pytest.fixture(scope="module")
def make():
    config = DecoderConfig(
        vocab_size=V, num_layers=2, model_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    network = Network(lambda rngs: Decoder(config, MOE, mesh, rngs=rngs), mesh)
    params = network.init(jax.random.key(0))
    state = network.module(params).router_state()

    def generator(usable=None, capture=False):
        usable_V = np.ones(V, bool) if usable is None else np.isin(np.arange(V), usable)
        return Generator(
            network=network,
            params=params,
            router_state=state,
            usable_V=usable_V,
            capture=capture,
        )

    return generator


def ids(tokens):
    return [token.id for token in tokens]


def test_generated_tokens(make):
    """The prompt first; the same seed gives the same text; only usable ids; ends before stop."""
    generator = make()
    text = ids(generator(PROMPT, 12, seed=1))
    assert text[: len(PROMPT)] == PROMPT and len(text) == len(PROMPT) + 12
    assert ids(generator(PROMPT, 12, seed=1)) == text
    assert ids(generator(PROMPT, 12, seed=2)) != text
    stop = text[len(PROMPT) + 3]
    cut = text.index(stop, len(PROMPT))
    assert ids(generator(PROMPT, 12, seed=1, stop=stop)) == text[:cut]
    few = ids(make(usable=(2, 7))(PROMPT, 12, temperature=5.0))[len(PROMPT) :]
    assert set(few) == {2, 7}
    assert ids(generator(PROMPT, 0)) == PROMPT


def test_greedy_text_is_the_argmax_of_the_full_forward_pass(make):
    generator = make(capture=True)
    tokens = list(generator(PROMPT, 5, temperature=0.0))
    text = ids(tokens)
    whole_BS = jnp.asarray([text], jnp.int32)
    batch = TokenBatch(
        token_BS=whole_BS,
        position_BS=jnp.arange(len(text), dtype=jnp.int32)[None],
        segment_BS=jnp.ones_like(whole_BS),
        row_B=jnp.zeros((1,), jnp.int32),
    )
    context = Context(whole_rows=True, capture=True)
    network, params, state = generator.network, generator.params, generator.router_state
    output = jax.jit(network.apply)(params, batch, context, state)
    best_S = np.argmax(output.logits_BSV[0], axis=-1)
    assert best_S[len(PROMPT) - 1 : -1].tolist() == text[len(PROMPT) :]
    routes = output.report.routes
    for place, token in enumerate(tokens):
        np.testing.assert_array_equal(token.expert_LK, routes.expert_BSK[:, 0, place])
        np.testing.assert_allclose(token.weight_LK, routes.weight_BSK[:, 0, place], rtol=1e-4)
        assert token.expert_LK.shape == (1, 2)
