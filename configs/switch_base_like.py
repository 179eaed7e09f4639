"""A decoder of Switch-Base's dimensions: 12 layers, D=768, 128 experts of F=2048 in every second.

Paper: Fedus, Zoph, Shazeer, Switch Transformers (2101.03961), table 9 and section 2: one expert
per token, capacity factor 1.25 in training and 2.0 in evaluation, load-balance loss 0.01, jitter
0.01, initial scale 0.1, Adafactor, expert layers in every other layer.
Hardware: 32 devices of the TPU v4 class.
Parameters: 3.73B in all, 0.135B active. Training FLOPs per token at S=512: 0.72 GFLOP.
Where we differ: a decoder on next-token prediction, in place of T5's encoder-decoder on span
corruption (which is why it has 3.7B parameters, not 7.4B); rotary positions.
Data: token files, --config.data.train=FILE --config.data.validation=FILE (docs/data.md).
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.routing import Switch
from moe_jax.routing.losses import LoadBalance, RoutingLosses
from moe_jax.training.experiment import EvalConfig, Experiment


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = to_config_dict(
        Experiment(
            name="switch_base_like",
            steps=100_000,
            batch_size=2048,
            model=DecoderConfig(
                vocab_size=32128,
                num_layers=12,
                model_dim=768,
                num_heads=12,
                num_kv_heads=12,
                head_dim=64,
                mlp_dim=2048,
                activation="geglu",
                init_scale=0.1,
                dtype="bfloat16",
            ),
            moe=MoEConfig(
                num_experts=128,
                expert_dim=2048,
                every=2,
                first=1,
                router=Switch(),
                capacity_factor=1.25,
                layout="slots_scatter",
                losses=RoutingLosses(load_balance=LoadBalance(coefficient=0.01)),
            ),
            evaluation=EvalConfig(every=1000, capacity_factor=2.0),
            mesh=MeshConfig(data=-1, expert=8),
        )
    )
    config.data.kind = "memmap"
    config.data.tokenizer.vocab_size = 32128
    config.data.sequence_length = 512
    config.optimizer.kind = "adafactor"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule.kind = "rsqrt"
    return config
