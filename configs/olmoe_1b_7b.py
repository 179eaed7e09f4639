"""OLMoE-1B-7B: 16 layers, D=2048, 64 experts of F=1024, 8 per token, dropless, bfloat16.

Paper: Muennighoff et al., OLMoE (2409.02060), table 1 and section 3: load-balance loss 0.01 and
router z-loss 0.001, truncated normal initialisation, learning rate 4e-4, 1024 rows of 4096. Its
trainer takes MegaBlocks' balance loss, the mean over layers, 1 when balanced (and not k = 8, as the
same coefficient means in Hugging Face's model of that name).
Hardware: 8 to 64 devices of the H100/H200 or TPU v5p class.
Parameters: 6.92B in all, 1.28B active. Training FLOPs per token at S=4096: 8.68 GFLOP.
Where we differ: QK-norm is per head (the paper's spans all heads).
Data: token files, --config.data.train=FILE --config.data.validation=FILE (docs/data.md).
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.routing.losses import LoadBalance, RouterZ, RoutingLosses
from moe_jax.routing.token_choice.top_k import TopK
from moe_jax.training.experiment import Experiment


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = to_config_dict(
        Experiment(
            name="olmoe_1b_7b",
            steps=1_200_000,
            batch_size=1024,
            model=DecoderConfig(
                vocab_size=50304,
                num_layers=16,
                model_dim=2048,
                num_heads=16,
                num_kv_heads=16,
                head_dim=128,
                mlp_dim=8192,
                qk_norm=True,
                dtype="bfloat16",
                remat="received",
            ),
            moe=MoEConfig(
                num_experts=64,
                expert_dim=1024,
                router=TopK(k=8),
                losses=RoutingLosses(
                    load_balance=LoadBalance(coefficient=0.01),
                    router_z=RouterZ(coefficient=0.001),
                    over_layers="mean",
                ),
            ),
            mesh=MeshConfig(data=-1, expert=8),
        )
    )
    config.data.kind = "memmap"
    config.data.tokenizer.vocab_size = 50304
    config.data.sequence_length = 4096
    config.optimizer.learning_rate = 4e-4
    return config
