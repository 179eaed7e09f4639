"""Beam search against all sequences, counted out in float64."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.ops.beam_search import beam_search, length_penalty

V, T, END, START, PAD = 5, 4, 1, 0, 4
USABLE = np.array([False, True, True, True, False])


def tables(B, seed=0, sharpness=2.0):
    """Logits of the next id, by row, place, and the ids before: those of the whole prefix."""
    rng = np.random.default_rng(seed)
    return {
        prefix: sharpness * rng.standard_normal((B, V))
        for length in range(T)
        for prefix in itertools.product(range(V), repeat=length)
    }


def log_p(table, row, prefix):
    logits = np.where(USABLE, table[prefix][row], -np.inf)
    return logits - np.log(np.exp(logits[USABLE]).sum())


def all_sequences(table, row, alpha):
    """(score, ids) of each sequence that ends within T."""
    ids = [i for i in range(V) if USABLE[i] and i != END]
    found = []
    for length in range(1, T + 1):
        for body in itertools.product(ids, repeat=length - 1):
            sequence = (*body, END)
            total = sum(log_p(table, row, sequence[:n])[sequence[n]] for n in range(length))
            found.append((total / ((5 + length) / 6) ** alpha, sequence))
    return sorted(found, reverse=True)


def searched(table, B, beams, alpha=0.6):
    """The cache is the ids written so far: where it is not reordered the logits are of another
    prefix."""
    stacked = {
        length: np.stack([table[p] for p in itertools.product(range(V), repeat=length)], axis=1)
        for length in range(T)
    }

    def following(cache, id_N, place):
        cache = jnp.where(place == 0, cache, cache * V + id_N)  # the number of the prefix
        row_N = jnp.repeat(jnp.arange(B), beams)
        logits = jnp.stack(
            [jnp.asarray(part)[row_N, jnp.minimum(cache, part.shape[1] - 1)]
             for part in stacked.values()]
        )  # fmt: skip
        return logits[place].astype(jnp.float32), cache

    @jax.jit
    def run():
        return beam_search(
            following,
            jnp.zeros(B * beams, jnp.int32),
            lambda cache, index_N: cache[index_N],
            start_B=jnp.full(B, START, jnp.int32),
            beams=beams,
            length=T,
            end=END,
            pad=PAD,
            usable_V=jnp.asarray(USABLE),
            alpha=alpha,
        )

    ids_BT, score_B = jax.device_get(run())
    return [tuple(int(i) for i in ids if i != PAD) for ids in ids_BT], score_B


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_with_enough_beams_it_finds_the_best_of_all(alpha):
    B, table = 6, tables(6)
    found, score_B = searched(table, B, beams=2**T, alpha=alpha)
    for row in range(B):
        score, sequence = all_sequences(table, row, alpha)[0]
        assert found[row] == sequence
        np.testing.assert_allclose(score_B[row], score, rtol=1e-5)


def test_one_beam_takes_the_most_probable_id_each_time():
    B, table = 8, tables(8, seed=1)
    found, _ = searched(table, B, beams=1)
    for row in range(B):
        prefix = ()
        while len(prefix) < T and END not in prefix:
            prefix = (*prefix, int(np.argmax(log_p(table, row, prefix))))
        assert found[row] == prefix


def test_more_beams_find_better_sequences_on_the_average():
    """Of rows whose sequences all end; the end is a part of their score."""
    B, table = 32, tables(32, seed=2)
    found = [searched(table, B, beams) for beams in (1, 2, 4, 8)]
    ended_B = np.all([[END in ids for ids in sequences] for sequences, _ in found], axis=0)
    means = [float(np.mean(score_B[ended_B])) for _, score_B in found]
    assert ended_B.sum() > 10 and means[0] < means[1] <= means[2] <= means[3]


def test_what_never_ends_is_given_as_it_is():
    """The end is never probable: T ids, and the score over the longest's penalty."""
    B, table = 2, tables(2, seed=3)
    for logits in table.values():
        logits[:, END] = -60.0
    found, score_B = searched(table, B, beams=2)
    for row in range(B):
        assert len(found[row]) == T and END not in found[row]
        total = sum(log_p(table, row, found[row][:n])[found[row][n]] for n in range(T))
        np.testing.assert_allclose(score_B[row], total / float(length_penalty(T, 0.6)), rtol=1e-5)
