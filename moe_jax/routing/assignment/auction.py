"""Balanced assignment of tokens to experts: the linear assignment problem, by auction."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.routing.plan import one_hot, queues

FIRST_EPSILON = 0.25  # of the first phase; each next phase has a fifth of it
SHRINK = 5.0
# What a token bids above the price, in ranges, where no second expert is open to it.
ALONE = 2.0


class Assignment(NamedTuple):
    """What `balanced_assignment` found for one group.

    expert_T: E where a token is padding or no place is open to it. rounds: of bids, in all phases.
    finished: the auction ended before the cap. greedy_T: placed greedily after the cap.
    """

    expert_T: Int[Array, "*G T"]
    rounds: Int[Array, "*G"]
    finished: Bool[Array, "*G"]
    greedy_T: Bool[Array, "*G T"]


class Bids(NamedTuple):
    """The state of the auction: N bidders (tokens, then fillers), prices of E experts."""

    holds_N: Array  # the expert of which a bidder holds a place; E: none
    bid_N: Array  # what it pays for it
    price_E: Array  # the lowest accepted bid where all places are held, else base_E
    base_E: Array  # the price of a free place in this phase
    epsilon: Array
    settled_N: Array  # what bidders held at the end of the last finished phase
    rounds: Array
    finished: Array


def balanced_assignment(
    score_TE: Float[Array, "T E"],
    valid_T: Bool[Array, "T"],
    *,
    epsilon: float = 1e-5,
    max_rounds: int = 1000,
) -> Assignment:
    """Gives each token one expert, each expert at most C = ceil(V / E) of the V valid tokens, so
    that the sum of the scores is the largest possible one.

    A forward auction with similar places (Bertsekas and Castanon 1989, Bertsekas 1992): in a round
    each token without a place bids, all at once, for the expert with the largest score - price,
    up to where the second best expert would be better by epsilon. An expert keeps its C highest
    bids; its price is the lowest of them once all places are held. Fillers, tokens that like all
    experts equally, bid for the E C - V places that stay empty, so that prices may carry over from
    phase to phase: epsilon falls from a quarter of the range of scores (the largest difference
    within a token) to `epsilon` / 2 ranges, and each phase starts with no one holding a place.

    The sum is within (V + E) * epsilon * range of the optimum, and is the optimum where no other
    assignment is that near. Padding takes no place and changes nothing. Experts with -inf are not
    open to a token; C counts only experts open to some valid token.

    Ties: where two tokens may change places at no loss, the lower token has the lower expert. So it
    is up to a loss of epsilon / 2 ranges, for tokens that are equal but for rounding (which other
    devices do otherwise) must not differ in what they get; see `_in_order`. While they bid, tokens
    spread over experts that are equal to them, in turn by their number among the valid ones.

    At most `max_rounds` rounds are run. What was found by then is used: the last finished phase (a
    larger epsilon in the bound), or, in the first, the places that are held; who has none gets,
    in token order, the best expert with a free place. Without one (only where -inf differs between
    tokens) the expert is E. The shape is static, the number of rounds is not.
    """
    T, E = score_TE.shape
    score_NE, active_N, C = _with_fillers(score_TE.astype(jnp.float32), valid_T)
    zeros_E = jnp.zeros((E,), jnp.float32)
    none_N = jnp.full(active_N.shape, E, jnp.int32)
    first = Bids(
        holds_N=none_N,
        bid_N=jnp.zeros(active_N.shape, jnp.float32),
        price_E=zeros_E,
        base_E=zeros_E,
        epsilon=jnp.full((), max(FIRST_EPSILON, epsilon / 2), jnp.float32),
        settled_N=none_N,
        rounds=jnp.zeros((), jnp.int32),
        finished=~jnp.any(active_N),
    )

    def round_of_bids(bids: Bids) -> Bids:
        return _next_phase(_bid(bids, score_NE, active_N, C), score_NE, active_N, epsilon / 2)

    last = jax.lax.while_loop(
        lambda bids: ~bids.finished & (bids.rounds < max_rounds), round_of_bids, first
    )
    settled = last.finished | jnp.any(last.settled_N < E)
    found_N = jnp.where(settled, last.settled_N, last.holds_N)
    expert_T = _fill_greedily(found_N[:T], score_NE[:T], active_N[:T], C)
    greedy_T = (expert_T < E) & (found_N[:T] == E)
    expert_T = _in_order(expert_T, score_NE[:T], epsilon / 2)
    return Assignment(expert_T, last.rounds, last.finished, greedy_T)


def _with_fillers(
    score_TE: Array, valid_T: Array
) -> tuple[Float[Array, "N E"], Bool[Array, "N"], Int[Array, ""]]:
    """Scores in [-1, 0] with 0 for a token's best, who bids, and the places of an expert.

    E - 1 rows are added; as many of them bid as places stay empty.
    """
    E = score_TE.shape[1]
    open_TE = score_TE > -jnp.inf
    active_T = valid_T & jnp.any(open_TE, axis=1)
    open_TE &= active_T[:, None]
    best_T1 = jnp.max(score_TE, axis=1, keepdims=True, where=open_TE, initial=-jnp.inf)
    below_TE = jnp.where(open_TE, score_TE - best_T1, 0)
    span = -jnp.min(below_TE, initial=0.0)
    below_TE = below_TE / jnp.where(span > 0, span, 1)

    open_E = jnp.any(open_TE, axis=0)
    experts = jnp.maximum(jnp.sum(open_E, dtype=jnp.int32), 1)
    tokens = jnp.sum(active_T, dtype=jnp.int32)
    C = (tokens + experts - 1) // experts
    filler_M = jnp.arange(E - 1, dtype=jnp.int32) < experts * C - tokens
    filler_ME = jnp.broadcast_to(jnp.where(open_E, 0, -jnp.inf)[None, :], (E - 1, E))
    score_TE = jnp.where(active_T[:, None] & ~open_TE, -jnp.inf, below_TE)
    return (
        jnp.concatenate([score_TE, filler_ME.astype(jnp.float32)]),
        jnp.concatenate([active_T, filler_M]),
        C,
    )


def _bid(bids: Bids, score_NE: Array, active_N: Array, C: Array) -> Bids:
    """One round: all who hold nothing bid, each expert keeps its C highest bids."""
    N, E = score_NE.shape
    number_N = jnp.cumsum(active_N, dtype=jnp.int32)
    turn_NE = (jnp.arange(E, dtype=jnp.int32)[None, :] - number_N[:, None]) % E
    value_NE = score_NE - bids.price_E[None, :]
    best_N = jnp.max(value_NE, axis=1)
    near_NE = value_NE >= (best_N - bids.epsilon / 2)[:, None]
    wants_N = jnp.argmin(jnp.where(near_NE, turn_NE, E), axis=1).astype(jnp.int32)
    wants_NE = one_hot(wants_N, E)
    second_N = jnp.max(value_NE, axis=1, where=~wants_NE, initial=-jnp.inf)
    score_N = jnp.sum(jnp.where(wants_NE, score_NE, 0), axis=1)
    offer_N = score_N - jnp.maximum(second_N, best_N - ALONE) + bids.epsilon
    bidding_N = active_N & (bids.holds_N == E)
    expert_N = jnp.where(bidding_N, wants_N, bids.holds_N)
    bid_N = jnp.where(bidding_N, offer_N, bids.bid_N)

    # By expert, then from the highest bid down; a stable sort keeps the lower of equal bidders.
    row_N = jnp.arange(N, dtype=jnp.int32)
    by_expert_N, minus_bid_N, row_N = jax.lax.sort((expert_N, -bid_N, row_N), num_keys=2)
    count_E = jnp.sum(one_hot(expert_N, E), axis=0, dtype=jnp.int32)
    start_E = jnp.cumsum(count_E) - count_E
    rank_N = jnp.arange(N, dtype=jnp.int32) - start_E[jnp.minimum(by_expert_N, E - 1)]
    kept_N = jnp.where(rank_N < C, by_expert_N, E)
    lowest_E = -minus_bid_N[jnp.clip(start_E + C - 1, 0, N - 1)]
    return bids._replace(
        holds_N=jnp.zeros_like(kept_N).at[row_N].set(kept_N, unique_indices=True),
        bid_N=bid_N,
        price_E=jnp.where(count_E >= C, lowest_E, bids.base_E),
        rounds=bids.rounds + 1,
    )


def _next_phase(bids: Bids, score_NE: Array, active_N: Array, epsilon: float) -> Bids:
    """Where all hold a place: ends the auction, or starts the next phase from these prices."""
    E = score_NE.shape[1]
    settled = jnp.all(~active_N | (bids.holds_N < E))
    finished = settled & (bids.epsilon <= epsilon)
    again = settled & ~finished
    # Only differences of prices matter, and small prices have smaller rounding errors.
    open_E = jnp.any((score_NE > -jnp.inf) & active_N[:, None], axis=0)
    lowest = jnp.min(bids.price_E, where=open_E, initial=jnp.inf)
    base_E = jnp.where(again & open_E, bids.price_E - lowest, bids.base_E)
    return bids._replace(
        holds_N=jnp.where(again, E, bids.holds_N),
        price_E=jnp.where(again, base_E, bids.price_E),
        base_E=base_E,
        epsilon=jnp.where(again, jnp.maximum(bids.epsilon / SHRINK, epsilon), bids.epsilon),
        settled_N=jnp.where(settled, bids.holds_N, bids.settled_N),
        finished=finished,
    )


def _fill_greedily(expert_T: Array, score_TE: Array, active_T: Array, C: Array) -> Int[Array, "T"]:
    """Gives each active token without a place, in token order, its best expert with a free one."""
    E = score_TE.shape[1]

    def open_to(expert_T: Array) -> Bool[Array, "T E"]:
        free_E = jnp.sum(one_hot(expert_T, E), axis=0, dtype=jnp.int32) < C
        waits_T = active_T & (expert_T == E)
        return waits_T[:, None] & free_E[None, :] & (score_TE > -jnp.inf)

    def place(expert_T: Array) -> Array:
        open_TE = open_to(expert_T)
        wants_T = jnp.argmax(jnp.where(open_TE, score_TE, -jnp.inf), axis=1).astype(jnp.int32)
        wants_T = jnp.where(jnp.any(open_TE, axis=1), wants_T, E)
        free_E = C - jnp.sum(one_hot(expert_T, E), axis=0, dtype=jnp.int32)
        granted_T = queues(wants_T, E)[0] < free_E[jnp.minimum(wants_T, E - 1)]
        return jnp.where(granted_T & (wants_T < E), wants_T, expert_T)

    return jax.lax.while_loop(lambda expert_T: jnp.any(open_to(expert_T)), place, expert_T)


def _in_order(expert_T: Array, score_TE: Array, loss: float) -> Int[Array, "T"]:
    """Lets tokens change experts two by two, where the sum loses at most `loss`, until lower tokens
    have lower experts: token by token, with the later one whose expert is the lowest.

    At most one change a token, so the sum loses at most T * loss.
    """
    T, E = score_TE.shape
    row_T = jnp.arange(T, dtype=jnp.int32)
    own_T = jnp.minimum(expert_T, E - 1)
    has_T = expert_T < E

    def change(t: Array, own_T: Array) -> Array:
        here = own_T[t]
        now_T = jnp.take_along_axis(score_TE, own_T[:, None], axis=1)[:, 0]
        gain_T = score_TE[t, own_T] - score_TE[t, here] + score_TE[:, here] - now_T
        may_T = has_T & has_T[t] & (row_T > t) & (own_T < here) & (gain_T >= -loss)
        other = jnp.argmin(jnp.where(may_T, own_T, E))
        there = jnp.where(jnp.any(may_T), own_T[other], here)
        other = jnp.where(jnp.any(may_T), other, t)
        return own_T.at[t].set(there).at[other].set(here, mode="drop")

    return jnp.where(has_T, jax.lax.fori_loop(0, T, change, own_T), E)
