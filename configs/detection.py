"""Detection: clothes on satellite pictures and photographs, by a small sparse DETR.

Scenes of 64 x 64 pixels in 8 x 8 patches; an encoder and a decoder of 2 layers each, D=96, the
second of each with 8 experts of F=96, 2 per patch or query, dropless. Its iso-FLOP dense twin:
--config=configs/detection.py:dense. Needs the extra `vision`; clothes are fetched with apt, the
satellite picture with pip. Without apt: --config.data.kind=digit_scenes.

`together`, and `together-dense` beside it: three data sets in one run, the scenes, craters and
printed pages, whose classes are 16 in all; pages are prepared with poppler's programs
(data/pages.py).
"""

from ml_collections import ConfigDict

from moe_jax.config.errors import UserError
from moe_jax.config.tree import to_config_dict
from moe_jax.data.box_mixture import BoxMixture
from moe_jax.data.scenes import Scenes
from moe_jax.models.detector import DetectorConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.routing import VMoE
from moe_jax.routing.losses import Importance, Load, RoutingLosses
from moe_jax.tasks.detection import Detection
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.optimizer import AdamW, WarmupCosine
from moe_jax.training.writers import LoggingConfig

DENSE, TOGETHER = "dense", "together"
ARGUMENTS = ("", DENSE, TOGETHER, f"{TOGETHER}-{DENSE}")
PARTS = ("scenes: 1", "craters: 1", "pages(languages=(en, ru, zh_CN)): 1")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in ARGUMENTS:
        raise UserError(f"configs/detection.py takes no argument or {', '.join(ARGUMENTS[1:])}")
    dense = arg.endswith(DENSE)
    return to_config_dict(
        Experiment(
            name=", ".join(["detection", *arg.split("-")]) if arg else "detection",
            steps=1600,
            batch_size=16,
            # Classes are what few steps do not suffice for: three times their usual weight.
            task=Detection(class_weight=6.0),
            data=BoxMixture(parts=PARTS) if arg.startswith(TOGETHER) else Scenes(),
            model=DetectorConfig(
                num_layers=4,
                model_dim=96,
                num_heads=4,
                num_kv_heads=4,
                head_dim=24,
                mlp_dim=192,
                activation="gelu",
            ),
            moe=MoEConfig(
                every=0 if dense else 2,
                first=1,
                num_experts=8,
                expert_dim=96,
                router=VMoE(k=2),
                receive_factor=8.0,
                losses=RoutingLosses(
                    importance=Importance(coefficient=0.005), load=Load(coefficient=0.005)
                ),
            ),
            optimizer=AdamW(learning_rate=2e-3, schedule=WarmupCosine(warmup_steps=100)),
            evaluation=EvalConfig(every=400, batches=-1, batch_size=64),
            checkpoint=CheckpointConfig(every=400),
            logging=LoggingConfig(load_every=10, probe_every=50),
        )
    )
