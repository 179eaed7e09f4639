"""DeepSeekMoE 16B: 28 layers, D=2048, 64 fine-grained experts of F=1408 and 2 shared, 6 per token.

Paper: Dai et al., DeepSeekMoE (2401.06066), section 5.1.2: the first layer is dense (10944),
load-balance loss 0.001 over each sequence's experts, no drops, learning rate 4.2e-4.
Hardware: 256 devices of the TPU v5e class, or 64 of the H100 class.
Parameters: 16.38B in all, 2.83B active. Training FLOPs per token at S=4096: 18.53 GFLOP.
Data: token files, --config.data.train=FILE --config.data.validation=FILE (docs/data.md).
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.routing.losses import LoadBalance, RoutingLosses
from moe_jax.routing.token_choice.top_k import TopK
from moe_jax.training.experiment import Experiment


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = to_config_dict(
        Experiment(
            name="deepseek_moe_16b",
            steps=106_449,
            batch_size=4608,
            model=DecoderConfig(
                vocab_size=102400,
                num_layers=28,
                model_dim=2048,
                num_heads=16,
                num_kv_heads=16,
                head_dim=128,
                mlp_dim=10944,
                dtype="bfloat16",
                remat="received",
            ),
            moe=MoEConfig(
                num_experts=64,
                expert_dim=1408,
                num_shared=2,
                first=1,
                router=TopK(k=6),
                losses=RoutingLosses(load_balance=LoadBalance(coefficient=0.001, scope="row")),
            ),
            mesh=MeshConfig(data=-1, fsdp=4, expert=16),
        )
    )
    config.data.kind = "memmap"
    config.data.tokenizer.vocab_size = 102400
    config.data.sequence_length = 4096
    config.optimizer.learning_rate = 4.2e-4
    return config
