"""Workloads against their definitions: exact counts, or binomial bounds where chance decides."""

from __future__ import annotations

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.benchmarks.workloads import WORKLOADS, workload_assignments
from moe_jax.routing.balance import max_violation
from moe_jax.routing.capacity import expert_capacity
from moe_jax.routing.plan import make_plan

SIZES = [(96, 8, 2, 4), (96, 8, 1, 2), (40, 16, 4, 2), (64, 8, 2, 2), (7, 12, 3, 3), (24, 6, 2, 3)]


def rng(seed=0):
    return np.random.default_rng(seed)


def draw(name, T, E, k, devices=1, seed=0, **options):
    return WORKLOADS[name](T, E, k, rng(seed), devices=devices, **options)


def loads(expert_TK, E):
    return np.bincount(expert_TK.reshape(-1), minlength=E)


def violation(load_N):
    return load_N.max() / load_N.mean() - 1


def even(load_N):
    return load_N.max() - load_N.min() <= 1


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", WORKLOADS)
def test_distinct_choices_in_range(name, size):
    T, E, k, devices = size
    for step in range(5):
        expert_TK = draw(name, T, E, k, devices, step=step)
        assert expert_TK.shape == (T, k) and expert_TK.dtype == np.int32
        assert expert_TK.min() >= 0 and expert_TK.max() < E
        ordered_TK = np.sort(expert_TK, axis=1)
        assert np.all(ordered_TK[:, 1:] > ordered_TK[:, :-1])


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_generator_decides_and_nothing_else(name):
    first, again, other = (draw(name, 96, 8, 2, 4, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    chance = {"uniform", "hot_expert", "hot_device", "spread_hot", "rotating"}
    assert np.array_equal(first, other) == (name not in chance)


def test_every_workload_takes_the_same_arguments():
    for name, workload in WORKLOADS.items():
        names = list(inspect.signature(workload).parameters)
        assert names[:6] == ["T", "E", "k", "rng", "step", "devices"], name


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_balanced(size):
    T, E, k, _ = size
    load_E = loads(draw("balanced", T, E, k), E)
    assert even(load_E)
    assert (T * k) % E or violation(load_E) == 0


def test_uniform_is_within_binomial_bounds():
    """Each load is B(T, k / E), and so is each pair of experts B(T, k (k - 1) / (E (E - 1)))."""
    T, E, k = 4000, 8, 3
    expert_TK = draw("uniform", T, E, k)
    low, high = stats.binom.interval(1 - 1e-6, T, k / E)
    assert np.all((loads(expert_TK, E) >= low) & (loads(expert_TK, E) <= high))
    wanted_TE = np.zeros((T, E), bool)
    np.put_along_axis(wanted_TE, expert_TK.astype(np.int64), True, axis=1)
    pairs_EE = wanted_TE.T.astype(int) @ wanted_TE
    low, high = stats.binom.interval(1 - 1e-6, T, k * (k - 1) / (E * (E - 1)))
    off_diagonal = pairs_EE[~np.eye(E, dtype=bool)]
    assert np.all((off_diagonal >= low) & (off_diagonal <= high))
    first = np.bincount(expert_TK[:, 0], minlength=E)
    low, high = stats.binom.interval(1 - 1e-6, T, 1 / E)
    assert np.all((first >= low) & (first <= high))
    assert 0 < violation(loads(expert_TK, E)) < 0.2


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_hot_expert(size, share):
    T, E, k, _ = size
    expert_TK = draw("hot_expert", T, E, k, share=share, expert=2)
    load_E = loads(expert_TK, E)
    assert load_E[2] == np.sum(expert_TK[:, 0] == 2) == round(share * T)
    assert even(np.delete(load_E, 2))
    if load_E[2] == load_E.max() and share * T == round(share * T):
        assert violation(load_E) == pytest.approx(share * E / k - 1)


def test_hot_expert_is_half_by_default_and_not_the_first_half():
    hot_T = draw("hot_expert", 1000, 8, 2)[:, 0] == 0
    assert hot_T.sum() == 500
    assert 200 < hot_T[:500].sum() < 300


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(("T", "E", "k", "devices"), [(96, 8, 2, 4), (64, 8, 2, 2), (64, 16, 4, 4)])
def test_hot_device(T, E, k, devices, share):
    load_E = loads(draw("hot_device", T, E, k, devices, share=share), E)
    load_DN = load_E.reshape(devices, -1)
    assert load_DN[0].sum() == share * T * k
    assert even(load_DN[0]) and even(load_DN[1:].reshape(-1))
    if share >= 1 / devices:
        assert violation(load_DN.sum(axis=1)) == pytest.approx(share * devices - 1)
        assert violation(load_E) == pytest.approx(share * devices - 1)


def test_tokens_of_a_hot_device_stay_on_it():
    device_TK = draw("hot_device", 96, 8, 2, 4) // 2
    assert np.all((device_TK == 0).all(axis=1) | (device_TK > 0).all(axis=1))


@pytest.mark.parametrize("share", [0.75, 1.0])
@pytest.mark.parametrize(
    ("T", "E", "k", "devices"), [(96, 8, 2, 4), (96, 8, 1, 2), (96, 16, 2, 4), (64, 8, 3, 2)]
)
def test_spread_hot(T, E, k, devices, share):
    load_DN = loads(draw("spread_hot", T, E, k, devices, share=share), E).reshape(devices, -1)
    most = min(k, devices)  # hot experts of one token
    assert np.all(load_DN[:, 0] == share * T * most / devices)
    assert even(load_DN[:, 1:].reshape(-1))
    assert violation(load_DN.sum(axis=1)) < 0.02
    assert load_DN[0, 0] == load_DN.max()
    assert violation(load_DN) == pytest.approx(share * E / max(k, devices) - 1)


@pytest.mark.parametrize(("T", "E", "k", "devices"), [(96, 8, 2, 4), (96, 8, 1, 2), (120, 6, 2, 3)])
def test_empty_device(T, E, k, devices):
    load_E = loads(draw("empty_device", T, E, k, devices), E)
    assert np.all(load_E[E - E // devices :] == 0)
    assert even(load_E[: E - E // devices])
    assert violation(load_E) == pytest.approx(1 / (devices - 1))
    assert violation(load_E.reshape(devices, -1).sum(axis=1)) == pytest.approx(1 / (devices - 1))


def test_rotating():
    T, E, k = 64, 8, 2
    load_SE = np.stack([loads(draw("rotating", T, E, k, step=step), E) for step in range(2 * E)])
    assert np.array_equal(load_SE.argmax(axis=1), np.arange(2 * E) % E)
    assert np.all(load_SE.max(axis=1) == T // 2)
    assert even(load_SE.sum(axis=0)) or violation(load_SE.sum(axis=0)) < 0.02


def test_burst():
    T, E, k = 64, 8, 2
    found = [violation(loads(draw("burst", T, E, k, step=step, every=3), E)) for step in range(9)]
    assert found == pytest.approx([0, 0, 0.5 * E / k - 1] * 3)
    assert violation(loads(draw("burst", T, E, k, step=0, every=1, share=1.0), E)) == 3


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_all_to_one(size):
    T, E, k, _ = size
    expert_TK = draw("all_to_one", T, E, k)
    assert np.all(expert_TK[:, 0] == 0)
    assert violation(loads(expert_TK, E)) == pytest.approx(E / k - 1)


@pytest.mark.parametrize("size", [(5, 4, 4), (1, 1, 1), (0, 4, 2)])
def test_ends_of_the_range(size):
    T, E, k = size
    for name in ("balanced", "uniform"):
        assert loads(draw(name, T, E, k), E).sum() == T * k
    assert draw("all_to_one", T, E, k).shape == (T, k)


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("balanced", (8, 4, 5), {}, "5 distinct choices of 4"),
        ("uniform", (8, 4, 0), {}, "0 distinct"),
        ("hot_expert", (8, 4, 4), {}, "4 distinct choices of 3"),
        ("hot_expert", (8, 4, 2), {"share": 1.5}, "share = 1.5"),
        ("hot_device", (8, 8, 3), {"devices": 4}, "3 distinct choices of 2"),
        ("hot_device", (8, 8, 2), {"devices": 3}, "8 experts do not divide among 3"),
        ("empty_device", (8, 8, 2), {"devices": 1}, "2 distinct choices of 0"),
        ("spread_hot", (8, 4, 2), {"devices": 4}, "of 0 experts"),
        ("burst", (8, 4, 2), {"every": 0}, "every = 0"),
    ],
)
def test_choices_that_do_not_exist(name, size, options, message):
    with pytest.raises(ValueError, match=message):
        draw(name, *size, **options)


@pytest.mark.parametrize("name", WORKLOADS)
def test_assignments(name):
    """The choices as a router would want them: equal weights, each row its token's, and drops that
    follow from the loads."""
    T, E, k, devices = 64, 8, 2, 4
    a = workload_assignments(name, T, E, k, rng(), devices=devices, step=3)
    expert_TK = draw(name, T, E, k, devices, step=3)
    assert np.array_equal(a.expert_R, expert_TK.reshape(-1))
    assert np.array_equal(a.token_R, np.arange(T * k) // k)
    assert np.all(np.asarray(a.weight_R) == 0.5)
    load_E = loads(expert_TK, E)
    assert float(max_violation(jnp.asarray(load_E, jnp.int32))) == pytest.approx(violation(load_E))
    capacity = expert_capacity(T, E, float(k), 1.0)
    plan = make_plan(a, capacity)
    assert np.array_equal(plan.accepted_E, np.minimum(load_E, capacity))


def test_assignments_take_a_drop_order_and_options():
    a = workload_assignments("hot_expert", 8, 4, 2, rng(), drop_order="choice_major", share=1.0)
    assert np.array_equal(a.priority_R, [0, 1] * 8)
    assert loads(np.asarray(a.expert_R), 4)[0] == 8
