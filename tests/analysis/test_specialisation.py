"""Traces as files, domains by expert, and what replaced tokens change, on small made-up routes."""

from __future__ import annotations

import numpy as np
import pytest

from moe_jax.analysis.leak import LeakSums, Observed, replace_later
from moe_jax.analysis.specialisation import (
    domain_counts,
    entropy_bits,
    mutual_information,
    specialisation,
    specialisation_table,
)
from moe_jax.analysis.trace import Trace, gates_of
from moe_jax.config.errors import UserError

N, S, E, K = 3, 8, 4, 2


def make(source=True, seed=0):
    rng = np.random.default_rng(seed)
    source_NS = rng.integers(0, 2, (N, S)).astype(np.int32)
    first = (2 * source_NS + rng.integers(0, 2, (N, S))).astype(np.int32)
    expert = np.stack([first, first ^ 1], axis=-1)[None]
    segment = np.ones((N, S), np.int32)
    segment[2, 5:] = 0
    expert[0, 2, 5:] = E
    return Trace(
        step=7,
        num_experts=E,
        unused=E,
        capacity_factor=None,
        layers_L=np.asarray([1], np.int32),
        token_NS=rng.integers(0, 9, (N, S)).astype(np.int32),
        segment_NS=segment,
        expert_LNSK=expert,
        weight_LNSK=rng.random((1, N, S, K)).astype(np.float32),
        kept_LNSK=expert < E,
        nats_NS=rng.random((N, S)).astype(np.float32),
        domain_N=np.asarray([0, 1, 0], np.int32),
        domains=("text", "code"),
        source_NS=source_NS if source else None,
    )


@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("factor", [None, 1.25])
def test_a_trace_survives_its_file(tmp_path, source, factor):
    import dataclasses

    trace = dataclasses.replace(make(source), capacity_factor=factor)
    file = tmp_path / "routes.trace"
    trace.save(file)
    again = Trace.read(file)
    for field in dataclasses.fields(trace):
        before, after = getattr(trace, field.name), getattr(again, field.name)
        assert type(before) is type(after)
        np.testing.assert_array_equal(before, after, field.name)


def test_files_that_are_no_traces(tmp_path):
    with pytest.raises(UserError, match="no such"):
        Trace.read(tmp_path / "none")
    (tmp_path / "text").write_text("no")
    with pytest.raises(UserError, match="no trace file"):
        Trace.read(tmp_path / "text")
    np.savez(tmp_path / "other.npz", schema="something else")
    with pytest.raises(UserError, match=r"moe_jax\.trace/1"):
        Trace.read(tmp_path / "other.npz")


def test_gates_add_up_what_was_kept():
    trace = make()
    gates = gates_of(trace.expert_LNSK, trace.weight_LNSK, trace.kept_LNSK, E)
    for n in range(N):
        for s in range(S):
            expected = np.zeros(E + 1)
            for k in range(K):
                if trace.kept_LNSK[0, n, s, k]:
                    expected[trace.expert_LNSK[0, n, s, k]] += trace.weight_LNSK[0, n, s, k]
            np.testing.assert_allclose(gates[0, n, s], expected[:E])


def test_domains_by_source_and_by_row():
    trace = make()
    counts, names = domain_counts(trace)
    assert names == ("source 0", "source 1") and counts.sum() == 2 * (2 * S + 5)
    assert counts[0, 0, 2:].sum() == counts[0, 1, :2].sum() == 0  # two experts for each source
    assert specialisation(trace) == {1: pytest.approx(1.0)}
    np.testing.assert_allclose(specialisation_table(trace).sum(axis=2), 1)
    by_row, names = domain_counts(trace, "domain")
    assert names == ("text", "code") and by_row[0, 1].sum() == 2 * S
    assert domain_counts(make(source=False))[1] == ("text", "code")


def test_mutual_information_against_scipy():
    from scipy.stats import entropy

    counts = np.random.default_rng(1).integers(0, 20, (3, 5))
    p = counts / counts.sum()
    joint = entropy(p.ravel(), base=2)
    per_member = entropy(p.sum(0), base=2) + entropy(p.sum(1), base=2)
    assert mutual_information(counts) == pytest.approx(per_member - joint)
    assert entropy_bits(counts) == pytest.approx(joint)
    assert mutual_information(np.outer([1, 2], [3, 4])) == pytest.approx(0, abs=1e-12)
    assert mutual_information(np.zeros((2, 2))) == 0


def test_replaced_tokens_lie_behind_the_cut():
    tokens = np.random.default_rng(0).integers(1, 60, (4, 9)).astype(np.int32)
    segments = np.ones((4, 9), np.int32)
    segments[1, 6:] = 0
    other = replace_later(tokens, segments, 4, seed=1)
    assert np.array_equal(other[:, :4], tokens[:, :4])
    assert np.array_equal(other[1, 6:], tokens[1, 6:])
    assert np.mean(other[:, 4:] != tokens[:, 4:]) > 0.5
    assert set(other.ravel()) <= set(tokens.ravel()) and other.dtype == tokens.dtype


def test_leak_counts_changed_routes_and_nats_before_the_cut():
    trace = make()

    def observed(expert, weight, nats):
        return Observed(
            nll_BS=nats,
            target_BS=np.ones(nats.shape, bool),
            segment_BS=trace.segment_NS,
            expert_LBSK=expert,
            weight_LBSK=weight,
            kept_LBSK=trace.kept_LNSK,
            num_experts=E,
        )

    expert, weight, nats = trace.expert_LNSK, trace.weight_LNSK, trace.nats_NS
    before = observed(expert, weight, nats)
    moved, shaken, changed = expert.copy(), weight.copy(), nats.copy()
    moved[0, 0, 1] = moved[0, 0, 1] ^ 2  # an earlier token of row 0: other experts
    shaken[0, 1, 2, 0] += 0.1  # one of row 1: another weight
    shaken[0, 1, 0, 0] += 1e-6  # rounding
    moved[0, 0, 6] = moved[0, 0, 6] ^ 2  # behind the cut
    changed[0, 0] += 0.5
    changed[1, 1] -= 0.2
    changed[1, 3] += 9  # its target is the first replaced token
    sums = LeakSums()
    sums.add(before, observed(moved, shaken, changed), 4, (1,))
    metrics = sums.metrics()
    assert metrics["tokens"] == 12
    assert metrics["routes_changed"] == metrics["routes_changed_layer_01"] == 2 / 12
    assert metrics["nats"] == pytest.approx(0.3 / 9, rel=1e-5)
    assert metrics["absolute_nats"] == pytest.approx(0.7 / 9, rel=1e-5)
    # The same choices in another order are the same routes.
    swapped = observed(expert[..., ::-1], weight[..., ::-1], nats)
    again = LeakSums()
    again.add(before, swapped, 4, (1,))
    assert again.metrics()["routes_changed"] == 0
