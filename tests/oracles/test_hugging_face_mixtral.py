"""Hugging Face's Mixtral under torch on CPU: router, balance loss, whole model, generation.

Run by `make test-oracles`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import (
    MixtralTopKRouter,
    load_balancing_loss_func,
)

from moe_jax.models.decoder import Decoder, DecoderConfig
from moe_jax.models.generation import Generator
from moe_jax.models.network import Network
from moe_jax.nn.context import Context
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing import Mixtral
from moe_jax.routing.balance import load_balance_loss
from moe_jax.routing.types import RouterInputs
from moe_jax.tasks.language_model import NextToken

V, D, F, E, K, L, N, M, H = 40, 32, 24, 6, 2, 3, 4, 2, 8
B, S = 3, 17


def inputs(x_TD, valid_T):
    place_T = jnp.arange(x_TD.shape[0], dtype=jnp.int32)
    return RouterInputs(
        x_TD=jnp.asarray(x_TD),
        valid_T=jnp.asarray(valid_T),
        id_T=place_T,
        position_T=place_T,
        segment_T=jnp.ones_like(place_T),
        E=E,
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("k", [1, 2, 4])
def test_router_and_balance_loss(seed, k):
    rng = np.random.default_rng(seed)
    T = 31
    x_TD = rng.normal(size=(T, D)).astype(np.float32)
    kernel = rng.normal(size=(D, E)).astype(np.float32)
    valid_T = rng.random(T) < 0.8
    theirs = MixtralTopKRouter(
        MixtralConfig(hidden_size=D, num_local_experts=E, num_experts_per_tok=k)
    )
    theirs.weight.data = torch.tensor(kernel.T)
    logits, weights, experts = theirs(torch.tensor(x_TD))

    a, sums = Mixtral(k=k).route(
        {"kernel": jnp.asarray(kernel)}, {}, inputs(x_TD, np.ones(T, bool))
    )
    np.testing.assert_array_equal(np.asarray(a.expert_R).reshape(T, k), experts.numpy())
    found = np.asarray(a.weight_R).reshape(T, k)
    np.testing.assert_allclose(found, weights.detach().numpy(), rtol=2e-5, atol=1e-6)

    expected = load_balancing_loss_func((logits,), E, k)
    loss = load_balance_loss(sums, normalization="hugging_face")
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    # With padding: their attention mask is our validity.
    mask = torch.tensor(valid_T[None].astype(np.int64))
    expected = load_balancing_loss_func((logits,), E, k, attention_mask=mask)
    _, sums = Mixtral(k=k).route({"kernel": jnp.asarray(kernel)}, {}, inputs(x_TD, valid_T))
    loss = load_balance_loss(sums, normalization="hugging_face")
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)


@pytest.fixture(scope="module")
def pair():
    """Their model with random weights, and ours with the same."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=L,
        num_attention_heads=N,
        num_key_value_heads=M,
        head_dim=H,
        num_local_experts=E,
        num_experts_per_tok=K,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attn_implementation="eager",
        rope_theta=10000.0,
        sliding_window=None,
        router_aux_loss_coef=0.0,
    )
    theirs = MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.15)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    ours = DecoderConfig(
        vocab_size=V,
        num_layers=L,
        model_dim=D,
        num_heads=N,
        num_kv_heads=M,
        head_dim=H,
        rope_theta=10000.0,
    )
    moe = MoEConfig(num_experts=E, expert_dim=F, router=Mixtral(k=K))
    network = Network(lambda rngs: Decoder(ours, moe, mesh, rngs=rngs), mesh)
    return theirs, network, convert(dict(theirs.named_parameters()))


def convert(named):
    """Hugging Face's parameters (or their gradients) in our tree.

    Torch stores (out, in); our embedding is multiplied by sqrt(D) when it is read.
    """
    arrays = {name: value.detach().numpy() for name, value in named.items()}

    def stack(name, shape, order=None):
        layers = [arrays[f"model.layers.{i}.{name}"] for i in range(L)]
        layers = [value if order is None else value.transpose(order) for value in layers]
        return jnp.asarray(np.stack([value.reshape(shape) for value in layers]))

    gate_up = "mlp.experts.gate_up_proj"
    halves = np.stack([arrays[f"model.layers.{i}.{gate_up}"] for i in range(L)])
    gate, up = (part.swapaxes(2, 3) for part in np.split(halves, 2, axis=2))
    tree = {
        "embedding": jnp.asarray(arrays["model.embed_tokens.weight"] / np.sqrt(D)),
        "final_norm": {"scale": jnp.asarray(arrays["model.norm.weight"])},
        "head": jnp.asarray(arrays["lm_head.weight"].T),
        "layers": {
            "00": {
                "attention": {
                    "wq": stack("self_attn.q_proj.weight", (D, N, H), (1, 0)),
                    "wk": stack("self_attn.k_proj.weight", (D, M, H), (1, 0)),
                    "wv": stack("self_attn.v_proj.weight", (D, M, H), (1, 0)),
                    "wo": stack("self_attn.o_proj.weight", (N, H, D), (1, 0)),
                },
                "attention_norm": {"scale": stack("input_layernorm.weight", (D,))},
                "mlp_norm": {"scale": stack("post_attention_layernorm.weight", (D,))},
                "moe": {
                    "experts": {
                        "w_gate": jnp.asarray(gate),
                        "w_up": jnp.asarray(up),
                        "w_down": stack("mlp.experts.down_proj", (E, F, D), (0, 2, 1)),
                    },
                    "router": {"kernel": stack("mlp.gate.weight", (D, E), (1, 0))},
                },
            }
        },
    }
    whole = tree["layers"].pop("00")
    for layer in range(L):
        cut = jax.tree.map(lambda leaf, i=layer: leaf[i : i + 1], whole)
        tree["layers"][f"{layer:02d}"] = cut
    return tree


def tokens():
    return np.random.default_rng(0).integers(0, V, (B, S + 1)).astype(np.int32)


def raw_batch():
    ones = jnp.ones((B, S + 1), jnp.int32)
    return {"tokens": jnp.asarray(tokens()), "segments": ones, "row": jnp.arange(B)}


def test_logits_loss_and_every_gradient(pair):
    theirs, network, params = pair
    ids = torch.tensor(tokens().astype(np.int64))
    theirs.zero_grad()
    logits = theirs(input_ids=ids[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, V), ids[:, 1:].reshape(-1))
    expected.backward()

    task = NextToken(np.ones(V))

    def loss(params):
        output = network.apply(params, task.inputs(raw_batch()), Context(), {"00": {}})
        sums = task.sums(output.predictions, raw_batch())
        return sums["nats"] / sums["tokens"], output.logits_BSV

    (value, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(found, logits.detach().numpy(), rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    gradients = convert({name: p.grad for name, p in theirs.named_parameters()})
    # d/d(our embedding) = sqrt(D) d/d(theirs), which convert() divided by sqrt(D).
    gradients["embedding"] *= D
    for (path, mine), other in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(gradients), strict=True
    ):
        scale = float(jnp.max(jnp.abs(other)))
        np.testing.assert_allclose(mine, other, atol=2e-5 * scale, err_msg=str(path))


def test_greedy_generation(pair):
    theirs, network, params = pair
    prompt = tokens()[0, :5]
    expected = theirs.generate(
        torch.tensor(prompt[None].astype(np.int64)),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0].numpy()
    generator = Generator(
        network=network,
        params=params,
        router_state={"00": {}},
        usable_V=np.ones(V, bool),
    )
    found = [token.id for token in generator(prompt.tolist(), 12, temperature=0.0)]
    np.testing.assert_array_equal(found, expected)
