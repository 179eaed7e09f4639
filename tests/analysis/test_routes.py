"""Churn, overlap and margin against plain Python sets and sorted lists."""

from __future__ import annotations

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.analysis.routes import churn, margin, overlap

T, E, K = 200, 8, 3


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def distinct(rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.choice(E, K, replace=False) for _ in range(T)])


def test_churn_and_overlap_are_those_of_sets(rng):
    old, new = distinct(rng), distinct(rng)
    new[: T // 3] = old[: T // 3, ::-1]  # another order is the same set
    sets = [(set(a.tolist()), set(b.tolist())) for a, b in zip(old, new, strict=True)]
    assert churn(old, new) == pytest.approx(sum(a != b for a, b in sets) / T)
    assert overlap(old, new) == pytest.approx(sum(len(a & b) / K for a, b in sets) / T)
    assert 0 < churn(old, new) < 1


def test_repeated_ids_count_as_often_as_they_stand_there(rng):
    old, new = rng.integers(0, 3, (T, 4)), rng.integers(0, 3, (T, 4))
    counts = [(Counter(a.tolist()), Counter(b.tolist())) for a, b in zip(old, new, strict=True)]
    assert churn(old, new) == pytest.approx(sum(a != b for a, b in counts) / T)
    shared = sum((a & b).total() / 4 for a, b in counts) / T
    assert overlap(old, new) == pytest.approx(shared)
    assert overlap(old, old[:, ::-1]) == 1


def test_ids_without_an_expert_are_left_out_of_the_overlap(rng):
    old, new = distinct(rng), distinct(rng)
    old[rng.random((T, K)) < 0.4] = E
    new[rng.random((T, K)) < 0.4] = E + 1
    new[: T // 4] = old[: T // 4] = E  # tokens of padding
    shares = []
    for a, b in zip(old.tolist(), new.tolist(), strict=True):
        before, after = {x for x in a if x < E}, {x for x in b if x < E}
        if before or after:
            shares.append(len(before & after) / max(len(before), len(after)))
    assert 0 < len(shares) < T
    assert overlap(old, new, E) == pytest.approx(sum(shares) / len(shares))
    assert overlap(old, old, E) == 1
    assert np.isnan(overlap(np.full((3, K), E), np.full((3, K), E), E))


def test_one_expert_a_token(rng):
    old, new = rng.integers(0, E, (T, 1)), rng.integers(0, E, (T, 1))
    assert overlap(old, new) == pytest.approx(1 - churn(old, new))


def test_unrelated_uniform_routes_overlap_by_k_over_e(rng):
    old = np.argsort(rng.random((20_000, E)))[:, :K]
    new = np.argsort(rng.random((20_000, E)))[:, :K]
    assert overlap(old, new) == pytest.approx(K / E, abs=0.01)


@pytest.mark.parametrize("k", range(1, E + 1))
def test_margin_is_the_gap_below_the_kth(rng, k: int):
    prob = rng.dirichlet(np.ones(E), T)
    gaps = []
    for row in prob.tolist():
        ordered = sorted(row, reverse=True)
        gaps.append(ordered[k - 1] - ordered[k] if k < E else 0.0)
    assert margin(prob, k) == pytest.approx(sum(gaps) / T)


def test_margins_of_known_rows():
    assert margin(np.full((5, 4), 0.25), 1) == 0
    assert margin(np.eye(4), 1) == 1
    assert margin(np.ones((3, 1)), 1) == 0  # a single expert has no rival


def test_jax_arrays_of_any_float_type():
    prob = jnp.asarray([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]], jnp.bfloat16)
    assert margin(prob, 1) == pytest.approx((0.25 + 0.625) / 2)
    expert = jnp.asarray([[0, 1], [2, 1]])
    assert churn(expert, expert) == 0


def test_no_tokens_is_nan():
    empty = np.zeros((0, 2), int)
    assert np.isnan(churn(empty, empty))
    assert np.isnan(overlap(empty, empty))
    assert np.isnan(margin(np.zeros((0, 4)), 1))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="both must be"):
        churn(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="both must be"):
        overlap(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="1 <= k <= E"):
        margin(np.zeros((3, 4)), 5)
