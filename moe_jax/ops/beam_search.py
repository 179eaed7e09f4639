"""Beam search over sequences that a model writes id by id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Cache = TypeVar("Cache")
# (cache, the last ids (N,), the place of what comes next) -> logits (N, V), the next cache.
Next = Callable[[Cache, Array, Array], tuple[Array, Cache]]
NEVER = -1e30  # a score that nothing real has; finite, so that differences are no NaN


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _Search:
    """W hypotheses of each of B rows that go on, and the W best that have ended."""

    place: Int[Array, ""]
    ids_BWT: Int[Array, "B W T"]
    score_BW: Float[Array, "B W"]  # log p
    ended_BWT: Int[Array, "B W T"]
    ended_BW: Float[Array, "B W"]  # log p over the penalty of its length


def length_penalty(length: Array | int, alpha: float) -> Array:
    """((5 + length) / 6)^alpha; length counts the end. Wu et al. (1609.08144), eq. 14."""
    return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** alpha


def beam_search(  # long: a loop's state and its two steps read together
    following: Next[Cache],
    cache: Cache,
    reorder: Callable[[Cache, Array], Cache],
    *,
    start_B: Int[Array, "B"],
    beams: int,
    length: int,
    end: int,
    pad: int,
    usable_V: Bool[Array, "V"],
    alpha: float = 0.6,
) -> tuple[Int[Array, "B T"], Float[Array, "B"]]:
    """The best sequence of up to T = length ids found for each row, and its score, log p over
    `length_penalty`. The end is part of a sequence, `pad` stands behind it.

    following: gives logits for N = B W rows, the W hypotheses of a row side by side. reorder: a
    cache whose row n is the given one's row index_N[n]. start_B: the id that stands before each
    sequence. usable_V: ids that may be written, the end among them. beams: W; with one the most
    probable id is taken each time. A row ends when W of its hypotheses have ended and none that
    goes on can still be better; what has not ended at T counts only where nothing has. Of equal
    candidates the earlier hypothesis and the lower id come first.
    """
    B, W, T = start_B.shape[0], beams, length
    V = usable_V.shape[0]
    blocked_V = jnp.where(usable_V, 0.0, NEVER).astype(jnp.float32)

    def improvable(search: _Search) -> Bool[Array, "B"]:
        """Whether one that goes on could still come among the ended ones."""
        if W == 1:
            return search.ended_BW[:, 0] <= NEVER
        # log p only falls, and is divided by no more than the longest's penalty.
        most_B = jnp.max(search.score_BW, axis=1) / length_penalty(T, alpha)
        return most_B > jnp.min(search.ended_BW, axis=1)

    def goes_on(state: tuple[_Search, Cache]) -> Bool[Array, ""]:
        return (state[0].place < T) & jnp.any(improvable(state[0]))

    def one_more(state: tuple[_Search, Cache]) -> tuple[_Search, Cache]:
        search, cache = state
        place = search.place
        before_BW = jnp.where(
            place == 0, start_B[:, None], search.ids_BWT[:, :, jnp.maximum(place - 1, 0)]
        )
        logits_NV, cache = following(cache, before_BW.reshape(-1), place)
        log_p_NV = jax.nn.log_softmax(logits_NV.astype(jnp.float32) + blocked_V[None], axis=-1)
        log_p_BWV = jnp.maximum(log_p_NV, NEVER).reshape(B, W, V) + search.score_BW[:, :, None]
        # Of 2 W at least W do not end, since each hypothesis ends in one way.
        score_BC, flat_BC = jax.lax.top_k(log_p_BWV.reshape(B, W * V), min(2 * W, W * V))
        from_BC, id_BC = flat_BC // V, (flat_BC % V).astype(jnp.int32)
        ids_BCT = jnp.take_along_axis(search.ids_BWT, from_BC[..., None], axis=1)
        ids_BCT = ids_BCT.at[:, :, place].set(id_BC)
        ends_BC = id_BC == end
        # Only the W best may end, as greedy search ends with the best alone.
        among_BC = ends_BC & (jnp.arange(ends_BC.shape[1])[None] < W) & (score_BC > NEVER / 2)
        score = jnp.where(among_BC, score_BC / length_penalty(place + 1, alpha), NEVER)
        all_BE = jnp.concatenate([search.ended_BW, score], axis=1)
        ended_BW, best_BW = jax.lax.top_k(all_BE, W)
        sequences = jnp.concatenate([search.ended_BWT, ids_BCT], axis=1)
        on_BW, kept_BW = jax.lax.top_k(jnp.where(ends_BC, NEVER, score_BC), W)
        origin_BW = jnp.take_along_axis(from_BC, kept_BW, axis=1)
        cache = reorder(cache, (origin_BW + W * jnp.arange(B)[:, None]).reshape(-1))
        search = _Search(
            place=place + 1,
            ids_BWT=jnp.take_along_axis(ids_BCT, kept_BW[..., None], axis=1),
            score_BW=on_BW,
            ended_BWT=jnp.take_along_axis(sequences, best_BW[..., None], axis=1),
            ended_BW=ended_BW,
        )
        return search, cache

    empty = jnp.full((B, W, T), pad, jnp.int32)
    first_BW = jnp.full((B, W), NEVER, jnp.float32).at[:, 0].set(0.0)
    search = _Search(
        place=jnp.zeros((), jnp.int32),
        ids_BWT=empty,
        score_BW=first_BW,
        ended_BWT=empty,
        ended_BW=jnp.full((B, W), NEVER, jnp.float32),
    )
    search, _ = jax.lax.while_loop(goes_on, one_more, (search, cache))
    there_B = search.ended_BW[:, 0] > NEVER
    ids_BT = jnp.where(there_B[:, None], search.ended_BWT[:, 0], search.ids_BWT[:, 0])
    unended_B = search.score_BW[:, 0] / length_penalty(T, alpha)
    return ids_BT, jnp.where(there_B, search.ended_BW[:, 0], unended_B)
