"""The climate of a pixel by colour and context alone, and with its latitude beside them."""

from __future__ import annotations

from typing import Any

from experiments.card import Card, Scale
from moe_jax.training.experiment import Experiment

CONFIG = "configs/segmentation.py"


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    return {"withheld": {"data.latitude": False}, "given": {"data.latitude": True}}


CARD = Card(
    title="Latitude",
    arms=arms,
    scales={
        "tiny": Scale(config=CONFIG, seeds=3, overrides={"logging.probe_every": 0}),
        "small": Scale(config=CONFIG, seeds=5, overrides={"steps": 10_000, "batch_size": 64}),
    },
    shown=("mean_iou", "iou/tropical", "iou/temperate", "iou/ocean", "pixel_accuracy"),
)
