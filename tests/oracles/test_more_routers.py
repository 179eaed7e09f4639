"""Routers of Hugging Face with biases, groups and scales: DeepSeek-V2, DeepSeek-V3, gpt-oss."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config, GptOssConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

from moe_jax.routing import DeepSeekV2, DeepSeekV3, Mixtral
from tests.oracles.drawn_inputs import D, T, draw, router_inputs
from tests.oracles.hugging_face import assert_close

E, GROUPS = 16, 4
SEEDS = range(30)


def theirs_and_ours(name, k, kept):
    sizes = dict(hidden_size=D, num_experts_per_tok=k)
    groups = dict(n_group=GROUPS, topk_group=kept, routed_scaling_factor=2.5)
    ours = dict(k=k, expert_groups=GROUPS, kept_groups=kept, scale=2.5)
    if name == "deepseek_v3":
        config = DeepseekV3Config(**sizes, **groups, n_routed_experts=E, norm_topk_prob=True)
        return DeepseekV3TopkRouter(config), DeepSeekV3(**ours)
    if name == "deepseek_v2":
        config = DeepseekV2Config(
            **sizes,
            **groups,
            n_routed_experts=E,
            topk_method="group_limited_greedy",
            num_attention_heads=4,
        )
        return DeepseekV2TopkRouter(config), DeepSeekV2(**ours)
    config = GptOssConfig(**sizes, num_local_experts=E)
    return GptOssTopKRouter(config), Mixtral(k=k, bias=True)


@pytest.mark.parametrize(("k", "kept"), [(1, 1), (4, 2), (6, 4)])
@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "gpt_oss"])
def test_experts_weights_and_gradients(name, k, kept):
    theirs, ours = theirs_and_ours(name, k, kept)
    batch = router_inputs(jnp.zeros((T, D)), jnp.ones(T, bool))

    @jax.jit
    def value_and_gradients(params, state, x_TD, direction_TE):
        def value(params, x_TD):
            a, _ = ours.route(params, state, replace(batch, x_TD=x_TD))
            weight_TE = jnp.zeros((T, E)).at[a.token_R, a.expert_R].add(a.weight_R)
            return jnp.sum(weight_TE * direction_TE), weight_TE

        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, x_TD)

    for seed in SEEDS:
        x_TD, kernel_DE = draw([seed, 0], T, D), draw([seed, 1], D, E) * D**-0.5
        bias_E, direction_TE = 0.2 * draw([seed, 2], E), draw([seed, 3], T, E)
        x = torch.tensor(x_TD, requires_grad=True)
        theirs.weight.data = torch.tensor(kernel_DE.T.copy())
        params, state = {"kernel": kernel_DE}, {}
        if name == "deepseek_v3":
            theirs.e_score_correction_bias.data = torch.tensor(bias_E)
            state = {"bias": jnp.asarray(bias_E)}
        if name == "gpt_oss":
            theirs.bias.data = torch.tensor(bias_E)
            params["bias"] = jnp.asarray(bias_E)
        theirs.zero_grad()
        _, weights, experts = theirs(x)
        # In the order of experts: theirs are not sorted.
        dense = torch.zeros(T, E).scatter(1, experts, weights)
        (dense * torch.tensor(direction_TE)).sum().backward()

        (_, weight_TE), (of_params, of_x) = value_and_gradients(params, state, x_TD, direction_TE)
        found = dense.detach().numpy()
        np.testing.assert_array_equal(np.asarray(weight_TE) != 0, found != 0, f"seed {seed}")
        np.testing.assert_allclose(weight_TE, found, rtol=1e-5, atol=1e-7)
        if k == 1 and name != "deepseek_v2":
            continue  # one renormalised weight is a constant
        assert_close(of_params["kernel"], theirs.weight.grad.T.numpy(), 2e-5, f"seed {seed}")
        assert_close(of_x, x.grad.numpy(), 2e-5, f"seed {seed}")
        if name == "gpt_oss":
            assert_close(of_params["bias"], theirs.bias.grad.numpy(), 2e-5, f"seed {seed}")
