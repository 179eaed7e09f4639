"""Topics: what a software package is about, by its description, with a small sparse encoder.

26 sections of Debian; 4 layers, D=128, 8 experts of F=256, 2 per token in every second layer; 64
rows of 128 pieces a step. Its iso-FLOP dense twin: --config=configs/topics.py:dense; in all eleven
languages: --config=configs/topics.py:languages; the packages' tags, several for each, in place of
one topic: --config=configs/topics.py:tags. Words are joined, :tags-dense. Needs the extra `text`;
the descriptions are fetched with apt.
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.data.debian import ENGLISH, LANGUAGES
from moe_jax.data.package_sections import PackageSections
from moe_jax.data.package_tags import PackageTags
from moe_jax.data.tokenizer import Bpe
from moe_jax.models.encoder import EncoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.routing import Mixtral
from moe_jax.routing.losses import LoadBalance, RouterZ, RoutingLosses
from moe_jax.tasks.classification import Classification
from moe_jax.tasks.tagging import Tagging
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.optimizer import AdamW, WarmupCosine
from moe_jax.training.writers import LoggingConfig

DENSE, ALL, TAGS = "dense", "languages", "tags"


def get_config(arg: str = "") -> ConfigDict:
    words = set(arg.split("-")) if arg else set()
    topics = PackageSections(
        sequence_length=128,
        languages=LANGUAGES if ALL in words else (ENGLISH,),
        tokenizer=Bpe(vocab_size=8192),
    )
    tags = PackageTags(sequence_length=128, tokenizer=Bpe(vocab_size=8192))
    return to_config_dict(
        Experiment(
            name=", ".join(["topics", *sorted(words)]),
            steps=400,
            batch_size=64,
            task=Tagging() if TAGS in words else Classification(label_smoothing=0.1),
            data=tags if TAGS in words else topics,
            model=EncoderConfig(
                num_layers=4, model_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=512
            ),
            moe=MoEConfig(
                every=0 if DENSE in words else 2,
                first=1,
                num_experts=8,
                expert_dim=256,
                router=Mixtral(k=2),
                receive_factor=8.0,
                losses=RoutingLosses(
                    load_balance=LoadBalance(coefficient=0.01),
                    router_z=RouterZ(coefficient=0.001),
                    over_layers="mean",
                ),
            ),
            optimizer=AdamW(learning_rate=1e-3, schedule=WarmupCosine(warmup_steps=50)),
            evaluation=EvalConfig(every=100, batches=-1),
            checkpoint=CheckpointConfig(every=100),
            logging=LoggingConfig(load_every=10, probe_every=50),
        )
    )
