"""The next film: a causal Transformer with sparse layers over what somebody has watched.

Histories of 64 films as a text whose words are films (SASRec with experts); 2 layers, D=64, the
second one with 8 experts of F=64, 2 per film, dropless. `--config=configs/movielens.py:dense` is
its iso-FLOP dense twin. The data is fetched with pip.
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.data.movielens import MovieLens100k
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.routing import Mixtral
from moe_jax.routing.losses import LoadBalance, RoutingLosses
from moe_jax.tasks.next_item import NextItem
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.optimizer import AdamW, WarmupCosine
from moe_jax.training.writers import LoggingConfig

DENSE = "dense"


def get_config(arg: str = "") -> ConfigDict:
    return to_config_dict(
        Experiment(
            name="movielens" if arg != DENSE else "movielens, dense",
            steps=300,
            batch_size=128,
            task=NextItem(),
            data=MovieLens100k(),
            model=DecoderConfig(
                num_layers=2,
                model_dim=64,
                num_heads=2,
                num_kv_heads=2,
                head_dim=32,
                mlp_dim=128,
                tie_embeddings=True,
            ),
            moe=MoEConfig(
                every=0 if arg == DENSE else 2,
                first=1,
                num_experts=8,
                expert_dim=64,
                router=Mixtral(k=2),
                receive_factor=8.0,
                losses=RoutingLosses(load_balance=LoadBalance(coefficient=0.01)),
            ),
            optimizer=AdamW(
                learning_rate=2e-3, weight_decay=0.5, schedule=WarmupCosine(warmup_steps=50)
            ),
            evaluation=EvalConfig(every=50, batches=-1),
            checkpoint=CheckpointConfig(every=100),
            logging=LoggingConfig(every=20, load_every=100, probe_every=100),
        )
    )
