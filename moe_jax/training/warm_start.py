"""Warm starts: the parameters of a new run from those of another one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from moe_jax.training.checkpoint import flatten

BY_TOKEN = ("embedding", "head")  # parameters with a row or a column for each token


@dataclass
class WarmStartReport:
    """What became of every tensor."""

    used: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        titles = {
            "used": "used as they are",
            "adapted": "copied cyclically to another number of experts",
            "new": "newly initialised",
            "unused": "of the old run, unused",
        }
        lines = ["warm start:"]
        for name, title in titles.items():
            paths = getattr(self, name)
            lines.append(f"  {len(paths)} tensors {title}" + (":" if paths else ""))
            lines += [f"    {path}" for path in paths]
        return "\n".join(lines)


def warm_start(new: Any, old: Any, *, same_tokens: bool = True) -> tuple[Any, WarmStartReport]:
    """Parameters `new` with the values of `old` where paths and shapes agree.

    Where only the number of experts differs (experts' first axis behind the stack of layers, the
    last axis of a router's kernel), expert i takes the old expert i modulo their number. The rest
    keeps its new initialisation; so do embedding and head where the old run had another tokenizer
    (same_tokens), whose ids mean other tokens. What comes from `old` is numpy, in the new dtype.
    """
    report = WarmStartReport()
    new_flat, structure = flatten(new)
    old_flat, _ = flatten(old)
    values = []
    for name, value in new_flat.items():
        before = old_flat.get(name)
        if not same_tokens and name in BY_TOKEN:
            report.new.append(f"{name} (another tokenizer)")
            values.append(value)
            continue
        axis = _expert_axis(name)
        if before is None:
            report.new.append(name)
        elif before.shape == value.shape:
            report.used.append(name)
            value = np.asarray(before).astype(value.dtype)
        elif axis is not None and _same_but(axis, before, value):
            report.adapted.append(f"{name} {before.shape} -> {value.shape}")
            index = np.arange(value.shape[axis]) % before.shape[axis]
            value = np.take(np.asarray(before), index, axis).astype(value.dtype)
        else:
            report.new.append(name)
            report.unused.append(f"{name} {before.shape}, now {value.shape}")
        values.append(value)
    report.unused += [
        name for name in old_flat if name not in new_flat or (not same_tokens and name in BY_TOKEN)
    ]
    return jax.tree.unflatten(structure, values), report


def _expert_axis(name: str) -> int | None:
    parts = name.split(".")
    return 1 if "experts" in parts else -1 if "router" in parts else None


def _same_but(axis: int, old: Any, new: Any) -> bool:
    def rest(array: Any) -> tuple[int, ...]:
        return tuple(np.delete(np.asarray(array.shape), axis))

    return old.ndim == new.ndim and rest(old) == rest(new)
