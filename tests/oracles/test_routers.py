"""Routers and routing losses of Hugging Face: Mixtral, OLMoE, Qwen3-MoE, Switch Transformers."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import MixtralConfig, OlmoeConfig, Qwen3MoeConfig, SwitchTransformersConfig
from transformers.models.mixtral import modeling_mixtral
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter
from transformers.models.switch_transformers import modeling_switch_transformers as switch_models

from moe_jax.models.network import Network
from moe_jax.nn.context import Context, TokenBatch
from moe_jax.nn.moe_layer import MoEConfig, MoELayer
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing import Mixtral, Switch, TopK
from moe_jax.routing.balance import load_balance_loss
from moe_jax.routing.losses import LoadBalance, RouterZ, RoutingLosses, scoped_loss
from moe_jax.routing.plan import make_plan, reduce_sums
from tests.oracles.drawn_inputs import D, E, T, draw, router_inputs
from tests.oracles.hugging_face import assert_close

SEEDS = range(50)


def route(router, kernel_DE, x_TD, valid_T):
    return router.route({"kernel": kernel_DE}, {}, router_inputs(x_TD, valid_T))


def theirs_and_ours(name, k):
    """Their router module and ours that must agree with it."""
    common = dict(hidden_size=D, num_experts_per_tok=k)
    if name == "mixtral":
        config = MixtralConfig(**common, num_local_experts=E)
        return modeling_mixtral.MixtralTopKRouter(config), Mixtral(k=k)
    family, _, norm = name.partition("_")
    normalize = norm == "normalized"
    make_config, module = {
        "olmoe": (OlmoeConfig, OlmoeTopKRouter),
        "qwen3": (Qwen3MoeConfig, Qwen3MoeTopKRouter),
    }[family]
    config = make_config(**common, num_experts=E, norm_topk_prob=normalize)
    return module(config), TopK(k=k, renormalize=normalize)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize(
    "name", ["mixtral", "olmoe", "olmoe_normalized", "qwen3", "qwen3_normalized"]
)
def test_experts_weights_and_gradients(name, k):
    theirs, ours = theirs_and_ours(name, k)
    everyone = jnp.ones(T, bool)

    @jax.jit
    def value_and_gradients(kernel_DE, x_TD, direction_TK):
        def value(kernel_DE, x_TD):
            a, _ = route(ours, kernel_DE, x_TD, everyone)
            weight_TK = a.weight_R.reshape(T, k)
            return jnp.sum(weight_TK * direction_TK), (weight_TK, a.expert_R.reshape(T, k))

        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(kernel_DE, x_TD)

    for seed in SEEDS:
        x_TD, kernel_DE = draw([seed, 0], T, D), draw([seed, 1], D, E) * D**-0.5
        direction_TK = draw([seed, 2], T, k)
        x = torch.tensor(x_TD, requires_grad=True)
        theirs.weight.data = torch.tensor(kernel_DE.T.copy())
        theirs.zero_grad()
        _, weights, experts = theirs(x)
        (weights * torch.tensor(direction_TK)).sum().backward()

        (_, (weight_TK, expert_TK)), gradients = value_and_gradients(kernel_DE, x_TD, direction_TK)
        np.testing.assert_array_equal(expert_TK, experts.numpy(), err_msg=f"seed {seed}")
        np.testing.assert_allclose(weight_TK, weights.detach().numpy(), rtol=5e-6)
        if k == 1 and ours in (Mixtral(k=1), TopK(k=1, renormalize=True)):
            # One weight renormalised is the constant 1: no gradient but rounding.
            assert np.abs(gradients[0]).max() < 1e-5 and theirs.weight.grad.abs().max() < 1e-5
            continue
        assert_close(gradients[0], theirs.weight.grad.T.numpy(), 1e-5, f"kernel, seed {seed}")
        assert_close(gradients[1], x.grad.numpy(), 1e-5, f"x, seed {seed}")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_load_balance_loss_and_gradient(k, padded):
    """Mixtral's loss is ours with normalization "hugging_face"; their mask is our validity."""

    @jax.jit
    @partial(jax.value_and_grad, argnums=0)
    def ours(kernel_DE, x_TD, valid_T):
        _, sums = route(Mixtral(k=k), kernel_DE, x_TD, valid_T)
        return load_balance_loss(sums, normalization="hugging_face")

    for seed in SEEDS:
        x_TD, kernel_DE = draw([seed, 0], T, D), draw([seed, 1], D, E) * D**-0.5
        valid_T = np.random.default_rng(seed).random(T) < (0.7 if padded else 2.0)
        kernel = torch.tensor(kernel_DE, requires_grad=True)
        mask = torch.tensor(valid_T[None].astype(np.int64)) if padded else None
        logits = torch.tensor(x_TD) @ kernel
        expected = modeling_mixtral.load_balancing_loss_func((logits,), E, k, attention_mask=mask)
        expected.backward()

        loss, gradient = ours(kernel_DE, x_TD, valid_T)
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-6, err_msg=f"seed {seed}")
        assert_close(gradient, kernel.grad.numpy(), 1e-5, f"seed {seed}")


