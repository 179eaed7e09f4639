"""Small Hugging Face models beside ours with the same weights, and how they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from moe_jax.models.decoder import Decoder, DecoderConfig
from moe_jax.models.layout import layout_of
from moe_jax.models.network import Network, path_name
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig, make_mesh

torch.set_num_threads(1)  # two test processes share two cores

V, D, L, N, M, H = 40, 32, 3, 4, 2, 8
E, K, F = 6, 2, 24

# Theirs, by the names that Mixtral, Qwen3-MoE and OLMoE share.
SHARED = dict(
    vocab_size=V,
    hidden_size=D,
    num_hidden_layers=L,
    num_attention_heads=N,
    num_key_value_heads=M,
    head_dim=H,
    num_experts_per_tok=K,
    rms_norm_eps=1e-5,  # ours is not configurable
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    attn_implementation="eager",
    experts_implementation="eager",  # the plain loop over experts
    pad_token_id=None,
    eos_token_id=None,
    bos_token_id=None,
)
# Ours, the same.
OURS = dict(
    vocab_size=V, num_layers=L, model_dim=D, num_heads=N, num_kv_heads=M, head_dim=H, mlp_dim=40
)


@dataclass(frozen=True)
class Twins:
    """`theirs` and `network` compute the same function with `to_ours(theirs)` as parameters."""

    theirs: Any
    network: Network
    config: DecoderConfig
    moe: MoEConfig

    @property
    def params(self) -> dict[str, Any]:
        return to_ours(dict(self.theirs.named_parameters()), self.config, self.moe)

    @property
    def gradients(self) -> dict[str, Any]:
        named = {name: p.grad for name, p in self.theirs.named_parameters()}
        return to_ours(named, self.config, self.moe, gradients=True)

    @property
    def router_state(self) -> dict[str, Any]:
        return {stack.name: {} for stack in self.network.abstract_module.layout.moe_stacks}


def make_twins(
    theirs: Any,
    config: DecoderConfig,
    moe: MoEConfig,
    mesh_config: MeshConfig | None = None,
    devices: int = 1,
) -> Twins:
    """Twins with new random weights: matrices of variance 1 / fan-in, norms around 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(generator=generator)
            p.mul_(0.3).add_(1) if p.ndim == 1 else p.mul_(p.shape[-1] ** -0.5)
        theirs.model.embed_tokens.weight.mul_(config.model_dim**0.5)
    mesh = make_mesh(mesh_config or MeshConfig(), jax.devices()[:devices])
    network = Network(lambda rngs: Decoder(config, moe, mesh, rngs=rngs), mesh)
    return Twins(theirs.eval(), network, config, moe)


def to_ours(
    named: Mapping[str, torch.Tensor],
    config: DecoderConfig,
    moe: MoEConfig,
    gradients: bool = False,
) -> dict[str, Any]:
    """Hugging Face's parameters, or their gradients, as our nested tree.

    Torch stores (out, in), all heads side by side; gate above up. Our embedding is multiplied by
    sqrt(D) when it is read, so theirs is divided by it. A tied head reads our embedding without
    the factor: the scale of the final norm makes up for it. Gradients scale the other way round.
    """
    D, N, M, H = config.model_dim, config.num_heads, config.num_kv_heads, config.head_dim
    root = D**0.5 if not gradients else D**-0.5
    arrays = {name: value.detach().numpy() for name, value in named.items()}

    def block(layers: tuple[int, ...], sparse: bool) -> dict[str, Any]:
        def stack(name: str, *shape: int) -> jax.Array:
            """(out, in) -> (in, out), then cut into `shape`, one layer behind the other."""
            values = [arrays[f"model.layers.{layer}.{name}.weight"].T for layer in layers]
            return jnp.asarray(np.stack([value.reshape(shape or value.shape) for value in values]))

        attention: dict[str, Any] = {
            "wq": stack("self_attn.q_proj", D, N, H),
            "wk": stack("self_attn.k_proj", D, M, H),
            "wv": stack("self_attn.v_proj", D, M, H),
            "wo": stack("self_attn.o_proj", N, H, D),
        }
        if config.qk_norm:
            attention["query_norm"] = {"scale": stack("self_attn.q_norm")}
            attention["key_norm"] = {"scale": stack("self_attn.k_norm")}
        tree = {
            "attention": attention,
            "attention_norm": {"scale": stack("input_layernorm")},
            "mlp_norm": {"scale": stack("post_attention_layernorm")},
        }
        if not sparse:
            names = {"w_gate": "gate_proj", "w_up": "up_proj", "w_down": "down_proj"}
            return tree | {"mlp": {ours: stack(f"mlp.{name}") for ours, name in names.items()}}

        def experts(name: str) -> np.ndarray:
            values = [arrays[f"model.layers.{layer}.mlp.experts.{name}"] for layer in layers]
            return np.stack(values).swapaxes(2, 3)

        gate, up = np.split(experts("gate_up_proj"), 2, axis=3)
        return tree | {
            "moe": {
                "router": {"kernel": stack("mlp.gate")},
                "experts": {
                    "w_gate": jnp.asarray(gate),
                    "w_up": jnp.asarray(up),
                    "w_down": jnp.asarray(experts("down_proj")),
                },
            }
        }

    tied = config.tie_embeddings
    tree = {
        "embedding": jnp.asarray(arrays["model.embed_tokens.weight"] / root),
        "final_norm": {"scale": jnp.asarray(arrays["model.norm.weight"] * (root if tied else 1))},
        "layers": {
            stack.name: block(stack.layers, stack.moe)
            for stack in layout_of(config.num_layers, moe).unrolled().stacks  # as on CPU
        },
    }
    return tree if tied else tree | {"head": jnp.asarray(arrays["lm_head.weight"].T)}


def assert_close(found: Any, expected: Any, tolerance: float, name: str = "") -> None:
    """max |found - expected| <= tolerance * max |expected|.

    By the largest element, because float32 sums in another order leave elements that cancel to
    nearly 0 with no correct digit in either framework.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    error, scale = np.max(np.abs(found - expected)), np.max(np.abs(expected))
    assert error <= tolerance * scale, f"{name}: {error:.2e} of {scale:.2e}"


def assert_trees_close(found: Any, expected: Any, tolerance: float) -> None:
    """`assert_close` for every leaf of two nested dicts of the same structure."""
    leaves = jax.tree_util.tree_leaves_with_path(found)
    for (path, mine), other in zip(leaves, jax.tree.leaves(expected), strict=True):
        assert_close(mine, other, tolerance, path_name(path))


def rows(lengths: list[int], S: int, seed: int = 0) -> dict[str, jax.Array]:
    """Rows of S + 1 random tokens, of which the first `lengths` are text and the rest padding."""
    token_BS = np.random.default_rng(seed).integers(0, V, (len(lengths), S + 1))
    text_BS = np.arange(S + 1)[None] < np.array(lengths)[:, None]
    return {
        "tokens": jnp.asarray(token_BS, jnp.int32),
        "segments": jnp.asarray(text_BS, jnp.int32),
        "row": jnp.arange(len(lengths), dtype=jnp.int32),
    }


def to_torch(array: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.tensor(np.asarray(array), dtype=dtype)
