"""Where metrics go: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moe_jax.config.fields import Rule, at_least


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is written, and how often (in steps; 0: never)."""

    every: int = 10  # training metrics
    load_every: int = 50  # load per layer and expert (heat maps, histograms)
    probe_every: int = 50  # routes of one fixed batch: churn, margin, overlap
    tensorboard: bool = True
    wandb: bool = False
    profile_steps: tuple[int, ...] = ()  # (first, last): a profiler trace of these steps

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "every")
        yield from at_least(self, 0, "load_every", "probe_every")
        if len(self.profile_steps) not in (0, 2):
            yield "profile_steps", "must be empty or (first, last)"
