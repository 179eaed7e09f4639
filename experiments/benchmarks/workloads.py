"""Choices of experts with a known skew, for benchmarks and tests.

A workload is a function (T, E, k, rng, *, step, devices) -> expert_TK, int32, the choices of T
tokens among E experts, best first, distinct for each token. Devices hold contiguous blocks of
E / devices experts. What is not skewed is filled evenly: the experts that are not hot take turns,
so that their counts differ by at most 1 (`uniform` is the one that leaves it to chance). With
MaxVio = (max load - mean load) / mean load (2408.15664), mean load = T k / E, each states its own;
it is exact where the divisions are, and where the hot experts have the largest load.

All raise ValueError where the numbers leave no distinct choices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from moe_jax.routing.choice import choose
from moe_jax.routing.types import Assignments, RouterInputs

Choices = Int[np.ndarray, "T K"]


def balanced(
    T: int, E: int, k: int, rng: np.random.Generator, *, step: int = 0, devices: int = 1
) -> Choices:
    """Every expert is wanted equally often: token t wants t k, ..., t k + k - 1 modulo E.

    Exact where E divides T k; else loads differ by at most 1. MaxVio 0.
    """
    return _fill(T, k, np.arange(E))


def uniform(
    T: int, E: int, k: int, rng: np.random.Generator, *, step: int = 0, devices: int = 1
) -> Choices:
    """Every token wants k experts at random, independently, all sets alike.

    The load of an expert is binomial, B(T, k / E); MaxVio is of the order of
    sqrt(2 ln(E) (1 - k/E) E / (T k)).
    """
    _check_choices(k, E)
    return np.argsort(rng.random((T, E)), axis=1)[:, :k].astype(np.int32)


def hot_expert(
    T: int,
    E: int,
    k: int,
    rng: np.random.Generator,
    *,
    step: int = 0,
    devices: int = 1,
    share: float = 0.5,
    expert: int = 0,
) -> Choices:
    """One expert is the first choice of a share of the tokens (which, is drawn), and no choice of
    the others.

    Load round(share T) of the hot expert, exactly. MaxVio share E / k - 1.
    """
    hot_T = _hot_tokens(T, share, rng)
    lead_N1 = np.full((int(hot_T.sum()), 1), expert % E)
    return _fill(T, k, np.delete(np.arange(E), expert % E), hot_T, lead_N1)


def hot_device(
    T: int,
    E: int,
    k: int,
    rng: np.random.Generator,
    *,
    step: int = 0,
    devices: int = 1,
    share: float = 0.5,
) -> Choices:
    """A share of the tokens wants only experts of the first device, the others none of them.

    The device gets round(share T) k assignments, exactly. MaxVio share devices - 1, of devices and
    of experts. One device: balanced.
    """
    size = _device_size(E, devices)
    if devices == 1:
        return balanced(T, E, k, rng)
    hot_T = _hot_tokens(T, share, rng)
    expert_TK = np.empty((T, k), np.int32)
    for mask_T, pool in ((hot_T, np.arange(size)), (~hot_T, np.arange(size, E))):
        expert_TK[mask_T] = _fill(int(mask_T.sum()), k, pool)
    return expert_TK


def spread_hot(
    T: int,
    E: int,
    k: int,
    rng: np.random.Generator,
    *,
    step: int = 0,
    devices: int = 1,
    share: float = 0.75,
) -> Choices:
    """The first expert of every device is hot: a share of the tokens wants only those, the others
    none of them. Experts are skewed, devices balanced.

    Load share T k / devices of a hot expert. MaxVio of experts share E / devices - 1, of devices 0.
    Where k > devices, a hot token wants all the hot experts and others beside them: MaxVio
    share E / k - 1. Hot is more than the mean only where that is above 0.
    """
    hot_D = np.arange(devices) * _device_size(E, devices)
    hot_T = _hot_tokens(T, share, rng)
    lead_NH = _fill(int(hot_T.sum()), min(k, devices), hot_D)
    # The others device by device in turns, so that devices stay even in every stretch.
    others_DN = np.delete(np.arange(E).reshape(devices, -1), 0, axis=1)
    return _fill(T, k, others_DN.T.reshape(-1), hot_T, lead_NH)


def empty_device(
    T: int, E: int, k: int, rng: np.random.Generator, *, step: int = 0, devices: int = 1
) -> Choices:
    """No token wants an expert of the last device; the others are balanced. Two devices at least.

    MaxVio of experts and of devices 1 / (devices - 1).
    """
    size = _device_size(E, devices)
    return _fill(T, k, np.arange(E - size))


def rotating(
    T: int,
    E: int,
    k: int,
    rng: np.random.Generator,
    *,
    step: int = 0,
    devices: int = 1,
    share: float = 0.5,
) -> Choices:
    """`hot_expert` with expert step modulo E. MaxVio share E / k - 1 in each step; over E steps,
    experts are balanced."""
    return hot_expert(T, E, k, rng, share=share, expert=step % E)


def burst(
    T: int,
    E: int,
    k: int,
    rng: np.random.Generator,
    *,
    step: int = 0,
    devices: int = 1,
    share: float = 0.5,
    every: int = 4,
) -> Choices:
    """`balanced`, but `hot_expert` in every n-th step: steps every - 1, 2 every - 1, ...

    MaxVio share E / k - 1 in those, 0 in the others.
    """
    if every < 1:
        raise ValueError(f"every = {every}: must be at least 1")
    if (step + 1) % every:
        return balanced(T, E, k, rng)
    return hot_expert(T, E, k, rng, share=share)


def all_to_one(
    T: int, E: int, k: int, rng: np.random.Generator, *, step: int = 0, devices: int = 1
) -> Choices:
    """Every token's first choice is expert 0; further choices are of the others, in turns.

    Load T of expert 0. MaxVio E / k - 1, the largest that k distinct choices allow.
    """
    return hot_expert(T, E, k, rng, share=1.0)


WORKLOADS: dict[str, Callable[..., Choices]] = {
    "balanced": balanced,
    "uniform": uniform,
    "hot_expert": hot_expert,
    "hot_device": hot_device,
    "spread_hot": spread_hot,
    "empty_device": empty_device,
    "rotating": rotating,
    "burst": burst,
    "all_to_one": all_to_one,
}


def workload_assignments(
    name: str,
    T: int,
    E: int,
    k: int,
    rng: np.random.Generator,
    *,
    step: int = 0,
    devices: int = 1,
    drop_order: str = "token_major",
    **options: Any,
) -> Assignments:
    """The assignments of a workload of the table, with equal weights 1 / k.

    options: the workload's own (`share`, `expert`, `every`). drop_order: see `choose`.
    """
    expert_TK = WORKLOADS[name](T, E, k, rng, step=step, devices=devices, **options)
    place_T = jnp.arange(T, dtype=jnp.int32)
    inputs = RouterInputs(
        x_TD=jnp.zeros((T, 1), jnp.float32),
        valid_T=jnp.ones((T,), bool),
        id_T=place_T,
        position_T=place_T,
        segment_T=jnp.ones((T,), jnp.int32),
        E=E,
    )
    weight_TK = jnp.full((T, k), 1 / k, jnp.float32)
    return choose(weight_TK, jnp.asarray(expert_TK), inputs, E, drop_order)


def _fill(
    T: int,
    k: int,
    pool_P: np.ndarray,
    hot_T: np.ndarray | None = None,
    lead_NH: np.ndarray | None = None,
) -> np.ndarray:
    """k choices of each token: the next ones of the pool, in turns; the N hot tokens have the H of
    lead_NH first.

    Consecutive members of the pool are distinct while a token takes at most P of them.
    """
    if hot_T is None or lead_NH is None:
        hot_T, lead_NH = np.zeros(T, bool), np.zeros((0, 0), np.int32)
    H = lead_NH.shape[1]
    need_T = np.where(hot_T, k - H, k)
    most, P = int(need_T.max(initial=0)), len(pool_P)
    if most > 0:
        _check_choices(most, P)
    start_T = np.cumsum(need_T) - need_T
    turn_TK = start_T[:, None] + np.arange(k)[None] - np.where(hot_T, H, 0)[:, None]
    expert_TK = pool_P[turn_TK % P] if P else np.zeros_like(turn_TK)
    expert_TK[hot_T, :H] = lead_NH
    return expert_TK.astype(np.int32)


def _check_choices(k: int, experts: int) -> None:
    if not 1 <= k <= experts:
        raise ValueError(f"{k} distinct choices of {experts} experts do not exist")


def _hot_tokens(T: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which round(share T) tokens are hot."""
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share}: must be between 0 and 1")
    hot_T = np.arange(T) < round(share * T)
    return rng.permutation(hot_T)


def _device_size(E: int, devices: int) -> int:
    if devices < 1 or E % devices:
        raise ValueError(f"{E} experts do not divide among {devices} devices")
    return E // devices
