"""The quickstart: a small Mixtral-style byte language model on Python's standard library.

4 layers, D=128, 8 experts of F=256, 2 per token, dropless; 16 rows of 256 bytes a step. About
4 minutes on 2 CPU cores. Its iso-FLOP dense twin is configs/dense_quickstart.py.
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.routing import Mixtral
from moe_jax.routing.losses import LoadBalance, RouterZ, RoutingLosses
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.optimizer import AdamW, WarmupCosine
from moe_jax.training.writers import LoggingConfig


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = to_config_dict(
        Experiment(
            name="quickstart",
            steps=600,
            batch_size=16,
            model=DecoderConfig(
                num_layers=4, model_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=512
            ),
            moe=MoEConfig(
                num_experts=8,
                expert_dim=256,
                router=Mixtral(k=2),
                # Exact on any mesh with up to 8 devices along `expert`.
                receive_factor=8.0,
                losses=RoutingLosses(
                    load_balance=LoadBalance(coefficient=0.05),
                    router_z=RouterZ(coefficient=0.001),
                    over_layers="mean",
                ),
            ),
            optimizer=AdamW(learning_rate=6e-3, schedule=WarmupCosine(warmup_steps=50)),
            evaluation=EvalConfig(every=100, batches=12),
            checkpoint=CheckpointConfig(every=100),
            logging=LoggingConfig(load_every=10, probe_every=20),
        )
    )
    config.data.sequence_length = 256
    return config


def get_sweep(h):
    """The routers people start from, on three seeds: python -m moe_jax.sweep --config=THIS."""
    routers = h.sweep("moe.router.kind", ["mixtral", "switch", "gshard", "loss_free"])
    return h.product(routers, h.seeds(3))
