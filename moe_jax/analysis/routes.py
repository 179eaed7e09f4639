"""How the routes of one fixed batch change over training, and how firm its choices are.

Host-side functions on arrays of numpy or jax. The ids of a token's row are its experts in any
order; an id that stands there twice (as rows without an expert do) counts twice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def churn(expert_old_TK: ArrayLike, expert_new_TK: ArrayLike) -> float:
    """Fraction of tokens whose set of experts changed: mean over t of [A_t != B_t].

    A_t, B_t: the experts of token t before and after, without order. In [0, 1]; 0 is frozen
    routes. nan where T = 0. ValueError for arrays that are not both (T, K).
    """
    old_TK, new_TK = _same_shape(expert_old_TK, expert_new_TK)
    changed_T = np.any(np.sort(old_TK, axis=1) != np.sort(new_TK, axis=1), axis=1)
    return _mean(changed_T)


def overlap(
    expert_old_TK: ArrayLike, expert_new_TK: ArrayLike, num_experts: int | None = None
) -> float:
    """Mean share of a token's experts that stayed: mean over t of |A_t & B_t| / K.

    In [0, 1]; 1 is frozen routes, K / E is what two unrelated uniform choices give. For K = 1 it
    is 1 - churn. nan where T = 0. ValueError for arrays that are not both (T, K).

    num_experts: ids from here on stand for no expert (padding, unused rows) and are left out:
    |A_t & B_t| / max(|A_t|, |B_t|), over the tokens that have any expert before or after.
    """
    old_TK, new_TK = _same_shape(expert_old_TK, expert_new_TK)
    limit = np.inf if num_experts is None else num_experts
    real_old_TK, real_new_TK = old_TK < limit, new_TK < limit
    same_TKK = old_TK[:, :, None] == new_TK[:, None, :]
    # The n-th copy of an id on one side meets only the n-th copy on the other.
    nth_TKK = _copy_number(old_TK)[:, :, None] == _copy_number(new_TK)[:, None, :]
    stayed_T = np.sum(np.any(same_TKK & nth_TKK, axis=2) & real_old_TK, axis=1)
    max_T = np.maximum(real_old_TK.sum(axis=1), real_new_TK.sum(axis=1))
    return _mean(stayed_T[max_T > 0] / max_T[max_T > 0])


def margin(prob_TE: ArrayLike, k: int = 1) -> float:
    """Mean gap between the k-th and the (k+1)-th largest probability of a token.

    mean over t of p_(k) - p_(k+1), with p_(1) >= p_(2) >= ...; 0 for k = E, where no expert is
    left to compare with. k = 1 is the gap between first and second choice; with the router's own
    k it says how firmly the chosen set is chosen: near 0, small updates flip it. nan where T = 0.
    ValueError unless 1 <= k <= E.
    """
    prob_TE = np.asarray(prob_TE).astype(np.float64)
    if prob_TE.ndim != 2 or not 1 <= k <= prob_TE.shape[1]:
        raise ValueError(f"k={k} of probabilities {prob_TE.shape}: needs (T, E) and 1 <= k <= E")
    descending_TE = -np.sort(-prob_TE, axis=1)
    padded = np.pad(descending_TE, ((0, 0), (0, 1)), mode="edge")
    return _mean(padded[:, k - 1] - padded[:, k])


def _same_shape(old: ArrayLike, new: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    old_TK, new_TK = np.asarray(old), np.asarray(new)
    if old_TK.ndim != 2 or old_TK.shape != new_TK.shape:
        raise ValueError(f"experts {old_TK.shape} and {new_TK.shape}: both must be (T, K)")
    return old_TK, new_TK


def _copy_number(expert_TK: np.ndarray) -> np.ndarray:
    """How many times the same id stands before each place of its row: (T, K)."""
    K = expert_TK.shape[1]
    same_TKK = expert_TK[:, :, None] == expert_TK[:, None, :]
    return np.sum(same_TKK & np.tri(K, k=-1, dtype=bool), axis=2)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else float("nan")
