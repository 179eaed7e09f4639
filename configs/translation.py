"""Translation: descriptions of software packages, ten languages with English, both ways, with a
small sparse encoder-decoder.

3 + 3 layers, D=128, 8 experts of F=256, 2 per token in every second layer of both halves; 64 pairs
of up to 48 pieces a step. Its iso-FLOP dense twin: --config=configs/translation.py:dense. One model
for all pairs, as GShard's M4; Danish into English alone, 2 + 2 layers, in a few minutes:
--config=configs/translation.py:danish (and :danish-dense). Needs the extras `text` and
`translation`; the descriptions are fetched with apt. Without apt:
--config.data.kind=interface_texts.
"""

from ml_collections import ConfigDict

from moe_jax.config.tree import to_config_dict
from moe_jax.data.package_descriptions import PackageDescriptions
from moe_jax.data.tokenizer import Bpe
from moe_jax.models.encoder_decoder import EncoderDecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.routing import Mixtral
from moe_jax.routing.losses import LoadBalance, RouterZ, RoutingLosses
from moe_jax.tasks.translation import Translation
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.optimizer import AdamW, WarmupCosine
from moe_jax.training.writers import LoggingConfig

DENSE, DANISH = "dense", "danish"


def get_config(arg: str = "") -> ConfigDict:
    words = set(arg.split("-")) if arg else set()
    data = PackageDescriptions(sequence_length=48, tokenizer=Bpe(vocab_size=8192))
    if DANISH in words:
        data = PackageDescriptions(
            languages=("da",),
            direction="to_english",
            sequence_length=32,
            tokenizer=Bpe(vocab_size=4096),
        )
    return to_config_dict(
        Experiment(
            name=", ".join(["translation", *sorted(words)]),
            steps=800 if DANISH in words else 3000,
            batch_size=64,
            task=Translation(written=256),
            data=data,
            model=EncoderDecoderConfig(
                num_layers=4 if DANISH in words else 6,
                model_dim=128,
                num_heads=4,
                num_kv_heads=4,
                head_dim=32,
                mlp_dim=512,
                tie_embeddings=True,
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
            optimizer=AdamW(learning_rate=2e-3, schedule=WarmupCosine(warmup_steps=100)),
            evaluation=EvalConfig(every=200 if DANISH in words else 500, batches=16),
            checkpoint=CheckpointConfig(every=200 if DANISH in words else 500),
            logging=LoggingConfig(load_every=10, probe_every=50),
        )
    )
