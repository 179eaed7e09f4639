"""Segmentation: the climate of every pixel of a satellite picture, by a small V-MoE.

Tiles of 64 x 64 pixels in 8 x 8 patches; 4 layers, D=96, every second one with 8 experts of
F=96, 2 per patch, dropless (an image may be all ocean), and a linear head. Its iso-FLOP dense twin:
--config=configs/segmentation.py:dense. Needs the extra `vision`; the picture is fetched with pip.
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.data.climate import Climate
from moe_jax.models.vit import VitConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.routing import VMoE
from moe_jax.routing.losses import Importance, Load, RoutingLosses
from moe_jax.tasks.segmentation import Segmentation
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.optimizer import AdamW, WarmupCosine
from moe_jax.training.writers import LoggingConfig

DENSE = "dense"


def get_config(arg: str = "") -> ConfigDict:
    return to_config_dict(
        Experiment(
            name="segmentation" if arg != DENSE else "segmentation, dense",
            steps=600,
            batch_size=32,
            task=Segmentation(),
            data=Climate(),
            model=VitConfig(
                num_layers=4,
                model_dim=96,
                num_heads=4,
                num_kv_heads=4,
                head_dim=24,
                mlp_dim=192,
                activation="gelu",
                patch_size=8,
            ),
            moe=MoEConfig(
                every=0 if arg == DENSE else 2,
                first=1,
                num_experts=8,
                expert_dim=96,
                router=VMoE(k=2),
                receive_factor=8.0,
                losses=RoutingLosses(
                    importance=Importance(coefficient=0.005), load=Load(coefficient=0.005)
                ),
            ),
            optimizer=AdamW(learning_rate=2e-3, schedule=WarmupCosine(warmup_steps=50)),
            evaluation=EvalConfig(every=100, batches=-1),
            checkpoint=CheckpointConfig(every=200),
            logging=LoggingConfig(load_every=10, probe_every=50),
        )
    )
