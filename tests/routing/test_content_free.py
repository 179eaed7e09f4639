"""Routers that do not look at what a token holds: hash, random, uniform, round_robin."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from moe_jax.routing.balance import load_balance_loss, max_violation, router_z_loss
from moe_jax.routing.content_free.base import hash_choice, mix
from moe_jax.routing.content_free.hash import Hash, greedy_table
from moe_jax.routing.content_free.random import Random
from moe_jax.routing.content_free.round_robin import RoundRobin
from moe_jax.routing.content_free.uniform import Uniform
from moe_jax.routing.types import RouterInputs


def inputs(ids, *, E, train=True, valid=None, position=None, seed=7):
    id_T = jnp.asarray(ids, jnp.int32)
    T = len(ids)
    return RouterInputs(
        x_TD=jnp.zeros((T, 2)),
        valid_T=jnp.ones((T,), bool) if valid is None else jnp.asarray(valid),
        id_T=id_T,
        position_T=jnp.arange(T, dtype=jnp.int32) if position is None else jnp.asarray(position),
        segment_T=jnp.ones((T,), jnp.int32),
        key=jax.random.key(seed) if train else None,
        E=E,
        train=train,
    )


def experts(router, batch, state=None):
    state = router.state(batch.E) if state is None else state
    return np.asarray(router.route({}, state, batch)[0].expert_R).reshape(-1, router.k)


ALL = (Hash, Random, Uniform, RoundRobin)


@pytest.mark.parametrize("cls", ALL)
def test_sums_are_those_of_no_opinion(cls):
    """Uniform probabilities; figures by hand: log(E)^2, log(E), 1."""
    E = 5
    router = cls(k=2)
    valid = np.arange(16) < 13
    _, sums = router.route({}, router.state(E), inputs(range(16), E=E, valid=valid))
    np.testing.assert_allclose(sums.prob_E, 13 / E, rtol=1e-6)
    np.testing.assert_allclose(sums.entropy, 13 * math.log(E), rtol=1e-6)
    np.testing.assert_allclose(router_z_loss(sums), math.log(E) ** 2, rtol=1e-6)
    np.testing.assert_allclose(load_balance_loss(sums), 1, rtol=1e-6)
    np.testing.assert_array_equal(sums.importance_E, sums.wanted_E / 2)
    assert router.params(8, E) == {} and int(jnp.sum(sums.wanted_E)) == 26
    assert router.causal


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize(("E", "k"), [(1, 1), (3, 3), (7, 2), (8, 4), (13, 5)])
def test_choices_are_distinct(cls, E, k):
    for train in (True, False):
        found = np.sort(experts(cls(k=k), inputs(range(64), E=E, train=train)), axis=1)
        assert np.all(np.diff(found, axis=1) > 0) and found.min() >= 0 and found.max() < E


@pytest.mark.parametrize("cls", (Hash, Random, Uniform, RoundRobin))
def test_generation_goes_where_evaluation_goes(cls):
    """A token alone, at its position, has the experts that it has in its row."""
    E, router = 6, cls(k=2)
    ids = np.random.default_rng(0).integers(0, 99, 20)
    row = experts(router, inputs(ids, E=E, train=False))
    for t in range(20):
        alone = inputs(ids[t : t + 1], E=E, train=False, position=np.array([t], np.int32))
        np.testing.assert_array_equal(experts(router, alone)[0], row[t])


# --- the hash ---


def test_mix_is_the_finaliser_of_murmur3():
    """Against Python's unbounded integers, and one-to-one on a large set."""

    def finalise(h):
        h = ((h ^ (h >> 16)) * 0x85EBCA6B) % 2**32
        h = ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32
        return h ^ (h >> 16)

    words = [0, 1, 2, 255, 2**16, 2**31, 2**32 - 1, 123456789]
    assert mix(jnp.asarray(words, jnp.uint32)).tolist() == [finalise(w) for w in words]
    many = np.asarray(mix(jnp.arange(200_000, dtype=jnp.uint32)))
    assert len(np.unique(many)) == len(many)