def layer_sums(k, seed, L=4):
    """Logits of L layers as their tuple, and our sums with leaves (L, 1, ...)."""
    x_LTD, kernel_LDE = draw([seed, 0], L, T, D), draw([seed, 1], L, D, E) * D**-0.5
    logits = tuple(torch.tensor(x @ kernel) for x, kernel in zip(x_LTD, kernel_LDE, strict=True))
    _, sums_L = jax.vmap(lambda kernel, x: route(Mixtral(k=k), kernel, x, jnp.ones(T, bool)))(
        jnp.asarray(kernel_LDE), jnp.asarray(x_LTD)
    )
    return logits, jax.tree.map(lambda leaf: leaf[:, None], sums_L)


def over_layers(how, sums_LG, k):
    term = LoadBalance(coefficient=1.0, normalization="hugging_face")
    losses = RoutingLosses(load_balance=term, over_layers=how)
    return scoped_loss(losses, Mixtral(k=k), sums_LG, ("global_batch",), 1)


@pytest.mark.parametrize("k", [1, 2])
def test_layers_are_pooled_there_and_separate_here(k):
    """With f, p of every layer and <> the mean over layers, theirs is E <f> <p>, ours with
    over_layers="mean" E <f p>: it exceeds theirs by the covariance of f and p over layers, so
    that layers cannot make up for each other. Equal for one layer."""
    for seed in range(8):
        logits, sums_LG = layer_sums(k, seed)
        pooled = modeling_mixtral.load_balancing_loss_func(logits, E, k).item()
        each = [
            modeling_mixtral.load_balancing_loss_func((layer,), E, k).item() for layer in logits
        ]
        mean = float(over_layers("mean", sums_LG, k))
        np.testing.assert_allclose(mean, np.mean(each), rtol=1e-6)
        np.testing.assert_allclose(over_layers("sum", sums_LG, k), np.sum(each), rtol=1e-6)
        # Their pooling is our sums added up over layers before the loss is taken.
        total = load_balance_loss(reduce_sums(sums_LG, (0, 1)), normalization="hugging_face")
        np.testing.assert_allclose(total, pooled, rtol=1e-6)

        f_LE = np.asarray(sums_LG.wanted_E, np.float64)[:, 0] / T
        p_LE = np.asarray(sums_LG.prob_E, np.float64)[:, 0] / T
        covariance_E = np.mean((f_LE - f_LE.mean(0)) * (p_LE - p_LE.mean(0)), axis=0)
        assert abs(mean - pooled) > 1e-3
        np.testing.assert_allclose(mean - pooled, E * covariance_E.sum(), rtol=1e-4)


# --- Switch Transformers ---

B, S, CAPACITY = 3, 24, 3


def switch_config(**options):
    return SwitchTransformersConfig(
        d_model=D, d_ff=20, num_experts=E, expert_capacity=CAPACITY, **options
    )


