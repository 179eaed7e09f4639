"""What the expert of a token tells: the topic of its text, or the language."""

from __future__ import annotations

from typing import Any

from experiments.card import Card, Scale
from moe_jax.analysis.specialisation import domain_counts, mutual_information
from moe_jax.notebook import LoadedRun
from moe_jax.training.experiment import Experiment

CONFIG = "configs/topics.py:languages"
BATCHES = 40  # of evaluation, about 2,560 texts
OF = {"topic": "class", "language": "domain"}


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    return {"eleven languages": {}}


def measure(run: LoadedRun) -> dict[str, float]:
    """Bits that an assignment's expert tells about the topic and the language of its text: of each
    sparse layer, and the mean."""
    trace = run.trace(BATCHES)
    found: dict[str, float] = {}
    for what, by in OF.items():
        counts_LDE, _ = domain_counts(trace, by)
        bits = [mutual_information(counts_DE) for counts_DE in counts_LDE]
        found[f"bits of {what}"] = sum(bits) / len(bits)
        names = ("first", *(f"layer {layer}" for layer in trace.layers_L[1:-1]), "last")
        found |= {f"bits of {what}, {name}": x for name, x in zip(names, bits, strict=True)}
    return found


CARD = Card(
    title="Topic or language",
    arms=arms,
    scales={
        "tiny": Scale(
            config=CONFIG,
            seeds=3,
            overrides={"evaluation.every": 0, "evaluation.batches": 40, "logging.probe_every": 0},
        ),
        "small": Scale(config=CONFIG, seeds=5, overrides={"steps": 10_000}),
    },
    measure=measure,
    shown=(
        "accuracy",
        *(f"bits of {what}{at}" for what in OF for at in ("", ", first", ", last")),
    ),
)
