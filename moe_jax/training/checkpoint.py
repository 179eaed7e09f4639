"""Checkpoints of a run, by Orbax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moe_jax.config.fields import Rule, at_least


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Save every `every` steps (and at the end and on SIGTERM/SIGINT); keep the newest `keep_last`
    and, for ever, each whose step is a multiple of `keep_every` (0: none)."""

    every: int = 500
    keep_last: int = 3
    keep_every: int = 0
    verify: bool = True  # check the sha256 manifest on load

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "every", "keep_last")
        yield from at_least(self, 0, "keep_every")