@pytest.mark.parametrize("E", [7, 8, 64])
def test_random_hash_is_uniform(E):
    """Over a large vocabulary each expert has as many ids as chance would give it, for each seed;
    with k = 2 each pair."""
    id_V = jnp.arange(100_000, dtype=jnp.int32)
    for seed in range(5):
        expert_V = np.asarray(hash_choice((id_V,), seed, E, 1))[:, 0]
        assert 1e-4 < scipy.stats.chisquare(np.bincount(expert_V, minlength=E)).pvalue < 1 - 1e-4
    pair_VK = np.asarray(hash_choice((id_V,), 0, E, 2))
    code = pair_VK[:, 0] * E + pair_VK[:, 1]
    counts = np.bincount(code, minlength=E * E).reshape(E, E)
    assert np.all(np.diag(counts) == 0)
    assert scipy.stats.chisquare(counts[~np.eye(E, dtype=bool)]).pvalue > 1e-4


def test_seeds_and_words_are_independent():
    """The table of one seed against that of another, and of ids against ids + 1: the E x E
    contingency table is that of independent variables."""
    E, id_V = 8, jnp.arange(50_000, dtype=jnp.int32)
    base = np.asarray(hash_choice((id_V,), 0, E, 1))[:, 0]
    others = [hash_choice((id_V,), seed, E, 1) for seed in (1, 2, 1000)]
    others += [hash_choice((id_V + 1,), 0, E, 1), hash_choice((id_V, id_V), 0, E, 1)]
    for other in others:
        table = np.zeros((E, E))
        np.add.at(table, (base, np.asarray(other)[:, 0]), 1)
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-4


def test_one_more_expert_moves_few_ids():
    """Highest random weight: only those move that go to the new expert, 1 / (E + 1) of them."""
    id_V = jnp.arange(20_000, dtype=jnp.int32)
    before, after = (np.asarray(hash_choice((id_V,), 3, E, 1))[:, 0] for E in (9, 10))
    moved = before != after
    assert np.all(after[moved] == 9)
    assert abs(moved.mean() - 0.1) < 5 * math.sqrt(0.09 / 20_000)


def test_hash_depends_on_the_id_alone():
    ids = np.random.default_rng(1).integers(0, 10, 200)
    found = experts(Hash(k=2), inputs(ids, E=8))
    for i in range(10):
        assert len(np.unique(found[ids == i], axis=0)) == 1
    quiet = inputs(ids, E=8, train=False, position=np.zeros(200, np.int32))
    np.testing.assert_array_equal(found, experts(Hash(k=2), quiet))
    assert not np.array_equal(found, experts(Hash(k=2, seed=1), quiet))


# --- the balanced table ---


def zipf(V, tokens, seed=0):
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, V + 1)
    return rng.permutation(V)[rng.choice(V, tokens, p=share / share.sum())]


def greedy(counts, E, k, fallback):
    """The paper's balanced assignment in plain Python."""
    load, table = [0] * E, [list(row) for row in fallback]
    for v in sorted(range(len(counts)), key=lambda v: (-counts[v], v)):
        if counts[v]:
            table[v] = sorted(range(E), key=lambda e: (load[e], e))[:k]
            for e in table[v]:
                load[e] += int(counts[v])
    return np.array(table), np.array(load)


@pytest.mark.parametrize(("E", "k"), [(4, 1), (8, 1), (7, 2), (8, 3), (3, 3)])
def test_greedy_table_against_python(E, k):
    counts = np.bincount(zipf(300, 5000), minlength=300)
    assert (counts == 0).any()
    fallback = np.random.default_rng(0).integers(0, E, (300, k)).astype(np.int32)
    found = greedy_table(jnp.asarray(counts, jnp.float32), jnp.asarray(fallback), E)
    np.testing.assert_array_equal(found, greedy(counts, E, k, fallback)[0])