def test_switch_router_capacity_and_losses():
    """In evaluation, without jitter. One row is one group: their capacity counts along a
    sequence, earlier tokens first, which for one choice per token is both our token-major and
    our choice-major order."""
    theirs = switch_models.SwitchTransformersTop1Router(switch_config()).eval()
    terms = {
        "load_balance": LoadBalance(coefficient=1.0, scope="row"),
        "router_z": RouterZ(coefficient=1.0),
    }

    @partial(jax.jit, static_argnames="order")
    def ours(kernel_DE, x_BSD, order):
        def one_row(kernel_DE, x_SD):
            router = Switch(drop_order=order)
            a, sums = route(router, kernel_DE, x_SD, jnp.ones(S, bool))
            return a, make_plan(a, CAPACITY).kept_R, sums

        def loss(kernel_DE, name):
            losses = RoutingLosses(**{name: terms[name]})
            sums_G = jax.vmap(one_row, in_axes=(None, 0))(kernel_DE, x_BSD)[2]
            sums_LG = jax.tree.map(lambda leaf: leaf[None], sums_G)
            return scoped_loss(losses, Switch(), sums_LG, (terms[name].scope,), 1)

        a, kept_BS, _ = jax.vmap(one_row, in_axes=(None, 0))(kernel_DE, x_BSD)
        grads = {name: jax.value_and_grad(loss)(kernel_DE, name) for name in terms}
        return a.expert_R, a.weight_R, kept_BS, grads

    dropped = 0
    for seed in SEEDS:
        x_BSD, kernel_DE = draw([seed, 0], B, S, D), draw([seed, 1], D, E) * D**-0.5
        theirs.classifier.weight.data = torch.tensor(kernel_DE.T.copy())
        theirs.zero_grad()
        mask, weight, logits = theirs(torch.tensor(x_BSD))
        prob = torch.softmax(logits, -1)
        expected = {
            "load_balance": switch_models.load_balancing_loss_func(prob, logits.argmax(-1)),
            "router_z": switch_models.router_z_loss_func(logits),
        }
        for order in ("token_major", "choice_major"):
            expert_BS, weight_BS, kept_BS, found = ours(kernel_DE, x_BSD, order)
            np.testing.assert_array_equal(expert_BS, logits.argmax(-1).numpy())
            np.testing.assert_allclose(weight_BS, weight.detach().numpy()[..., 0], rtol=5e-6)
            one_hot_BSE = np.eye(E, dtype=int)[np.asarray(expert_BS)]
            kept_BSE = one_hot_BSE * np.asarray(kept_BS)[..., None]
            np.testing.assert_array_equal(kept_BSE, mask.numpy())
        dropped += int((~np.asarray(kept_BS)).sum())
        for name, value in expected.items():
            theirs.zero_grad()
            value.backward(retain_graph=True)
            np.testing.assert_allclose(found[name][0], value.item(), rtol=2e-6, err_msg=name)
            assert_close(found[name][1], theirs.classifier.weight.grad.T.numpy(), 1e-5, name)
    assert dropped > 100  # the capacity is felt


@pytest.mark.parametrize("layout", ["rows", "slots_einsum", "slots_scatter"])
def test_switch_layer_with_drops(layout):
    """Their sparse layer, experts of two matrices and a ReLU: output and every gradient; tokens
    over capacity give zero (the residual connection is outside)."""
    theirs = switch_models.SwitchTransformersSparseMLP(switch_config(dropout_rate=0.0)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(generator=generator).mul_(p.shape[-1] ** -0.5)
    x_BSD, direction_BSD = draw(0, B, S, D), draw(1, B, S, D)
    x = torch.tensor(x_BSD, requires_grad=True)
    expected = theirs(x)
    (expected * torch.tensor(direction_BSD)).sum().backward()

    moe = MoEConfig(
        num_experts=E,
        expert_dim=20,
        router=Switch(),
        capacity_factor=CAPACITY * E / S,
        layout=layout,
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    network = Network(
        lambda rngs: MoELayer(
            moe,
            model_dim=D,
            activation="relu",
            init_scale=1.0,
            mesh=mesh,
            rngs=rngs,
        ),
        mesh,
    )

    def ours(named):
        def experts(name):
            values = [named[f"experts.expert_{e}.{name}.weight"].T for e in range(E)]
            return jnp.asarray(np.stack([value.detach().numpy() for value in values]))

        kernel = jnp.asarray(named["router.classifier.weight"].T.detach().numpy())
        return {
            "router": {"kernel": kernel},
            "experts": {"w_up": experts("wi"), "w_down": experts("wo")},
        }

    place_BS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    batch = TokenBatch(
        token_BS=place_BS,
        position_BS=place_BS,
        segment_BS=jnp.ones((B, S), jnp.int32),
        row_B=jnp.arange(B, dtype=jnp.int32),
    )

    @jax.jit
    def value_and_gradients(params, x_BSD):
        def value(params, x_BSD):
            context = Context(capacity_factor=moe.capacity_factor)
            y_BSD, report = network.apply(params, x_BSD, batch, context, {}, jnp.int32(0))
            return jnp.sum(y_BSD * direction_BSD), (y_BSD, report.traffic)

        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, x_BSD)

    (_, (y_BSD, traffic)), gradients = value_and_gradients(
        ours(dict(theirs.named_parameters())), jnp.asarray(x_BSD)
    )
    assert_close(y_BSD, expected.detach().numpy(), 1e-5)
    zero = int((expected.detach().numpy() == 0).all(-1).sum())
    assert int(traffic.dropped.sum()) == zero > 5
    assert_close(gradients[1], x.grad.numpy(), 1e-5)
    named = {
        name: p.grad if p.grad is not None else torch.zeros_like(p)
        for name, p in theirs.named_parameters()
    }
    for found, other in zip(
        jax.tree.leaves(gradients[0]), jax.tree.leaves(ours(named)), strict=True
    ):
        assert_close(found, other, 1e-5)
