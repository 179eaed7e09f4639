"""What experts have in common and what each prefers: counts over a trace, on the host.

The measures of OLMoE (Muennighoff et al., 2409.02060, section 5): saturation, co-activation,
domain and vocabulary specialisation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_jax.analysis.routes import overlap
from moe_jax.analysis.trace import Trace


def taken(trace: Trace) -> np.ndarray:
    """(L, N, S, K) bool: assignments to matrix experts that took the token; no padding."""
    real = (trace.segment_LNS > 0)[..., None]
    return trace.kept_LNSK & (trace.expert_LNSK < trace.num_experts) & real


def load(trace: Trace) -> np.ndarray:
    """(L, E): the share of the wanted assignments of each expert, before drops: the evaluation's
    `load`."""
    wanted = (trace.expert_LNSK < trace.num_experts) & (trace.segment_LNS > 0)[..., None]
    counts_LE = np.stack(
        [
            np.bincount(expert[here], minlength=trace.num_experts)
            for expert, here in zip(trace.expert_LNSK, wanted, strict=True)
        ]
    )
    return counts_LE / np.maximum(counts_LE.sum(axis=1, keepdims=True), 1)


def leading_expert(trace: Trace) -> np.ndarray:
    """(L, N, S) int: the expert with the largest weight among those that took the token, -1 where
    none did."""
    there = taken(trace)
    weight = np.where(there, trace.weight_LNSK, -np.inf)
    best = np.argmax(weight, axis=-1)[..., None]
    expert = np.take_along_axis(trace.expert_LNSK, best, axis=-1)[..., 0]
    return np.where(there.any(axis=-1), expert, -1)


def co_activation(trace: Trace) -> np.ndarray:
    """(L, E, E): N_ij / N_i, the share of the tokens of expert i that expert j took too; nan on
    the diagonal and for experts without tokens."""
    L, E = len(trace.layers_L), trace.num_experts
    there, found = taken(trace), np.full((L, E, E), np.nan)
    for layer in range(L):
        chosen_TE = np.zeros((there[layer].shape[0] * there[layer].shape[1], E), np.float32)
        expert_TK = trace.expert_LNSK[layer].reshape(len(chosen_TE), -1)
        here_TK = there[layer].reshape(expert_TK.shape)
        token, choice = np.nonzero(here_TK)
        chosen_TE[token, expert_TK[token, choice]] = 1
        both_EE = chosen_TE.T @ chosen_TE
        own_E = np.diag(both_EE).copy()
        with np.errstate(invalid="ignore", divide="ignore"):
            found[layer] = both_EE / own_E[:, None]
        found[layer][np.diag_indices(E)] = np.nan
        found[layer][own_E == 0] = np.nan
    return found


def saturation(traces: Sequence[Trace], k: int | None = None) -> np.ndarray:
    """(traces, L): the mean share of a token's experts that it has in the last trace too,
    |E_t & E_T| / k; 1 in the last, k / E by chance.

    k: of the first k choices alone (a token's best first); None: of all. ValueError for traces of
    other tokens.
    """
    last = traces[-1]
    result = np.full((len(traces), len(last.layers_L)), np.nan)
    for number, trace in enumerate(traces):
        if not np.array_equal(trace.tokens_of_parts, last.tokens_of_parts):
            raise ValueError("the traces are of different tokens")
        for layer in range(len(last.layers_L)):
            old, new = (_choices(t, layer, k) for t in (trace, last))
            result[number, layer] = overlap(old, new, trace.num_experts)
    return result


def _choices(trace: Trace, layer: int, k: int | None) -> np.ndarray:
    """(T, k) experts of the tokens that are no padding, the undispatched as no expert."""
    expert_TK = trace.expert_LNSK[layer][trace.segment_LNS[layer] > 0][:, :k]
    return np.minimum(expert_TK, trace.num_experts)


def dropped_by_position(trace: Trace, bins: int) -> np.ndarray:
    """(L, bins): dropped / wanted assignments by the place in the row; nan where none is wanted."""
    wanted = (trace.expert_LNSK < trace.num_experts) & (trace.segment_LNS > 0)[..., None]
    lost = wanted & ~trace.kept_LNSK
    edges = np.linspace(0, trace.token_NS.shape[1], bins + 1).round().astype(int)
    sums = [
        [part[:, :, a:b].sum(axis=(1, 2, 3)) for a, b in itertools.pairwise(edges)]
        for part in (lost, wanted)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.array(sums[0]) / np.array(sums[1])).T


@dataclass(frozen=True)
class Preference:
    """A token that an expert likes. share: of the token's occurrences, those that the expert took;
    count: its occurrences."""

    token: int
    share: float
    count: int


def chance(trace: Trace, layer: int) -> float:
    """The share of tokens that an expert takes on the average: assignments / (tokens E)."""
    tokens = max(int((trace.segment_LNS[layer] > 0).sum()), 1)
    return float(taken(trace)[layer].sum()) / tokens / trace.num_experts


def preferred_tokens(
    trace: Trace, layer: int, most: int = 8, min_count: int = 20
) -> list[list[Preference]]:
    """For each expert the tokens that it takes the largest share of, N_ve / N_v, more than by
    chance; of input tokens that occur at least `min_count` times (the vocabulary specialisation
    of OLMoE). layer: index of the trace's layers."""
    E, there = trace.num_experts, taken(trace)[layer]
    token_NS, real_NS = trace.token_LNS[layer], trace.segment_LNS[layer] > 0
    values, index, whole = np.unique(token_NS[real_NS], return_inverse=True, return_counts=True)
    index_NS = np.full(token_NS.shape, -1)
    index_NS[real_NS] = index
    counts = np.zeros((len(values), E), np.int64)
    row = np.broadcast_to(index_NS[:, :, None], there.shape)[there]
    np.add.at(counts, (row, trace.expert_LNSK[layer][there]), 1)
    share = np.where(whole[:, None] >= min_count, counts / whole[:, None], 0.0)
    least = chance(trace, layer)
    found = []
    for e in range(E):
        order = sorted(range(len(values)), key=lambda v: (-share[v, e], -whole[v], values[v]))
        found.append(
            [
                Preference(int(values[v]), float(share[v, e]), int(whole[v]))
                for v in order[:most]
                if share[v, e] > least
            ]
        )
    return found


# Several gates


def gate_shares(trace: Trace) -> np.ndarray:
    """(L, E): the share of each expert in what a gate gives its tokens; 0 where that is nothing."""
    real_NS = trace.segment_NS > 0
    sums_LE = trace.gate_weights()[:, real_NS].sum(axis=1, dtype=np.float64)
    return sums_LE / np.maximum(sums_LE.sum(axis=1, keepdims=True), 1e-9)


def gate_overlap(trace: Trace) -> np.ndarray:
    """(layers, K, K): how alike two gates weigh the experts of a token, mean over tokens of
    sum_e min(g^k_e, g^l_e), each gate's weights over their sum: 1 is alike, 0 has none in
    common; nan where either gives nothing."""
    K = len(dict.fromkeys(trace.gates or ("",)))
    weight = trace.gate_weights()[:, trace.segment_NS > 0].astype(np.float64)
    total = weight.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        share = (weight / np.where(total > 0, total, np.nan)).reshape(-1, K, *weight.shape[1:])
    both = np.minimum(share[:, :, None], share[:, None]).sum(axis=-1)
    found = np.full(both.shape[:-1], np.nan)
    there = np.isfinite(both).any(axis=-1)
    found[there] = np.nanmean(both[there], axis=-1)
    return found


def target_correlation(trace: Trace) -> np.ndarray:
    """(T, T): Pearson's correlation of two targets over the rows in which both are known; nan where
    one of them does not vary."""
    assert trace.target_NT is not None
    target_TN = np.asarray(trace.target_NT, np.float64).T
    found = np.full((len(target_TN),) * 2, np.nan)
    for i, j in itertools.product(range(len(target_TN)), repeat=2):
        known = np.isfinite(target_TN[i]) & np.isfinite(target_TN[j])
        x, y = target_TN[i][known], target_TN[j][known]
        if len(x) and x.std() > 0 and y.std() > 0:
            found[i, j] = np.mean((x - x.mean()) * (y - y.mean())) / (x.std() * y.std())
    return found
