from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from moe_jax.data.planted import Planted

CONFIG = Planted(
    sequence_length=200, sources=3, symbols=5, successors=3, run_length=6.0, skew=0.7, rows=400
)


def whole_chain(config: Planted) -> np.ndarray:
    """Transitions of (z, x), K V by K V, from the definition."""
    p = config.process
    K, V = config.sources, config.symbols
    chain = np.zeros((K, V, K, V))
    for j in range(K):
        for x in range(V):
            for k in range(K):
                chain[j, x, k] = p.switch_KK[j, k] * p.transition_KVV[k, x]
    return chain.reshape(K * V, K * V)


def test_the_process_is_one():
    p = CONFIG.process
    np.testing.assert_allclose(p.transition_KVV.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(p.switch_KK.sum(-1), 1, rtol=1e-12)
    assert np.all((p.transition_KVV > 0).sum(-1) == CONFIG.successors)
    share_K = np.arange(1, 4) ** -0.7 / sum(k**-0.7 for k in (1, 2, 3))
    np.testing.assert_allclose(p.stationary_KV.sum(-1), share_K, rtol=1e-9)
    # A run goes on with 1 - 1/6, and may be drawn again.
    np.testing.assert_allclose(np.diag(p.switch_KK), 5 / 6 + share_K / 6, rtol=1e-12)
    assert not np.allclose(p.transition_KVV[0], p.transition_KVV[1])


def test_the_stationary_distribution_against_scipy():
    values, vectors = scipy.linalg.eig(whole_chain(CONFIG), left=True, right=False)
    vector = np.real(vectors[:, np.argmax(np.real(values))])
    expected = (vector / vector.sum()).reshape(CONFIG.sources, CONFIG.symbols)
    np.testing.assert_allclose(CONFIG.process.stationary_KV, expected, atol=1e-10)


def test_the_entropy_rate_against_scipy():
    p, expected = CONFIG.process, 0.0
    for j in range(CONFIG.sources):
        for x in range(CONFIG.symbols):
            for k in range(CONFIG.sources):
                nats = scipy.stats.entropy(p.transition_KVV[k, x])
                expected += p.stationary_KV[j, x] * p.switch_KK[j, k] * nats
    assert p.entropy_rate == pytest.approx(expected, rel=1e-9)


def test_the_rows_have_the_entropy_that_is_told():
    rows = CONFIG.open("train")
    before, after, source = rows.tokens[:, :-1], rows.tokens[:, 1:], rows.sources[:, 1:]
    nats = -np.log(CONFIG.process.transition_KVV[source, before, after])
    # Rows are independent, so their means give the standard error.
    error = nats.mean(axis=1).std() / np.sqrt(len(rows))
    assert abs(nats.mean() - CONFIG.process.entropy_rate) < 4 * error


def test_the_optimal_cross_entropy_against_all_paths():
    """The likelihood of a row, summed over every path of the sources."""
    config = Planted(sequence_length=5, sources=2, symbols=4, successors=3, run_length=3.0, rows=20)
    p, tokens = config.process, config.open("train").tokens
    total = 0.0
    for row in tokens:
        whole, first = 0.0, p.stationary_KV[:, row[0]].sum()
        for path in np.ndindex(*[2] * len(row)):
            likelihood = p.stationary_KV[path[0], row[0]]
            for t in range(1, len(row)):
                likelihood *= p.switch_KK[path[t - 1], path[t]]
                likelihood *= p.transition_KVV[path[t], row[t - 1], row[t]]
            whole += likelihood
        total -= np.log(whole / first)
    assert p.optimal_cross_entropy(tokens) == pytest.approx(total / tokens[:, 1:].size, rel=1e-9)


def test_knowing_the_source_is_worth_something_and_guessing_symbols_is_worst():
    config = Planted(rows=64)
    tokens = config.open("train").tokens
    optimal = config.process.optimal_cross_entropy(tokens)
    assert config.process.entropy_rate < optimal < np.log(config.symbols) / 2


def test_one_source_leaves_nothing_to_infer():
    config = Planted(sources=1, rows=64)
    rows = config.open("train")
    nats = -np.log(config.process.transition_KVV[0][rows.tokens[:, :-1], rows.tokens[:, 1:]])
    assert config.process.optimal_cross_entropy(rows.tokens) == pytest.approx(nats.mean())


def test_rows_are_stationary_and_runs_have_their_length():
    config = Planted(sources=4, symbols=16, run_length=10.0, rows=4000, sequence_length=60)
    rows = config.open("train")
    for t in (0, 1, 60):  # every position has the same distribution
        counts = np.bincount(rows.sources[:, t] * 16 + rows.tokens[:, t], minlength=64)
        expected = config.process.stationary_KV.ravel() * len(rows)
        seen = expected > 1e-6
        assert counts[~seen].sum() == 0
        assert scipy.stats.chisquare(counts[seen], expected[seen]).pvalue > 1e-4
    # A new source is drawn with 1/10 and is another one with 3/4.
    changed = rows.sources[:, 1:] != rows.sources[:, :-1]
    deviation = np.sqrt(0.075 * 0.925 / changed.size)
    assert abs(changed.mean() - 0.075) < 4 * deviation


def test_rows_tell_their_sources_and_are_reproducible():
    rows, again = CONFIG.open("train"), CONFIG.open("train")
    row = rows[3]
    assert {name: (a.shape, a.dtype.name) for name, a in row.items()} == {
        "tokens": ((201,), "int32"),
        "segments": ((201,), "int32"),
        "domain": ((), "int32"),
        "source": ((201,), "int32"),
    }
    np.testing.assert_array_equal(row["tokens"], again[3]["tokens"])
    assert json.dumps(rows.fingerprint) == json.dumps(again.fingerprint)
    validation = CONFIG.open("validation")
    assert validation.fingerprint["content"] != rows.fingerprint["content"]
    assert not (rows.tokens[:256] == validation.tokens).all(axis=1).any()


def test_another_seed_is_another_process():
    import dataclasses

    other = dataclasses.replace(CONFIG, seed=1)
    assert not np.allclose(other.process.transition_KVV, CONFIG.process.transition_KVV)
    assert other.open("train").fingerprint != CONFIG.open("train").fingerprint


def test_a_symbol_counts_as_a_byte():
    tokenizer = CONFIG.open("validation").tokenizer
    np.testing.assert_array_equal(tokenizer.bytes_per_token_V, np.ones(5))
    assert tokenizer.decode(tokenizer.encode("3 1 4")) == "3 1 4"


@pytest.mark.parametrize(
    ("settings", "broken"),
    [
        ({}, []),
        ({"successors": 65}, ["successors"]),
        ({"sources": 0, "run_length": 0.5}, ["sources", "run_length"]),
        ({"skew": -1.0}, ["skew"]),
    ],
)
def test_rules(settings, broken):
    assert [name for name, _ in Planted(**settings).check()] == broken
