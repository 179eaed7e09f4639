"""Train, Swissmetro or car: the utility of each alternative by a gate over one pool of experts.

12 facts of a person and a journey, 8 times and costs; the choice is a softmax over the utilities of
what is available, as in a multinomial logit. 8 experts of F=16, all of which each alternative's
gate weighs; `--config=configs/swissmetro.py:top2` has gates that choose two, `:shared_bottom` one
dense network below the towers. `:dense` is the iso-FLOP twin of three gates over all experts: a
shared bottom as much wider as the mixtures and their gates multiply. The data is fetched with pip.
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.data.swissmetro import ALTERNATIVES, Swissmetro
from moe_jax.models.recommender import RecommenderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.nn.sharing import MultiGate, SharedBottom
from moe_jax.routing import DenseMixture, Mixtral
from moe_jax.routing.losses import LoadBalance, RoutingLosses
from moe_jax.tasks.choice import DiscreteChoice
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.optimizer import AdamW, WarmupCosine
from moe_jax.training.writers import LoggingConfig

DENSE = ("shared_bottom", "dense")
ISO_FLOP = 396  # of `dense`: 8 experts of 16 and a gate of 8 (2 D F = 2 D 8 16 + 8 D), three times


def get_config(arg: str = "mmoe") -> ConfigDict:
    name = arg or "mmoe"
    return to_config_dict(
        Experiment(
            name=f"swissmetro, {name}",
            steps=150,
            batch_size=256,
            task=DiscreteChoice(among=tuple(ALTERNATIVES)),
            data=Swissmetro(),
            model=RecommenderConfig(
                num_layers=1,
                model_dim=32,
                mlp_dim=ISO_FLOP if name == "dense" else 128,  # 128: what one gate multiplies
                activation="relu",
                embedding_dim=4,
                tower_dim=16,
                sharing=SharedBottom() if name in DENSE else MultiGate(),
            ),
            moe=MoEConfig(
                every=0 if name in DENSE else 1,
                num_experts=8,
                expert_dim=16,
                router=Mixtral(k=2) if name == "top2" else DenseMixture(),
                losses=RoutingLosses(
                    load_balance=LoadBalance(coefficient=0.01 if name == "top2" else 0.0)
                ),
                group_size=8,
                receive_factor=8.0,
            ),
            optimizer=AdamW(
                learning_rate=2e-3, weight_decay=1.0, schedule=WarmupCosine(warmup_steps=20)
            ),
            evaluation=EvalConfig(every=50, batches=-1),
            checkpoint=CheckpointConfig(every=50),
            logging=LoggingConfig(every=10, load_every=50, probe_every=50),
        )
    )
