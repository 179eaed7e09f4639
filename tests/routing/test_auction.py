"""The auction against scipy's exact assignment, and what it promises beside the sum."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from moe_jax.routing.assignment.auction import balanced_assignment

EPSILON = 1e-5

solve = jax.jit(balanced_assignment, static_argnames=("epsilon", "max_rounds"))


def optimum(score_TE, places):
    """The largest sum in float64, and an assignment that has it."""
    column_TN = np.repeat(np.asarray(score_TE, np.float64), places, axis=1)
    token, column = linear_sum_assignment(column_TN, maximize=True)
    return column_TN[token, column].sum(), column // places


def total(score_TE, expert_T):
    return np.asarray(score_TE, np.float64)[np.arange(len(expert_T)), np.asarray(expert_T)].sum()


def span(score_TE):
    """The largest difference of scores within a token."""
    score_TE = np.asarray(score_TE, np.float64)
    return np.max(np.max(score_TE, axis=1) - np.min(score_TE, axis=1))


def instances(T, E):
    rng = np.random.default_rng(T + E)
    normal = rng.normal(size=(T, E))
    first = np.arange(E)[None] == 0
    return {
        "normal": normal,
        "large": 1e6 * normal,
        "small": 1e-6 * normal,
        "linear": rng.normal(size=(T, 16)) @ rng.normal(size=(16, E)),
        "rank one": np.outer(rng.normal(size=T), rng.normal(size=E)),
        "all prefer one": np.where(first, 5, 0) + 0.1 * normal,
        "all prefer one alike": np.broadcast_to(np.where(first, 5.0, 0.0), (T, E)),
        "equal": np.full((T, E), 3.0),
        "equal tokens": np.tile(normal[:1], (T, 1)),
        "near ties": np.where(first, 2, 1) + 1e-6 * normal,
        "integers": rng.integers(0, 10, (T, E)),
        "one outlier": np.where((np.arange(T)[:, None] == T - 1) & first, 1e3, normal),
    }


@pytest.mark.parametrize(("T", "E"), [(64, 8), (61, 8), (96, 32), (7, 4), (3, 5), (9, 1), (1, 3)])
def test_sum_against_scipy(T, E):
    places = -(-T // E)
    for name, score_TE in instances(T, E).items():
        score_TE = jnp.asarray(score_TE, jnp.float32)
        found = solve(score_TE, jnp.ones((T,), bool), epsilon=EPSILON, max_rounds=20_000)
        count_E = np.bincount(found.expert_T, minlength=E)
        assert len(count_E) == E and count_E.max() <= places, name
        if T % E == 0:
            assert np.all(count_E == places), name
        assert bool(found.finished) and not np.any(found.greedy_T), name
        best, _ = optimum(score_TE, places)
        assert best - total(score_TE, found.expert_T) <= (T + E) * EPSILON * span(score_TE), name


def unique_integers(T, E, places):
    """Integer scores with one best assignment: each of its pairs, forbidden, costs at least 1."""
    for seed in range(100):
        score_TE = np.random.default_rng(seed).integers(0, 100, (T, E)).astype(np.float64)
        best, expert_T = optimum(score_TE, places)
        others = []
        for token in range(T):
            without_TE = score_TE.copy()
            without_TE[token, expert_T[token]] = -1e6
            others.append(optimum(without_TE, places)[0])
        if max(others) < best:
            return score_TE, expert_T
    raise AssertionError("no instance with one optimum")


@pytest.mark.parametrize(("T", "E"), [(12, 4), (14, 4), (20, 10), (16, 2)])
def test_the_only_optimum_of_integers(T, E):
    score_TE, expert_T = unique_integers(T, E, -(-T // E))
    assert (T + E) * EPSILON * span(score_TE) < 1
    found = solve(jnp.asarray(score_TE, jnp.float32), jnp.ones((T,), bool), epsilon=EPSILON)
    assert np.array_equal(found.expert_T, expert_T)


def test_a_smaller_epsilon_is_nearer_and_takes_more_rounds():
    score_TE = jnp.asarray(instances(96, 32)["linear"], jnp.float32)
    valid_T = jnp.ones((96,), bool)
    coarse, fine = (solve(score_TE, valid_T, epsilon=e, max_rounds=20_000) for e in (1.0, EPSILON))
    assert coarse.rounds < fine.rounds
    assert total(score_TE, coarse.expert_T) < total(score_TE, fine.expert_T)


@pytest.mark.parametrize("name", ["normal", "equal", "near ties", "equal tokens"])
def test_padding_changes_nothing(name):
    T, E = 40, 6
    score_TE = np.asarray(instances(T, E)[name], np.float32)
    valid_T = np.random.default_rng(1).random(T) < 0.6
    assert 0 < valid_T.sum() < T - 6
    alone = solve(jnp.asarray(score_TE[valid_T]), jnp.ones((valid_T.sum(),), bool))
    for junk in (0.0, 1e9, -np.inf, np.nan):
        padded_TE = jnp.asarray(np.where(valid_T[:, None], score_TE, np.float32(junk)))
        padded = solve(padded_TE, jnp.asarray(valid_T))
        assert np.all(np.asarray(padded.expert_T)[~valid_T] == E)
        assert np.array_equal(np.asarray(padded.expert_T)[valid_T], alone.expert_T)
        assert padded.rounds == alone.rounds
    assert np.bincount(alone.expert_T).max() <= -(-valid_T.sum() // E)
    nobody = solve(jnp.asarray(score_TE), jnp.zeros((T,), bool))
    assert np.all(np.asarray(nobody.expert_T) == E) and nobody.rounds == 0 and nobody.finished


def test_closed_experts_leave_their_tokens_to_the_others():
    T, E = 24, 6
    score_TE = np.array(instances(T, E)["normal"], np.float32)
    score_TE[:, [1, 4]] = -np.inf
    found = solve(jnp.asarray(score_TE), jnp.ones((T,), bool))
    assert np.array_equal(np.bincount(found.expert_T, minlength=E), [6, 0, 6, 6, 0, 6])
    open_TE = score_TE[:, [0, 2, 3, 5]]
    best, _ = optimum(open_TE, 6)
    slack = (T + E) * EPSILON * span(open_TE)
    assert best - total(score_TE, found.expert_T) <= slack


def test_pairs_that_are_closed():
    """Each token is closed to some experts, and a balanced assignment still exists."""
    T, E = 30, 5
    rng = np.random.default_rng(3)
    score_TE = np.array(instances(T, E)["normal"], np.float32)
    closed_TE = (rng.random((T, E)) < 0.5) & (np.arange(T)[:, None] % E != np.arange(E)[None])
    closed_TE[:6] = np.arange(E)[None] != 0  # the six places of expert 0 have one way to be filled
    closed_TE[6:, 0] &= np.arange(24) % 2 == 0
    masked_TE = np.where(closed_TE, -np.inf, score_TE)
    found = solve(jnp.asarray(masked_TE, jnp.float32), jnp.ones((T,), bool), max_rounds=20_000)
    assert bool(found.finished)
    assert np.array_equal(np.bincount(found.expert_T, minlength=E), [6] * E)
    assert np.all(np.asarray(found.expert_T)[:6] == 0)
    best, _ = optimum(np.where(closed_TE, -1e6, score_TE), 6)
    assert best - total(masked_TE, found.expert_T) <= (T + E) * EPSILON * span(score_TE)


def test_a_token_without_any_open_expert_takes_no_place():
    score_TE = jnp.zeros((5, 2)).at[2].set(-jnp.inf)
    found = solve(score_TE, jnp.ones((5,), bool))
    assert int(found.expert_T[2]) == 2
    assert np.array_equal(np.bincount(found.expert_T, minlength=3), [2, 2, 1])


def test_too_few_places_end_at_the_cap():
    """Three tokens want the two places of expert 0 and can have no other."""
    score_TE = jnp.asarray([[0.0, -jnp.inf]] * 3 + [[5.0, 0.0]])
    found = solve(score_TE, jnp.ones((4,), bool), max_rounds=50)
    assert not found.finished and found.rounds == 50
    assert sorted(np.asarray(found.expert_T)) == [0, 0, 1, 2]
    assert int(found.expert_T[3]) == 1


def test_the_cap_is_safe():
    """However early it comes, each token gets one expert and no expert too many."""
    T, E = 61, 8
    score_TE = jnp.asarray(instances(T, E)["all prefer one"], jnp.float32)
    valid_T = jnp.ones((T,), bool)
    full = solve(score_TE, valid_T)
    greedy, sums = [], []
    for rounds in (1, 3, 6, 12, 24, int(full.rounds) - 1):
        found = solve(score_TE, valid_T, max_rounds=rounds)
        assert not found.finished and found.rounds == rounds
        assert np.bincount(found.expert_T, minlength=E).max() <= 8
        assert len(np.bincount(found.expert_T)) == E  # no token without an expert
        greedy.append(int(np.sum(found.greedy_T)))
        sums.append(total(score_TE, found.expert_T))
    # Of 61 tokens that all bid for one expert, 53 hold nothing after a round.
    assert greedy[0] > 40 and greedy[-1] == 0
    best, _ = optimum(score_TE, 8)
    assert sums[0] < sums[-1] <= best + 1e-6
    # The last phase but one has five times the last epsilon.
    assert best - sums[-1] <= (T + E) * 5 * EPSILON * span(score_TE)


def test_after_the_cap_tokens_are_placed_in_order_by_their_scores():
    """No round at all: the first come are served first."""
    score_TE = jnp.asarray([[2.0, 1, 0], [2, 0, 1], [3, 1, 2], [3, 2, 1], [0, 9, 1], [9, 1, 0]])
    found = solve(score_TE, jnp.ones((6,), bool), max_rounds=0)
    assert found.expert_T.tolist() == [0, 0, 2, 1, 1, 2]
    assert np.all(found.greedy_T)


def test_of_equal_tokens_the_lower_gets_the_lower_expert():
    found = solve(jnp.zeros((8, 4)), jnp.ones((8,), bool))
    assert found.expert_T.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # Three kinds of tokens, each several times, in any order.
    T, E = 40, 8
    kind_T = np.random.default_rng(0).integers(0, 3, T)
    score_TE = np.random.default_rng(1).normal(size=(3, E))[kind_T]
    found = solve(jnp.asarray(score_TE, jnp.float32), jnp.ones((T,), bool))
    for kind in range(3):
        assert len(set(np.asarray(found.expert_T)[kind_T == kind])) > 1
        assert np.all(np.diff(np.asarray(found.expert_T)[kind_T == kind]) >= 0)


def test_rounding_does_not_tell_equal_tokens_apart():
    """Noise of one part in 10^7, as other devices have it, changes no assignment."""
    T, E = 40, 8
    rng = np.random.default_rng(5)
    score_TE = rng.normal(size=(T // 4, E))[np.repeat(np.arange(T // 4), 4)]
    want_T = np.asarray(solve(jnp.asarray(score_TE, jnp.float32), jnp.ones((T,), bool)).expert_T)
    assert np.sum(want_T[:-1] != want_T[1:]) > T // 4  # equal tokens are at several experts
    for _ in range(20):
        noisy_TE = jnp.asarray(score_TE * (1 + 1e-7 * rng.normal(size=(T, E))), jnp.float32)
        assert np.array_equal(solve(noisy_TE, jnp.ones((T,), bool)).expert_T, want_T)


def test_only_differences_within_a_token_matter():
    """A number added to all scores of a token, or a factor on all scores, changes nothing."""
    T, E = 48, 6
    score_TE = jnp.asarray(np.round(64 * instances(T, E)["normal"]), jnp.float32)
    valid_T = jnp.ones((T,), bool)
    plain = solve(score_TE, valid_T)
    shift_T1 = jnp.asarray(np.random.default_rng(0).integers(-500, 500, (T, 1)), jnp.float32)
    for same in (score_TE + shift_T1, 1024.0 * score_TE):
        assert jax.tree.all(jax.tree.map(np.array_equal, solve(same, valid_T), plain))


def test_groups_under_vmap_are_as_alone():
    """One group needs many rounds, another few: those that are done stay as they are."""
    T, E = 32, 4
    by_name = instances(T, E)
    score_GTE = jnp.asarray(
        np.stack([by_name[x] for x in ("equal", "rank one", "linear")]), jnp.float32
    )
    valid_GT = jnp.ones((3, T), bool).at[1, 20:].set(False)
    together = jax.jit(jax.vmap(functools.partial(balanced_assignment)))(score_GTE, valid_GT)
    assert len(set(together.rounds.tolist())) == 3
    for g in range(3):
        alone = solve(score_GTE[g], valid_GT[g])
        found = jax.tree.map(lambda leaf, g=g: leaf[g], together)
        assert jax.tree.all(jax.tree.map(np.array_equal, found, alone))
