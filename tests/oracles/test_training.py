"""Training steps against torch: Hugging Face's models, their routing losses, torch.optim.AdamW.

The whole stack at once: forward, losses, gradients, clipping, decay, learning rate, update.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import (
    router_z_loss_func,
)

from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.routing import Mixtral
from moe_jax.routing.losses import LoadBalance, RouterZ, RoutingLosses
from moe_jax.tasks.language_model import NextToken
from moe_jax.training.optimizer import AdamW, ConstantRate, make_optimizer
from moe_jax.training.state import TrainState
from moe_jax.training.step import Step
from tests.oracles.hugging_face import (
    OURS,
    SHARED,
    D,
    E,
    F,
    K,
    V,
    assert_trees_close,
    make_twins,
    rows,
    to_torch,
)

S, STEPS = 16, 5
LENGTHS = [S + 1, 9, S + 1, 12, 5, S + 1, S, 2]  # full rows have S + 1: the last is a target only
BALANCE, Z = 0.05, 0.01
LOSSES = RoutingLosses(
    load_balance=LoadBalance(coefficient=BALANCE, normalization="hugging_face"),
    router_z=RouterZ(coefficient=Z),
)
# Large enough that a gradient which is nothing but rounding does not become a step of full size.
EPS = 1e-4
ADAM = dict(b1=0.9, b2=0.95, eps=EPS)


def mixtral_twins(mesh=None, devices=1):
    theirs = MixtralForCausalLM(
        MixtralConfig(**SHARED, intermediate_size=F, num_local_experts=E, tie_word_embeddings=False)
    )
    moe = MoEConfig(
        num_experts=E, expert_dim=F, router=Mixtral(k=K), losses=LOSSES, receive_factor=float(E)
    )
    return make_twins(theirs, DecoderConfig(**OURS), moe, mesh, devices)


def batches():
    return [rows(LENGTHS, S, seed=step) for step in range(STEPS)]


def their_loss(theirs, raw):
    """Cross-entropy, and per layer their balance loss and z-loss over the tokens of the text."""
    ids = to_torch(raw["tokens"], torch.int64)
    text_BS = to_torch(raw["segments"]) > 0
    mask_BS = text_BS[:, :-1]
    output = theirs(input_ids=ids[:, :-1], attention_mask=mask_BS.long(), output_router_logits=True)
    labels = ids[:, 1:].masked_fill(~text_BS[:, 1:], -100)
    loss = torch.nn.functional.cross_entropy(output.logits.reshape(-1, V), labels.reshape(-1))
    for logits in output.router_logits:
        # One layer at a time: see test_layers_are_pooled_there_and_separate_here.
        loss = loss + BALANCE * load_balancing_loss_func((logits,), E, K, mask_BS.long())
        loss = loss + Z * router_z_loss_func(logits[mask_BS.reshape(-1)][None])
    return loss


def train_theirs(twins, make_optimizer, rate_of, clip=None):
    """Loss and gradient norm of every step; leaves the trained parameters in `twins.theirs`.

    Adam's steps depend on how a parameter is scaled, so their embedding is scaled as ours: its
    weights are divided by sqrt(D), and what it returns is multiplied by it.
    """
    embedding = twins.theirs.model.embed_tokens
    with torch.no_grad():
        embedding.weight.div_(math.sqrt(D))
    handle = embedding.register_forward_hook(lambda module, args, out: out * math.sqrt(D))
    parameters = list(twins.theirs.parameters())
    optimizer = make_optimizer(parameters)
    losses, norms = [], []
    for step, raw in enumerate(batches()):
        optimizer.zero_grad(set_to_none=False)
        loss = their_loss(twins.theirs, raw)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf).item())
        for group in optimizer.param_groups:
            group["lr"] = rate_of(step)
        optimizer.step()
        losses.append(loss.item())
    handle.remove()
    with torch.no_grad():
        embedding.weight.mul_(math.sqrt(D))
    return np.array(losses), np.array(norms)


def train_ours(twins, optimizer, accumulation=1):
    network = twins.network
    params = jax.device_put(twins.params, network.shardings)
    step = Step(
        network=network,
        task=NextToken(np.ones(V)),
        optimizer=optimizer,
        moe=twins.moe,
        row_length=S,
        accumulation=accumulation,
        noise_seed=0,
    )
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(
        step=zero,
        params=params,
        opt_state=jax.jit(optimizer.init)(params),
        router_state=twins.router_state,
        bad_steps=zero,
        skipped=zero,
        probe=jnp.zeros((0,), jnp.int32),
    )
    train = jax.jit(step.train)
    losses, norms = [], []
    for raw in batches():
        state, result = train(state, raw, {})
        losses.append(float(result.loss))
        norms.append(float(result.grad_norm))
    assert int(state.skipped) == 0
    return np.array(losses), np.array(norms), state.params


@pytest.mark.parametrize(
    "mesh, devices, accumulation",
    [(MeshConfig(), 1, 1), (MeshConfig(data=2, expert=2), 4, 2)],
    ids=["one device", "four devices, two micro-batches"],
)
def test_adamw(mesh, devices, accumulation):
    """optax.adamw in our step is torch's AdamW: the same losses, gradients and parameters."""
    rate, decay = 3e-3, 0.1
    twins = mixtral_twins(mesh, devices)
    found = train_ours(twins, optax.adamw(rate, **ADAM, weight_decay=decay), accumulation)
    before = twins.params

    def their_adamw(parameters):
        return torch.optim.AdamW(parameters, betas=(0.9, 0.95), eps=EPS, weight_decay=decay)

    losses, norms = train_theirs(twins, their_adamw, lambda step: rate)
    check(found, losses, norms, before, twins.params)


def test_our_adamw_with_clipping_warm_up_and_groups():
    """Our own optimizer: matrices decay and norms do not, the gradient is clipped, the rate warms
    up over two steps."""
    rate, decay, clip = 3e-3, 0.5, 0.3
    twins = mixtral_twins()
    config = AdamW(
        learning_rate=rate,
        schedule=ConstantRate(warmup_steps=2),
        clip_norm=clip,
        weight_decay=decay,
        **ADAM,
    )
    optimizer, _ = make_optimizer(config, twins.params, twins.network.forms, STEPS)
    found = train_ours(twins, optimizer)
    before = twins.params

    def their_adamw(parameters):
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=EPS)

    losses, norms = train_theirs(
        twins, their_adamw, lambda step: rate * min(1, (step + 1) / 2), clip
    )
    assert (norms > 2 * clip).all()
    check(found, losses, norms, before, twins.params)


def check(found, losses, norms, before, after):
    our_losses, our_norms, our_params = found
    np.testing.assert_allclose(our_losses, losses, rtol=2e-6)
    np.testing.assert_allclose(our_norms, norms, rtol=1e-5)
    assert_trees_close(our_params, after, 1e-5)

    def moves(params):
        return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, before)

    # The update alone, which the parameters would hide: float32 parameters of size 1 hold a step
    # of 1e-3 to 1e-4 of itself.
    assert_trees_close(moves(our_params), moves(after), 1e-3)
