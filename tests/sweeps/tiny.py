"""A sweep of tiny runs."""

from __future__ import annotations

TINY = [
    "--config.data.kind=planted",
    "--config.data.rows=64",
    "--config.data.validation_rows=16",
    "--config.data.sequence_length=32",
    "--config.steps=6",
    "--config.batch_size=4",
    "--config.model.num_layers=1",
    "--config.model.model_dim=16",
    "--config.moe.expert_dim=16",
    "--config.evaluation.every=3",
    "--config.evaluation.batches=1",
    "--config.checkpoint.every=2",
    "--config.logging.probe_every=0",
]
