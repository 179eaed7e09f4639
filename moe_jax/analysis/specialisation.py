"""Which experts serve which domains: of a trace, in float64 on the host."""

from __future__ import annotations

import numpy as np

from moe_jax.analysis.trace import Trace


def domain_counts(trace: Trace, by: str = "auto") -> tuple[np.ndarray, tuple[str, ...]]:
    """(L, Domains, E) kept assignments of each domain to each expert, and the domains' names.

    by: "source" (of each token, planted), "domain", "class" (of each row, or of each patch) or
    "auto": sources where they are known, else domains.
    """
    counted_LNS = trace.segment_LNS > 0
    use_source = by == "source" or (by == "auto" and trace.source_NS is not None)
    if use_source:
        assert trace.source_NS is not None, "this data does not know its sources"
        domain_NS = trace.source_NS
        names = tuple(f"source {i}" for i in range(int(domain_NS.max()) + 1))
    elif by == "class" and trace.class_NS is not None:
        assert trace.classes is not None
        domain_NS, names = trace.class_NS, trace.classes
        counted_LNS = counted_LNS & (domain_NS >= 0)[None]
    else:
        row_N, names = trace.domain_N, trace.domains
        if by == "class":
            assert trace.label_N is not None and trace.classes, "these rows have no class"
            row_N, names = np.maximum(trace.label_N, 0), trace.classes  # padding is not counted
        domain_NS = np.broadcast_to(row_N[:, None], trace.token_NS.shape)
    L, E = len(trace.layers_L), trace.num_experts
    counts = np.zeros((L, len(names), E), np.int64)
    taken = trace.kept_LNSK & (trace.expert_LNSK < E) & counted_LNS[..., None]
    K = trace.expert_LNSK.shape[-1]
    domain_NSK = np.repeat(domain_NS[:, :, None], K, axis=2)
    for layer in range(L):
        at = taken[layer]
        np.add.at(counts[layer], (domain_NSK[at], trace.expert_LNSK[layer][at]), 1)
    return counts, names


def mutual_information(counts_DE: np.ndarray) -> float:
    """Bits that the expert of an assignment tells about its domain:
    I = sum p(d, e) log2(p(d, e) / (p(d) p(e))), p from counts; 0 for an empty table.

    At most min(H(domain), H(expert)); estimates are high by about (D - 1)(E - 1) / (2 n ln 2) bits
    of n assignments.
    """
    p_DE = np.asarray(counts_DE, np.float64)
    if p_DE.sum() == 0:
        return 0.0
    p_DE = p_DE / p_DE.sum()
    independent_DE = p_DE.sum(axis=1, keepdims=True) * p_DE.sum(axis=0, keepdims=True)
    there = p_DE > 0
    return float(np.sum(p_DE[there] * np.log2(p_DE[there] / independent_DE[there])))


def entropy_bits(counts: np.ndarray) -> float:
    """Entropy in bits of the distribution that the counts have."""
    p = np.asarray(counts, np.float64).ravel()
    p = p[p > 0] / max(p.sum(), 1)
    return float(-np.sum(p * np.log2(p)))


def specialisation(trace: Trace, by: str = "auto") -> dict[int, float]:
    """By layer: the share of the domain's entropy that the expert tells, I(domain; expert) /
    H(domain), in [0, 1]; 0 where there is one domain only. Of several gates their mean."""
    counts_LDE, _ = domain_counts(trace, by)
    found: dict[int, list[float]] = {}
    for layer, counts_DE in zip(trace.layers_L, counts_LDE, strict=True):
        whole = entropy_bits(counts_DE.sum(axis=1))
        share = mutual_information(counts_DE) / whole if whole > 0 else 0.0
        found.setdefault(int(layer), []).append(share)
    return {layer: float(np.mean(shares)) for layer, shares in found.items()}


def specialisation_table(trace: Trace, by: str = "auto") -> np.ndarray:
    """(L, D, E): N_de / N_d, the share of a domain's assignments that each expert takes (the domain
    specialisation of OLMoE, 2409.02060, section 5.3; chance is 1 / E)."""
    counts_LDE, _ = domain_counts(trace, by)
    total_LD1 = counts_LDE.sum(axis=2, keepdims=True)
    return counts_LDE / np.maximum(total_LD1, 1)
