"""Vision: a small V-MoE on scikit-learn's 1,797 handwritten digits.

16 patches of 2 x 2 pixels; 4 layers, D=64, every second one with 8 experts of F=64, 2 per patch
(V-MoE's "every 2"), batch priority routing with room for every second choice. Images are mixed in
pairs (mixup), without which 1,437 of them are learnt by heart. Its iso-FLOP dense twin:
--config=configs/vision.py:dense. Needs the extra `vision`.
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.data.digits import Digits
from moe_jax.data.images import Augmentation
from moe_jax.models.vit import VitConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.routing import VMoE
from moe_jax.routing.losses import Importance, Load, RoutingLosses
from moe_jax.tasks.classification import Classification
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.optimizer import AdamW, WarmupCosine
from moe_jax.training.writers import LoggingConfig

DENSE = "dense"


def get_config(arg: str = "") -> ConfigDict:
    return to_config_dict(
        Experiment(
            name="vision" if arg != DENSE else "vision, dense",
            steps=1000,
            batch_size=64,
            task=Classification(),
            data=Digits(augmentation=Augmentation(mixup=1.0)),
            model=VitConfig(
                num_layers=4,
                model_dim=64,
                num_heads=4,
                num_kv_heads=4,
                head_dim=16,
                mlp_dim=128,
                activation="gelu",
                patch_size=2,
            ),
            moe=MoEConfig(
                every=0 if arg == DENSE else 2,
                first=1,
                num_experts=8,
                expert_dim=64,
                router=VMoE(k=2, drop_order="batch_priority"),
                capacity_factor=1.0,
                receive_factor=8.0,
                losses=RoutingLosses(
                    importance=Importance(coefficient=0.005), load=Load(coefficient=0.005)
                ),
            ),
            optimizer=AdamW(learning_rate=2e-3, schedule=WarmupCosine(warmup_steps=50)),
            evaluation=EvalConfig(every=100, capacity_factor=1.0),
            checkpoint=CheckpointConfig(every=200),
            logging=LoggingConfig(load_every=10, probe_every=50),
        )
    )
