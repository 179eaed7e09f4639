"""Whole models of Hugging Face: logits, routes, losses, every gradient, greedy generation.

Mixtral (k of E, untied head), Qwen3-MoE (QK-norm per head; dense and sparse layers in turn; a
tied head), OLMoE with one head: its QK-norm runs over all heads together and ours over each, so
models with more heads are not comparable.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from moe_jax.models.decoder import DecoderConfig
from moe_jax.models.generation import Generator
from moe_jax.nn.context import Context, TokenBatch
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.routing import Mixtral, TopK
from moe_jax.tasks.language_model import NextToken
from tests.oracles.hugging_face import (
    OURS,
    SHARED,
    D,
    E,
    F,
    K,
    L,
    V,
    assert_close,
    assert_trees_close,
    make_twins,
    rows,
    to_torch,
)

S = 17


def mixtral():
    theirs = MixtralForCausalLM(
        MixtralConfig(**SHARED, intermediate_size=F, num_local_experts=E, tie_word_embeddings=False)
    )
    moe = MoEConfig(num_experts=E, expert_dim=F, router=Mixtral(k=K))
    return make_twins(theirs, DecoderConfig(**OURS), moe)


def qwen3(**theirs):
    options = SHARED | dict(moe_intermediate_size=F, intermediate_size=40, num_experts=E)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**(options | theirs)))


def qwen3_alternating():
    """Layers 1 and 3 sparse, 0 and 2 dense; another rotation; weights renormalised."""
    theirs = qwen3(
        num_hidden_layers=4,
        decoder_sparse_step=2,
        norm_topk_prob=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    config = DecoderConfig(**(OURS | dict(num_layers=4, qk_norm=True, rope_theta=500.0)))
    router = TopK(k=K, renormalize=True)
    moe = MoEConfig(num_experts=E, expert_dim=F, router=router, every=2, first=1)
    return make_twins(theirs, config, moe)


def qwen3_tied():
    """A tied head; weights not renormalised; layer 0 dense."""
    theirs = qwen3(mlp_only_layers=[0], norm_topk_prob=False, tie_word_embeddings=True)
    config = DecoderConfig(**OURS, qk_norm=True, tie_embeddings=True)
    moe = MoEConfig(num_experts=E, expert_dim=F, router=TopK(k=K), first=1)
    return make_twins(theirs, config, moe)


def olmoe_one_head():
    sizes = dict(num_attention_heads=1, num_key_value_heads=1, head_dim=D, num_experts_per_tok=3)
    theirs = OlmoeForCausalLM(
        OlmoeConfig(
            **(SHARED | sizes),
            intermediate_size=F,
            num_experts=E,
            norm_topk_prob=False,
            tie_word_embeddings=False,
        )
    )
    ours = OURS | dict(num_heads=1, num_kv_heads=1, head_dim=D)
    moe = MoEConfig(num_experts=E, expert_dim=F, router=TopK(k=3))
    return make_twins(theirs, DecoderConfig(**ours, qk_norm=True), moe)


@pytest.fixture(
    scope="module",
    params=[mixtral, qwen3_alternating, qwen3_tied, olmoe_one_head],
    ids=lambda make: make.__name__,
)
def twins(request):
    return request.param()


def test_logits_routes_loss_and_every_gradient(twins):
    """On padded rows: the padding has an attention mask there, segment 0 here."""
    raw = rows([S + 1, 11, 14], S)
    ids = to_torch(raw["tokens"], torch.int64)
    text_BS = np.asarray(raw["segments"]) > 0
    twins.theirs.zero_grad()
    output = twins.theirs(
        input_ids=ids[:, :-1],
        attention_mask=to_torch(text_BS[:, :-1], torch.int64),
        output_router_logits=True,
    )
    labels = ids[:, 1:].masked_fill(~torch.tensor(text_BS[:, 1:]), -100)
    expected = torch.nn.functional.cross_entropy(output.logits.reshape(-1, V), labels.reshape(-1))
    expected.backward()

    task = NextToken(np.ones(V))

    def loss(params):
        found = twins.network.apply(
            params, task.inputs(raw), Context(capture=True), twins.router_state
        )
        sums = task.sums(found.predictions, raw)
        return sums["nats"] / sums["tokens"], (found.logits_BSV, found.report)

    (value, (logits_BSV, report)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        twins.params
    )
    here_BS = text_BS[:, :-1]
    assert_close(np.asarray(logits_BSV)[here_BS], output.logits.detach().numpy()[here_BS], 1e-5)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    assert_trees_close(grads, twins.gradients, 1e-5)

    # The routes of our capture, sparse layer by sparse layer.
    k = twins.moe.router.k
    assert len(report.routes.expert_BSK) == len(output.router_logits)
    for layer, their_logits in enumerate(output.router_logits):
        prob_BSE = torch.softmax(their_logits.detach(), -1).reshape(*here_BS.shape, E)
        expert_BSK = torch.topk(prob_BSE, k)[1].numpy()
        np.testing.assert_array_equal(
            np.asarray(report.routes.expert_BSK)[layer][here_BS], expert_BSK[here_BS]
        )
        assert_close(
            np.asarray(report.routes.prob_BSE)[layer][here_BS], prob_BSE.numpy()[here_BS], 1e-5
        )


def test_packed_documents_are_read_as_if_alone(twins):
    lengths = (6, 1, 10)
    token_S = np.asarray(rows([S], S)["tokens"])[0, :S]
    batch = TokenBatch(
        token_BS=jnp.asarray(token_S)[None],
        position_BS=jnp.asarray(np.concatenate([np.arange(n) for n in lengths]), jnp.int32)[None],
        segment_BS=jnp.asarray(np.repeat([1, 2, 3], lengths), jnp.int32)[None],
        row_B=jnp.zeros(1, jnp.int32),
    )
    found = jax.jit(lambda p: twins.network.apply(p, batch, Context(), twins.router_state))(
        twins.params
    )
    start = 0
    for n in lengths:
        alone = to_torch(token_S[None, start : start + n], torch.int64)
        expected = twins.theirs(input_ids=alone).logits[0].detach().numpy()
        assert_close(found.logits_BSV[0, start : start + n], expected, 1e-5, f"from {start}")
        start += n


@pytest.mark.parametrize("length", [1, 7])
def test_greedy_generation(twins, length):
    prompt = np.asarray(rows([length], 15, seed=length)["tokens"])[0, :length]
    options = dict(max_new_tokens=16, do_sample=False, pad_token_id=0)
    inputs = dict(
        input_ids=to_torch(prompt[None], torch.int64),
        attention_mask=torch.ones(1, length, dtype=torch.int64),
    )
    expected = twins.theirs.generate(**inputs, **options)[0].tolist()
    generator = Generator(
        network=twins.network,
        params=twins.params,
        router_state=twins.router_state,
        usable_V=np.ones(V, bool),
    )
    found = [token.id for token in generator(prompt.tolist(), 16, temperature=0.0)]
    assert found == expected

    # Theirs keeps the stop token, ours ends before it.
    stop = expected[-4]
    stopped = twins.theirs.generate(**inputs, **options, eos_token_id=stop)[0].tolist()
    assert stopped[-1] == stop
    short = generator(prompt.tolist(), 16, temperature=0.0, stop=stop)
    assert [token.id for token in short] == stopped[:-1]


def test_the_twins_differ_where_they_should():
    """The comparison can fail: one weight moved by a hundredth is seen."""
    twins = mixtral()
    raw = rows([S + 1], S)
    task = NextToken(np.ones(V))
    expected = twins.theirs(input_ids=to_torch(raw["tokens"], torch.int64)[:, :-1]).logits
    params = twins.params
    router = params["layers"][f"{L - 1:02d}"]["moe"]["router"]
    router["kernel"] = router["kernel"].at[0, 0, 0].add(0.01)
    found = twins.network.apply(params, task.inputs(raw), Context(), twins.router_state)
    with pytest.raises(AssertionError):
        assert_close(found.logits_BSV, expected.detach().numpy(), 1e-5)
