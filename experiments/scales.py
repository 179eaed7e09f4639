"""The sizes that cards share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.card import Scale

# The quickstart's model on the corpus of known structure, where paired seeds agree to 0.01 bits
# after few steps; warm-up and evaluations shortened with it.
PLANTED: dict[str, Any] = {
    "steps": 300,
    "data.kind": "planted",
    "optimizer.schedule.warmup_steps": 20,
    "moe.losses.load_balance.coefficient": 0.0,
    "moe.losses.router_z.coefficient": 0.0,
    "evaluation.every": 0,
    "evaluation.batches": -1,
    "checkpoint.every": 150,
    "logging.probe_every": 0,
}
# The quickstart itself: bytes of source code.
TEXT: dict[str, Any] = {
    "moe.losses.load_balance.coefficient": 0.0,
    "moe.losses.router_z.coefficient": 0.0,
    "logging.probe_every": 0,
}


def tiny(seeds: int, overrides: Mapping[str, Any] | None = None) -> Scale:
    """2 CPU cores: 1.2M tokens a run, 1.5 to 2 minutes each."""
    return Scale(
        config="configs/quickstart.py", seeds=seeds, overrides={**PLANTED, **(overrides or {})}
    )


def small(seeds: int, overrides: Mapping[str, Any] | None = None) -> Scale:
    """One accelerator: 40M tokens of source code a run."""
    given = {**TEXT, "steps": 10_000, "evaluation.every": 1000, **(overrides or {})}
    return Scale(config="configs/quickstart.py", seeds=seeds, overrides=given)


# How the configs of a pod's size are laid out, so that their dense twins fit too.
OLMOE_LAYOUT = {"mesh.data": 1, "mesh.fsdp": 16, "accumulation": 4}
DEEPSEEK_LAYOUT = {"mesh.fsdp": 16, "accumulation": 18, "model.remat": "full"}


def pod(
    config: str, topology: str, seeds: int, overrides: Mapping[str, Any] | None = None
) -> Scale:
    """The paper's own size, as near as a decoder comes to it; without the config's own balance
    loss, which is the arms' to set."""
    given = {"moe.losses.load_balance.coefficient": 0.0, **(overrides or {})}
    return Scale(config=config, seeds=seeds, overrides=given, topology=topology)
