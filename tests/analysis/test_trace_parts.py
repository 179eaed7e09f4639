"""Traces of a model of several parts: each layer's routes are of its part's tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_jax.analysis import preferences
from moe_jax.analysis.report.routing import by_language
from moe_jax.analysis.specialisation import domain_counts
from moe_jax.analysis.trace import Trace
from tests.analysis.drawn_trace import random_trace


@pytest.fixture
def trace():
    """Layer 0 is of an encoder, whose rows have 30 tokens, 1 and 2 of a decoder."""
    last = random_trace(L=3)
    first_NS = last.token_NS + 10
    segment_NS = last.segment_NS.copy()
    segment_NS[:, 30:] = 0
    return dataclasses.replace(
        last,
        parts=("encoder", "decoder"),
        part_L=np.array([0, 1, 1], np.int32),
        token_PNS=np.stack([first_NS, last.token_NS]),
        segment_PNS=np.stack([segment_NS, last.segment_NS]),
    )


def test_each_layer_has_the_tokens_of_its_part(trace):
    real = [trace.segment_PNS[part] > 0 for part in (0, 1, 1)]
    load_LE, taken = preferences.load(trace), preferences.taken(trace)
    counts_LDE, _ = domain_counts(trace)
    for layer in range(3):
        wanted = trace.expert_LNSK[layer][real[layer]]
        counts = np.bincount(wanted[wanted < trace.num_experts], minlength=trace.num_experts)
        np.testing.assert_allclose(load_LE[layer], counts / counts.sum())
        assert not taken[layer][~real[layer]].any()
        assert counts_LDE[layer].sum() == taken[layer].sum()
        liked = preferences.preferred_tokens(trace, layer, min_count=1)
        tokens = {one.token for each in liked for one in each}
        assert tokens <= set(range(10, 15) if layer == 0 else range(5))
    assert [trace.title(layer) for layer in range(3)] == [
        "Layer 0, encoder", "Layer 1, decoder", "Layer 2, decoder",
    ]  # fmt: skip


def test_it_is_written_and_read(trace, tmp_path):
    trace.save(tmp_path / "trace.npz")
    again = Trace.read(tmp_path / "trace.npz")
    assert again.parts == trace.parts
    for name in ("part_L", "token_PNS", "segment_PNS", "token_LNS", "segment_LNS"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trace, name))
    with np.load(tmp_path / "trace.npz") as content:
        assert {"parts", "part", "part_token", "part_segment"} <= set(content.files)


def test_other_tokens_of_one_part_are_told(trace):
    other = dataclasses.replace(trace, token_PNS=trace.token_PNS + np.array([[[1]], [[0]]]))
    with pytest.raises(ValueError, match="different tokens"):
        preferences.saturation([other, trace])


def test_pairs_of_languages_by_the_language_of_each_side():
    counts_LDE = np.arange(2 * 4 * 3).reshape(2, 4, 3)
    found = by_language(counts_LDE, ("en-de", "it-en", "en-fr", "de-en"))
    counts, names = found["Source languages"]
    assert names == ("de (Germanic)", "en (Germanic)", "it (Romance)")
    np.testing.assert_array_equal(counts[:, 1], counts_LDE[:, 0] + counts_LDE[:, 2])
    counts, names = found["Target languages"]
    assert names == ("de (Germanic)", "en (Germanic)", "fr (Romance)")
    np.testing.assert_array_equal(counts[:, 1], counts_LDE[:, 1] + counts_LDE[:, 3])
    assert by_language(counts_LDE, ("news", "a-b", "c-d", "e-f")) == {}