@pytest.mark.parametrize(("E", "k"), [(8, 1), (8, 2), (6, 4)])
def test_greedy_table_is_exact_where_ids_are_alike(E, k):
    V = 48
    table = np.asarray(greedy_table(jnp.full((V,), 5.0), jnp.zeros((V, k), jnp.int32), E))
    np.testing.assert_array_equal(np.bincount(table.reshape(-1), minlength=E), V * k // E)


def run(router, batches, E):
    """States after each optimizer step."""
    state, found = router.state(E), []
    update = jax.jit(router.update)
    route = jax.jit(lambda state, batch: router.route({}, state, batch)[1])
    for ids in batches:
        state = update(state, route(state, inputs(ids, E=E)))
        found.append(state)
    return found


def test_counting_then_frozen():
    """Each of the first steps rebuilds the table from all ids so far; then nothing moves."""
    V, E, steps = 100, 8, 3
    router = Hash(k=2, table="balanced", vocab_size=V, count_steps=steps)
    batches = [zipf(V, 400, seed) for seed in range(6)]
    states = run(router, batches, E)
    first = np.asarray(router.state(E)["expert_VK"])
    counts = np.zeros(V, int)
    for n, (ids, state) in enumerate(zip(batches, states, strict=True)):
        if n < steps:
            counts += np.bincount(ids, minlength=V)
        np.testing.assert_array_equal(state["count_V"], counts)
        assert int(state["steps"]) == min(n + 1, steps)
        # Ids that come for the first time are in the next table; others may move till then.
        expected = greedy(counts, E, 2, first)[0]
        seen = counts > 0
        np.testing.assert_array_equal(np.asarray(state["expert_VK"])[seen], expected[seen])
        np.testing.assert_array_equal(np.asarray(state["expert_VK"])[~seen], first[~seen])
    share = router.metrics(states[-1], router.route({}, states[-1], inputs([0], E=E))[1])
    np.testing.assert_allclose(share["ids_seen"], (counts > 0).mean(), rtol=1e-6)


def test_update_of_stacked_layers_is_that_of_each():
    """The step maps `update` over layers: the same tables, also where layers differ in their
    number of steps, and under a second map."""
    V, E = 40, 4
    router = Hash(table="balanced", vocab_size=V, count_steps=2)
    states = [router.state(E), *run(router, [zipf(V, 50, 1), zipf(V, 50, 2), zipf(V, 50, 3)], E)]
    sums = router.route({}, states[0], inputs(zipf(V, 60, 9), E=E))[1]
    alone = [router.update(state, sums) for state in states]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
    many = stack([sums] * len(states))
    mapped = jax.jit(jax.vmap(router.update))(stack(states), many)
    assert jax.tree.all(jax.tree.map(np.array_equal, mapped, stack(alone)))
    twice = jax.vmap(jax.vmap(router.update))(stack([stack(states)]), stack([many]))
    assert jax.tree.all(jax.tree.map(np.array_equal, twice, stack([stack(alone)])))


def test_frozen_tables_cost_nothing():
    """In the compiled update of several layers the loop over ids stands under a condition."""
    router = Hash(table="balanced", vocab_size=40)
    state = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), router.state(4))
    sums = router.route({}, router.state(4), inputs([1, 2], E=4))[1]
    sums = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), sums)
    program = jax.make_jaxpr(jax.vmap(router.update))(state, sums)

    def outside_conditions(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            if equation.primitive.name != "cond":
                for value in equation.params.values():
                    inner = getattr(value, "jaxpr", value)
                    if hasattr(inner, "eqns"):
                        yield from outside_conditions(inner)

    names = set(outside_conditions(program.jaxpr))
    assert "cond" in names and not names & {"scan", "while"}


@pytest.mark.grid
def test_balanced_is_more_even_than_random():
    """Roller et al. section 3.1: ids by Zipf's law make a random hash uneven, a table by frequency
    does not. On fresh tokens of the same law; its most frequent id is below the mean load."""
    V, E = 2000, 8
    router = Hash(table="balanced", vocab_size=V, count_steps=2)
    permutation = np.random.default_rng(5).permutation(V)

    def stream(seed):
        rng = np.random.default_rng(seed)
        share = 1 / np.arange(2, V + 2)
        return permutation[rng.choice(V, 20_000, p=share / share.sum())]

    state = run(router, [stream(1), stream(2)], E)[-1]
    fresh = inputs(stream(3), E=E, train=False)
    balanced = float(max_violation(router.route({}, state, fresh)[1].wanted_E))
    by_chance = [
        float(max_violation(Hash(seed=seed).route({}, {}, fresh)[1].wanted_E)) for seed in range(5)
    ]
    assert balanced < 0.06 < 3 * 0.06 < min(by_chance)


def test_padding_and_unknown_ids():
    V, E = 10, 4
    router = Hash(table="balanced", vocab_size=V)
    ids = [0, 1, 1, 9, 10, 57, 3]
    valid = np.array([True] * 6 + [False])
    state = run(router, [zipf(V, 30)], E)[0]
    a, sums = router.route({}, state, inputs(ids, E=E, valid=valid))
    expected = np.bincount(ids[:4], minlength=V)
    np.testing.assert_array_equal(sums.own["ids_V"], expected)
    np.testing.assert_array_equal(
        np.asarray(a.expert_R)[:6],
        [
            *np.asarray(state["expert_VK"])[ids[:4], 0],
            *experts(Hash(), inputs([10, 57], E=E))[:, 0],
        ],
    )
    assert not router.route({}, state, inputs(ids, E=E, train=False))[1].own
    before = experts(router, inputs(range(V), E=E))
    np.testing.assert_array_equal(before, experts(Hash(), inputs(range(V), E=E)))


def test_rules():
    assert dict(Hash().check()) == {} == dict(Hash(table="balanced", vocab_size=5).check())
    assert list(dict(Hash(table="balanced").check())) == ["vocab_size"]
    broken = Hash(table="other", seed=-1, vocab_size=0, count_steps=0, k=0)
    assert set(dict(broken.check())) == {"table", "seed", "vocab_size", "count_steps", "k"}


# --- random, uniform, round_robin ---


def test_random_is_uniform_over_sets():
    """In training by the key, in evaluation by the hash; each set of 2 of 5 alike likely."""
    E, T = 5, 20_000
    sets = {frozenset(pair): i for i, pair in enumerate(itertools.combinations(range(E), 2))}
    ids = np.random.default_rng(0).integers(0, 50, T)
    for train in (True, False):
        found = experts(Random(k=2), inputs(ids, E=E, train=train))
        counts = np.bincount([sets[frozenset(pair)] for pair in found.tolist()], minlength=10)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
    batch = inputs(ids, E=E)
    other = dataclasses.replace(batch, key=jax.random.key(8))
    assert not np.array_equal(experts(Random(), batch), experts(Random(), other))


@pytest.mark.parametrize("cls", [Uniform, RoundRobin])
@pytest.mark.parametrize(
    ("T", "E", "k"), [(64, 8, 2), (50, 8, 3), (31, 7, 2), (5, 16, 2), (1, 4, 3)]
)
def test_even_to_within_one(cls, T, E, k):
    rng = np.random.default_rng(T)
    for valid in (np.ones(T, bool), rng.random(T) < 0.6):
        for train in (True, False):
            batch = inputs(range(T), E=E, train=train, valid=valid)
            _, sums = cls(k=k).route({}, {}, batch)
            wanted = np.asarray(sums.wanted_E)
            assert wanted.sum() == valid.sum() * k and np.ptp(wanted) <= (1 if train else 2)
            if valid.all():
                assert np.ptp(wanted) <= 1 and (T * k % E or np.ptp(wanted) == 0)


def test_uniform_tokens_are_uniform():
    """Over keys a token's choices are any ordered pair; in evaluation nothing is drawn."""
    E, keys = 4, 4000
    draw = jax.jit(
        jax.vmap(
            lambda key: (
                Uniform()
                .route({}, {}, dataclasses.replace(inputs(range(6), E=E), key=key))[0]
                .expert_R.reshape(6, 2)
            )
        )
    )
    found = np.asarray(draw(jax.random.split(jax.random.key(0), keys)))
    for t in (0, 3, 5):
        counts = np.bincount(found[:, t, 0] * E + found[:, t, 1], minlength=E * E).reshape(E, E)
        assert scipy.stats.chisquare(counts[~np.eye(E, dtype=bool)]).pvalue > 1e-4


def test_round_robin_by_hand():
    np.testing.assert_array_equal(
        experts(RoundRobin(), inputs(range(4), E=5)), [[0, 1], [2, 3], [4, 0], [1, 2]]
    )
    padded = inputs(range(4), E=5, valid=np.array([True, False, True, True]))
    np.testing.assert_array_equal(experts(RoundRobin(), padded), [[0, 1], [5, 5], [2, 3], [4, 0]])
