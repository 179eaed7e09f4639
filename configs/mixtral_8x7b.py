"""Mixtral 8x7B: 32 layers, D=4096, 8 experts of F=14336, 2 per token, dropless, bfloat16.

Paper: Jiang et al., Mixtral of Experts (2401.04088), section 2.1 and table 1.
Hardware: a pod slice of 128 devices of the TPU v5p or H100 class.
Parameters: 46.70B in all, 12.88B active. Training FLOPs per token at S=4096: 82.93 GFLOP.
Where we differ: our sliding window is the whole context (the published model later dropped it).
Data: token files, --config.data.train=FILE --config.data.validation=FILE (docs/data.md).
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.routing import Mixtral
from moe_jax.routing.losses import LoadBalance, RoutingLosses
from moe_jax.training.experiment import Experiment


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = to_config_dict(
        Experiment(
            name="mixtral_8x7b",
            steps=100_000,
            batch_size=1024,
            accumulation=8,
            model=DecoderConfig(
                vocab_size=32000,
                num_layers=32,
                model_dim=4096,
                num_heads=32,
                num_kv_heads=8,
                head_dim=128,
                mlp_dim=14336,
                rope_theta=1e6,
                dtype="bfloat16",
                remat="received",
            ),
            moe=MoEConfig(
                num_experts=8,
                expert_dim=14336,
                router=Mixtral(k=2),
                losses=RoutingLosses(
                    load_balance=LoadBalance(coefficient=0.02, normalization="hugging_face"),
                    over_layers="mean",
                ),
            ),
            mesh=MeshConfig(data=-1, fsdp=16, expert=8),
        )
    )
    config.data.kind = "memmap"
    config.data.tokenizer.vocab_size = 32000
    config.data.sequence_length = 4096
    config.optimizer.learning_rate = 3e-4
    return config
