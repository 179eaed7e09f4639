"""The next film: a causal Transformer with sparse layers over what somebody has watched.

Histories of 64 films as a text whose words are films (SASRec with experts); 2 layers, D=64, the
second one with 8 experts of F=64, 2 per film, dropless. `--config=configs/movielens.py:dense` is
its iso-FLOP dense twin.

`--config=configs/movielens.py:rating` tells how many stars somebody gives a film, by the ids of
both and what is known of them: a recommender with 8 experts of F=32, 2 a rating; `:rating-dense` is
its iso-FLOP dense twin. The data is fetched with pip.
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.data.movielens import MovieLens100k
from moe_jax.data.movielens_ratings import TARGETS, MovieLensRatings
from moe_jax.models.decoder import DecoderConfig
from moe_jax.models.recommender import RecommenderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.nn.sharing import SharedBottom
from moe_jax.routing import Mixtral
from moe_jax.routing.losses import LoadBalance, RoutingLosses
from moe_jax.tasks.multi_task import MultiTask
from moe_jax.tasks.next_item import NextItem
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.optimizer import AdamW, WarmupCosine
from moe_jax.training.writers import LoggingConfig

DENSE = "dense"
RATING, RATING_DENSE = "rating", "rating-dense"
ISO_FLOP = 68  # of `rating-dense`: 2 experts of 32 and a router of 8 (2 D F = 2 D 2 32 + 8 D)


def get_config(arg: str = "") -> ConfigDict:
    if arg in (RATING, RATING_DENSE):
        return rating(dense=arg == RATING_DENSE)
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


def rating(dense: bool) -> ConfigDict:
    return to_config_dict(
        Experiment(
            name="ratings, dense" if dense else "ratings",
            steps=1500,
            batch_size=512,
            task=MultiTask(real=TARGETS),
            data=MovieLensRatings(),
            model=RecommenderConfig(
                num_layers=1,
                model_dim=64,
                mlp_dim=ISO_FLOP,
                activation="relu",
                embedding_dim=16,
                tower_dim=32,
                sharing=SharedBottom(),
            ),
            moe=MoEConfig(
                every=0 if dense else 1,
                num_experts=8,
                expert_dim=32,
                router=Mixtral(k=2),
                losses=RoutingLosses(load_balance=LoadBalance(coefficient=0.01)),
                group_size=8,
                receive_factor=8.0,
            ),
            optimizer=AdamW(
                learning_rate=2e-3, weight_decay=2.0, schedule=WarmupCosine(warmup_steps=50)
            ),
            evaluation=EvalConfig(every=500, batches=-1, batch_size=2048),
            checkpoint=CheckpointConfig(every=500),
            logging=LoggingConfig(every=50, load_every=250, probe_every=250),
        )
    )
