"""Optimizers by name, learning-rate schedules, parameter groups."""
from __future__ import annotations
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    pass
