"""Workdirs as a training run writes them, without a training run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def write_run(
    workdir: Path,
    *,
    steps: int = 400,
    total: int | None = None,
    layers: int = 4,
    experts: int = 8,
    k: int = 2,
    every: int = 10,
    load_every: int = 10,
    capacity_factor: float | None = None,
    quality: float = 0.0,
    seed: int = 0,
) -> Path:
    """A run of `layers` layers that has come to `steps` of `total` steps; dense with experts=0.

    quality: what is added to its cross-entropy at the end. Loads start skewed and even out.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    moe = {"num_experts": experts, "router": {"kind": "mixtral", "k": k}}
    config = {
        "name": workdir.name,
        "seed": seed,
        "steps": total or steps,
        "batch_size": 16,
        "data": {"kind": "stdlib_text", "sequence_length": 256},
        "model": {"num_layers": layers, "model_dim": 128, "dtype": "float32"},
        "moe": {**moe, "every": int(experts > 0), "capacity_factor": capacity_factor},
        "schedules": [],
    }
    environment = {
        "python": "3.11.7",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "git": {"revision": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "devices": {"platform": "cpu", "kind": "cpu", "count": 1},
        "mesh": {"data": 1, "expert": 1},
    }
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "environment.json").write_text(json.dumps(environment))
    routing = Routing(rng, layers, experts, k, capacity_factor) if experts else None
    with (workdir / "metrics.jsonl").open("w") as file:
        for line in lines(rng, routing, steps, total or steps, every, load_every, quality):
            file.write(json.dumps(line) + "\n")
    return workdir


class Routing:
    """Loads by layer that wander, and the metrics that follow from them."""

    def __init__(self, rng: np.random.Generator, layers: int, experts: int, k: int, factor: Any):
        self.rng, self.k, self.factor = rng, k, factor
        self.taste_LE = rng.normal(0, 1, (layers, experts))
        self.taste_LE[:, 0] += 1.5
        self.drift_LE = np.zeros((layers, experts))

    def loads(self, progress: float) -> np.ndarray:
        self.drift_LE = 0.97 * self.drift_LE + 0.05 * self.rng.normal(size=self.drift_LE.shape)
        depth = np.linspace(0.7, 1.2, len(self.taste_LE))[:, None]
        skew = 1.3 * np.exp(-9 * progress) + 0.12
        logits = depth * (skew * self.taste_LE + self.drift_LE)
        noisy = np.exp(logits + 0.05 * self.rng.normal(size=logits.shape))
        return noisy / noisy.sum(axis=1, keepdims=True)

    def metrics(self, load_LE: np.ndarray, progress: float) -> dict[str, float]:
        E = load_LE.shape[1]
        relative = load_LE * E
        capacity = np.inf if self.factor is None else self.factor
        entropy = np.log(E) * (0.45 + 0.5 * np.exp(-3 * progress)) * np.ones(len(load_LE))
        values = {
            "load_balance_loss": 1 + 0.5 * np.var(relative, axis=1),
            "router_z_loss": 1.5 + 3 * progress + 0.1 * self.rng.random(len(load_LE)),
            "router_entropy": entropy - 0.03 * np.arange(len(load_LE)),
            "max_violation": relative.max(axis=1) - 1,
            "load_cv": relative.std(axis=1),
            "dead_experts": (relative < 0.05).sum(axis=1),
            "dropped_fraction": np.maximum(relative - capacity, 0).sum(axis=1) / E,
            "dropped_token_fraction": np.maximum(relative - capacity, 0).sum(axis=1) / E / 4,
            "overflow_fraction": np.zeros(len(load_LE)),
        }
        if self.factor is not None:
            used = np.minimum(relative, capacity).sum(axis=1) / E / capacity
            values["capacity_utilization"] = used
        found = named(values)
        found["moe/max_violation"] = float(values["max_violation"].max())
        if self.factor is not None:
            found["moe/capacity_factor"] = self.factor
        return found

    def probe(self, progress: float) -> dict[str, float]:
        noise = 0.02 * self.rng.random((3, len(self.taste_LE)))
        churn = 0.15 + 0.6 * np.exp(-5 * progress) + noise[0]
        margin = 0.1 + 0.3 * progress + noise[2]
        values = {"churn": churn, "overlap": 1 - churn / self.k, "margin": margin}
        return named({f"probe/{name}": value for name, value in values.items()})


def named(values: dict[str, np.ndarray]) -> dict[str, float]:
    """`moe/NAME`, the mean, and `moe/layer_07/NAME`."""
    found = {}
    for name, value_L in values.items():
        found[f"moe/{name}"] = float(np.mean(value_L))
        found |= {f"moe/layer_{n:02d}/{name}": float(v) for n, v in enumerate(value_L)}
    return found


def lines(
    rng: np.random.Generator,
    routing: Routing | None,
    steps: int,
    total: int,
    every: int,
    load_every: int,
    quality: float,
) -> Iterator[dict[str, Any]]:
    for step in range(every, steps + 1, every):
        progress = step / total
        load_LE = None if routing is None else routing.loads(progress)
        line = {"step": step, "split": "train", **learning(rng, step, progress, quality)}
        line |= {"learning_rate": 1e-3 * min(step / (0.1 * total), 1) * (1 - 0.9 * progress)}
        line |= {"grad_norm": 0.4 + 3 * np.exp(-30 * progress) + 0.1 * rng.random()}
        line |= {"loss": line["cross_entropy"] + 0.012}
        if step > every:
            rate = 5400 + 200 * rng.normal()
            line |= {"tokens_per_s": rate, "step_time_s": 4096 / rate}
        line["flops_per_token"] = 2.4e6
        if routing is not None:
            line |= routing.metrics(load_LE, progress)
            if load_every and step % load_every == 0:
                line |= lists("load", load_LE)
                line |= lists("expert_grad_norm", 0.01 * load_LE * (1 + rng.random(load_LE.shape)))
        yield line
        if routing is not None and step % (5 * every) == 0:
            yield {"step": step, "split": "train", **routing.probe(progress)}
        if step % max(total // 8 // every * every, every) == 0:
            line = {"step": step, "split": "eval", **learning(rng, step, progress, quality, 0.01)}
            if routing is not None:
                line |= routing.metrics(load_LE, progress) | lists("load", load_LE)
                line |= lists("gate_mass", load_LE**2 / (load_LE**2).sum(1, keepdims=True))
                if routing.factor is not None:
                    line |= lists("dropped_by_rank", 0.1 * load_LE[:, : routing.k])
                    line |= lists("dropped_by_position", 0.2 * rng.random((len(load_LE), 8)))
            yield line


def lists(name: str, value_LE: np.ndarray) -> dict[str, list[float]]:
    return {f"moe/layer_{n:02d}/{name}": row.tolist() for n, row in enumerate(value_LE)}


def learning(
    rng: np.random.Generator, step: int, progress: float, quality: float, noise: float = 0.06
) -> dict[str, float]:
    nats = 1.45 + 1.6 * np.exp(-4.5 * progress) + 2.5 * np.exp(-step / 12)
    nats += quality * (2 * progress - 1) + noise * rng.normal()
    return {
        "cross_entropy": nats,
        "perplexity": float(np.exp(nats)),
        "accuracy": float(np.exp(-0.37 * nats)),
        "bits_per_byte": nats / float(np.log(2)),
    }
