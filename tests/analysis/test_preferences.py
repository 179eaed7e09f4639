"""Counts over traces, against loops and against cases that can be done by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_jax.analysis import preferences
from moe_jax.analysis.trace import Trace
from tests.analysis.drawn_trace import random_trace


def tokens(trace: Trace, layer: int):
    """(row, place, experts that took the token) of every token that is no padding."""
    for n in range(trace.rows):
        for s in range(trace.token_NS.shape[1]):
            if trace.segment_NS[n, s] > 0:
                pairs = zip(
                    trace.expert_LNSK[layer, n, s], trace.kept_LNSK[layer, n, s], strict=True
                )
                yield n, s, [int(e) for e, kept in pairs if kept and e < trace.num_experts]


def test_co_activation_is_the_share_of_common_tokens():
    trace = random_trace()
    found = preferences.co_activation(trace)
    for layer in range(2):
        sets = [set(experts) for _, _, experts in tokens(trace, layer)]
        for i in range(6):
            own = [chosen for chosen in sets if i in chosen]
            for j in range(6):
                expected = np.nan if i == j else np.mean([j in chosen for chosen in own])
                np.testing.assert_allclose(found[layer, i, j], expected, rtol=1e-6)


def test_an_expert_without_tokens_has_no_partners():
    trace = random_trace()
    expert = np.where(trace.expert_LNSK == 3, 7, trace.expert_LNSK)
    found = preferences.co_activation(dataclasses.replace(trace, expert_LNSK=expert))
    assert np.isnan(found[:, 3]).all() and not np.isnan(found[:, 0, 1]).any()


def test_the_leading_expert_has_the_largest_weight_of_those_that_took_the_token():
    trace = random_trace()
    found = preferences.leading_expert(trace)
    assert (found[:, trace.segment_NS == 0] == -1).all()
    for layer in range(2):
        for n, s, experts in tokens(trace, layer):
            weights = {
                int(e): w
                for e, w in zip(
                    trace.expert_LNSK[layer, n, s], trace.weight_LNSK[layer, n, s], strict=True
                )
                if int(e) in experts
            }
            expected = max(weights, key=weights.__getitem__) if experts else -1
            assert found[layer, n, s] == expected


def test_saturation_is_the_share_that_stayed():
    first, last = random_trace(1, step=1), random_trace(2, step=9)
    found = preferences.saturation([first, last])
    assert found[1] == pytest.approx([1.0, 1.0])
    for layer in range(2):
        shares = []
        for n, s in zip(*np.nonzero(last.segment_NS), strict=True):
            old, new = (
                {int(e) for e in t.expert_LNSK[layer, n, s] if e < 6} for t in (first, last)
            )
            if old or new:
                shares.append(len(old & new) / max(len(old), len(new)))
        assert found[0, layer] == pytest.approx(np.mean(shares))
    of_first = preferences.saturation([first, last], k=1)
    there = last.segment_NS > 0
    same = first.expert_LNSK[0][there][:, 0] == last.expert_LNSK[0][there][:, 0]
    either = (first.expert_LNSK[0][there][:, 0] < 6) | (last.expert_LNSK[0][there][:, 0] < 6)
    both = same & (last.expert_LNSK[0][there][:, 0] < 6)
    assert of_first[0, 0] == pytest.approx(both.sum() / either.sum())
    other = dataclasses.replace(last, token_NS=last.token_NS + 1)
    with pytest.raises(ValueError, match="different tokens"):
        preferences.saturation([other, last])


def test_preferences_are_shares_of_a_tokens_occurrences():
    trace = random_trace(L=1, N=8, S=60)
    found = preferences.preferred_tokens(trace, 0, most=3, min_count=20)
    counts, whole = np.zeros((5, 6)), np.zeros(5)
    for n, s, experts in tokens(trace, 0):
        whole[trace.token_NS[n, s]] += 1
        for e in experts:
            counts[trace.token_NS[n, s], e] += 1
    chance = counts.sum() / whole.sum() / 6
    assert preferences.chance(trace, 0) == pytest.approx(chance)
    for e in range(6):
        share = counts[:, e] / whole
        expected = sorted((v for v in range(5) if share[v] > chance), key=lambda v: -share[v])[:3]
        assert [one.token for one in found[e]] == expected
        assert [one.share for one in found[e]] == pytest.approx([share[v] for v in expected])
        assert all(one.count == whole[one.token] for one in found[e])
    assert preferences.preferred_tokens(trace, 0, min_count=10_000) == [[]] * 6


def test_drops_are_counted_where_they_happen():
    trace = random_trace(L=1, N=50, S=40)
    kept = np.broadcast_to((np.arange(40) < 30)[None, None, :, None], trace.kept_LNSK.shape)
    found = preferences.dropped_by_position(dataclasses.replace(trace, kept_LNSK=kept), 4)
    assert found.shape == (1, 4)
    np.testing.assert_allclose(found[0], [0, 0, 0, 1])
