"""Parameters of small programs by name."""

from __future__ import annotations

import dataclasses

import jax

from moe_jax.data.tokenizer import ByteTokenizer
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.routing import ROUTERS
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment
from moe_jax.training.optimizer import AdamW

L, D, E, C, P, N = 2, 16, 4, 3, 6, 5  # layers, model, experts, slots, directions, constants
# Of all parameters, the options that bring the most of them.
OPTIONS = {
    "bias": True,
    "noise": "learned",
    "slots_per_expert": C,
    "dim": P,
    "zero": 1,
    "copy": 1,
    "constant": N,
}


def program(router="mixtral", optimizer=None, **sizes):
    """Two layers with every kind of parameter that a model has."""
    cls = ROUTERS[router]
    own = {name: x for name, x in OPTIONS.items() if name in cls.__dataclass_fields__}
    plain = Experiment()
    return build(
        dataclasses.replace(
            plain,
            batch_size=8,
            data=dataclasses.replace(plain.data, sequence_length=16),
            model=DecoderConfig(
                **{
                    "num_layers": L,
                    "model_dim": D,
                    "num_heads": 2,
                    "num_kv_heads": 1,
                    "head_dim": 4,
                    "qk_norm": True,
                    "unrolled_layers": 0,
                    **sizes,
                }
            ),
            moe=MoEConfig(
                num_experts=E,
                expert_dim=12,
                num_shared=1,
                latent_dim=8,
                layout="slots_einsum" if cls.soft else "rows",
                router=cls(**own),
            ),
            optimizer=optimizer or AdamW(),
        ),
        ByteTokenizer(),
        devices=jax.devices()[:1],
    )


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}
