"""Income and marriage: two targets of a census by a multi-gate mixture of experts.

39 answers of a person; 8 experts of F=32, all of which each target's gate weighs (a softmax over
all, as in the MMoE paper), and a tower for each target. `--config=configs/census.py:ple` has two
levels with experts of each target's own, `:shared_bottom` one dense network below the towers,
`:single` one for each target, as if each were trained alone, and `:top2` gates that choose two
experts. `:dense` is the iso-FLOP twin of two gates over all experts: a shared bottom as much wider
as both mixtures and their gates multiply. The data is fetched with pip.
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.data.census_income import TARGETS, CensusIncome
from moe_jax.models.recommender import RecommenderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.nn.sharing import Extraction, MultiGate, SharedBottom, Sharing, Single
from moe_jax.routing import DenseMixture, Mixtral
from moe_jax.routing.losses import LoadBalance, RoutingLosses
from moe_jax.tasks.multi_task import MultiTask
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.optimizer import AdamW, WarmupCosine
from moe_jax.training.writers import LoggingConfig

SHARED: dict[str, Sharing] = {
    "mmoe": MultiGate(),
    "top2": MultiGate(),
    "ple": Extraction(own_experts=2),
    "shared_bottom": SharedBottom(),
    "dense": SharedBottom(),
    "single": Single(),
}
DENSE = ("shared_bottom", "dense", "single")
ISO_FLOP = 520  # of `dense`: 8 experts of 32 and a gate of 8 (2 D F = 2 D 8 32 + 8 D), twice


def get_config(arg: str = "mmoe") -> ConfigDict:
    name = arg or "mmoe"
    return to_config_dict(
        Experiment(
            name=f"census, {name}",
            steps=2000,
            batch_size=512,
            task=MultiTask(binary=TARGETS),
            data=CensusIncome(),
            model=RecommenderConfig(
                num_layers=2 if name == "ple" else 1,
                model_dim=64,
                mlp_dim=ISO_FLOP if name == "dense" else 256,  # 256: what one gate multiplies
                activation="relu",
                embedding_dim=8,
                tower_dim=32,
                sharing=SHARED[name],
            ),
            moe=MoEConfig(
                every=0 if name in DENSE else 1,
                num_experts=8,
                expert_dim=32,
                router=Mixtral(k=2) if name == "top2" else DenseMixture(),
                losses=RoutingLosses(
                    load_balance=LoadBalance(coefficient=0.01 if name == "top2" else 0.0)
                ),
                group_size=8,
                receive_factor=8.0,
            ),
            optimizer=AdamW(learning_rate=2e-3, schedule=WarmupCosine(warmup_steps=100)),
            evaluation=EvalConfig(every=500, batches=-1, batch_size=2048),
            checkpoint=CheckpointConfig(every=500),
            logging=LoggingConfig(every=50, load_every=250, probe_every=250),
        )
    )
