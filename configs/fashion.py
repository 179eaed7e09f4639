"""Fashion-MNIST: a small V-MoE, a Soft MoE and a dense model on 60,000 pictures of clothes.

16 patches of 7 x 7 pixels; 4 layers, D=96, every second one with 8 experts of F=96, 2 per patch
(V-MoE's "every 2"), trained with V-MoE's room of 1.05 for each choice, shared by eight images.
--config=configs/fashion.py:soft_moe has 32 slots an image in place of two choices a patch, `:dense`
is the iso-FLOP dense twin. Needs the extra `vision`; the pictures are fetched with apt.
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.data.fashion_mnist import FashionMnist
from moe_jax.data.images import Augmentation
from moe_jax.models.vit import VitConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.routing import SoftMoE, VMoE
from moe_jax.routing.losses import Importance, Load, RoutingLosses
from moe_jax.tasks.classification import Classification
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.optimizer import AdamW, WarmupCosine
from moe_jax.training.writers import LoggingConfig

PATCHES = 16
V_MOE = MoEConfig(
    every=2,
    first=1,
    num_experts=8,
    expert_dim=96,
    router=VMoE(k=2),
    capacity_factor=1.05,
    group_size=8 * PATCHES,
    receive_factor=8.0,
    losses=RoutingLosses(importance=Importance(coefficient=0.005), load=Load(coefficient=0.005)),
)
ARMS = {
    "v_moe": V_MOE,
    # As many slots an image as V-MoE's two choices of 16 patches.
    "soft_moe": MoEConfig(
        every=2,
        first=1,
        num_experts=8,
        expert_dim=96,
        router=SoftMoE(slots_per_expert=4),
        layout="slots_einsum",
        receive_factor=8.0,
    ),
    "dense": MoEConfig(every=0, num_experts=8, expert_dim=96, router=VMoE(k=2)),
}


def get_config(arg: str = "v_moe") -> ConfigDict:
    name = arg or "v_moe"
    return to_config_dict(
        Experiment(
            name=f"fashion, {name}",
            steps=2000,
            batch_size=64,
            task=Classification(),
            data=FashionMnist(augmentation=Augmentation(flip=0.5)),
            model=VitConfig(
                num_layers=4,
                model_dim=96,
                num_heads=4,
                num_kv_heads=4,
                head_dim=24,
                mlp_dim=192,
                activation="gelu",
                patch_size=7,
            ),
            moe=ARMS[name],
            optimizer=AdamW(learning_rate=2e-3, schedule=WarmupCosine(warmup_steps=100)),
            evaluation=EvalConfig(every=500, batches=-1, batch_size=128),
            checkpoint=CheckpointConfig(every=500),
            logging=LoggingConfig(load_every=10, probe_every=100),
        )
    )
