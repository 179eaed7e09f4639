"""Experts against those of transformers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import torch
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from moe_jax.experts import ClampedSwiGLU

E, D, F, T = 4, 8, 12, 32


def test_clamped_swiglu_is_that_of_gpt_oss():
    """Every expert on the tokens that chose it, values and gradients of x and all parameters."""
    config = GptOssConfig(
        num_local_experts=E, hidden_size=D, intermediate_size=F, num_experts_per_tok=1
    )
    theirs = GptOssExperts(config)
    rng = np.random.default_rng(0)
    weights = {
        "w_gate": rng.normal(size=(E, D, F)),
        "w_up": rng.normal(size=(E, D, F)),
        "w_down": rng.normal(size=(E, F, D)),
        "b_gate": rng.normal(size=(E, F)),
        "b_up": rng.normal(size=(E, F)),
        "b_down": rng.normal(size=(E, D)),
    }
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    x_TD = (3 * rng.normal(size=(T, D))).astype(np.float32)
    with torch.no_grad():
        theirs.gate_up_proj[:, :, ::2] = torch.tensor(weights["w_gate"])
        theirs.gate_up_proj[:, :, 1::2] = torch.tensor(weights["w_up"])
        theirs.gate_up_proj_bias[:, ::2] = torch.tensor(weights["b_gate"])
        theirs.gate_up_proj_bias[:, 1::2] = torch.tensor(weights["b_up"])
        theirs.down_proj.copy_(torch.tensor(weights["w_down"]))
        theirs.down_proj_bias.copy_(torch.tensor(weights["b_down"]))
    sizes = np.full(E, T // E)
    expert_T = np.repeat(np.arange(E), sizes)
    x = torch.tensor(x_TD, requires_grad=True)
    wanted = theirs(x, torch.tensor(expert_T)[:, None], torch.ones(T, 1))
    ours = ClampedSwiGLU(alpha=theirs.alpha, limit=theirs.limit)
    assert ours == ClampedSwiGLU()  # the published constants
    arrays = {name: jnp.asarray(value) for name, value in weights.items()}
    found = ours.networks(arrays, "auto", None, None).rows(jnp.asarray(x_TD), jnp.asarray(sizes))
    # The clamps work: several activations are beyond them.
    assert np.mean(np.abs(x_TD @ weights["w_up"][0]) > ours.limit) > 0.1
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-4, atol=1e-3)
