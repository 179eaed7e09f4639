"""What routers share in which each token chooses its experts."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.ops.initializers import fan_in
from moe_jax.ops.precision import upcast
from moe_jax.routing.plan import count_experts, one_hot
from moe_jax.routing.types import (
    LAST_TWO,
    Assignments,
    ParamSpec,
    RouterInputs,
    RouterParams,
    Sums,
)

TIED = 2.0**-18  # some ten roundings
MIN_SCORE = 1e-30  # of a token's largest score
DROP_ORDERS = ("token_major", "choice_major", "batch_priority")


def kernel_spec(D: int, E: int, scale: float = 1.0) -> ParamSpec:
    """A router's matrix: truncated normal of variance scale / D (Switch: small is stabler)."""
    init = jax.nn.initializers.zeros if scale == 0 else fan_in(scale)
    return ParamSpec(shape=(D, E), init=init, axes=("embed", None), matrix=LAST_TWO, decays=True)


def jitter(x_TD: Float[Array, "T D"], inputs: RouterInputs, amount: float | Array) -> Array:
    """Multiplies the router's input by uniform(1 - amount, 1 + amount), in training only.

    Switch (2101.03961) appendix; `amount` may be traced (a schedule).
    """
    if not inputs.train or inputs.key is None or (isinstance(amount, float) and amount == 0):
        return x_TD
    key = jax.random.fold_in(inputs.key, 0)
    noise_TD = jax.random.uniform(key, x_TD.shape, x_TD.dtype, -1.0, 1.0)
    return x_TD * (1 + amount * noise_TD)


def router_logits(
    params: RouterParams, inputs: RouterInputs, jitter_amount: float | Array = 0.0
) -> Float[Array, "T E"]:
    """x @ kernel (+ bias), -inf for experts that the group may not choose. In float32 where the
    compute type is smaller (ST-MoE: bfloat16 logits cost quality)."""
    x_TD = jitter(upcast(inputs.x_TD), inputs, jitter_amount)
    logits_TE = add_bias(router_product(x_TD, params["kernel"]), params)
    if inputs.allowed_E is None:
        return logits_TE
    return jnp.where(inputs.allowed_E[None, :], logits_TE, -jnp.inf)


def router_product(x_TD: Float[Array, "T D"], w_DN: Float[Array, "D N"]) -> Float[Array, "T N"]:
    """x w in float32, with all of its bits: by default a GPU would take TF32 for such a product and
    a TPU bfloat16, whose logits decide otherwise."""
    return jnp.einsum("TD,DN->TN", upcast(x_TD), upcast(w_DN), precision=jax.lax.Precision.HIGHEST)


def add_bias(logits_TE: Float[Array, "T E"], params: RouterParams) -> Float[Array, "T E"]:
    """The logits with the router's trained bias, where it has one."""
    if "bias" not in params:
        return logits_TE
    return logits_TE + upcast(params["bias"])[None, :]


def softmax(logits: Float[Array, "T N"]) -> Float[Array, "T N"]:
    """Over the last axis; 0 where a logit is -inf (inadmissible), all 0 where all are."""
    admissible = logits > -jnp.inf
    finite = jnp.where(admissible, logits, jnp.finfo(jnp.float32).min / 2)
    return jnp.where(admissible, jax.nn.softmax(finite, axis=-1), 0)


def top(by_TE: Float[Array, "T E"], k: int) -> tuple[Array, Int[Array, "T {k}"]]:
    """The k largest of each token and their experts, best first; ties go to the lower expert.
    Where -inf is among them no admissible expert is left: the expert is E, an unused row."""
    by_TK, expert_TK = jax.lax.top_k(by_TE, k)
    return by_TK, jnp.where(by_TK > -jnp.inf, expert_TK, by_TE.shape[1]).astype(jnp.int32)


def best(
    score_TE: Float[Array, "T E"], k: int, by_TE: Float[Array, "T E"]
) -> tuple[Float[Array, "T {k}"], Int[Array, "T {k}"]]:
    """The scores and experts of the k largest of `by_TE`, as `top`; the score of no expert is 0."""
    _, expert_TK = top(by_TE, k)
    E = by_TE.shape[1]
    value_TK = jnp.take_along_axis(score_TE, jnp.minimum(expert_TK, E - 1), axis=1)
    return jnp.where(expert_TK < E, value_TK, 0), expert_TK


def renormalize(weight_TK: Float[Array, "T K"]) -> Float[Array, "T K"]:
    """Each token's weights over their sum; all 0 stay 0.

    Where all are below 1e-30 (sigmoids of logits below -69) their sum is less than 1, and falls to
    0 with them. (DeepSeek's and Megatron-Core's code add 1e-20 to each sum.)
    """
    # By the largest first: the slope of a quotient has the square of its divisor, which of small
    # sums is no float32. The result does not depend on the largest, nor does the gradient.
    max_T1 = jnp.max(jax.lax.stop_gradient(weight_TK), axis=1, keepdims=True)
    weight_TK = weight_TK / jnp.maximum(max_T1, MIN_SCORE)
    # The sum is 1 or more, except in rows whose largest weight is below MIN_SCORE.
    total_T1 = jnp.sum(weight_TK, axis=1, keepdims=True)
    return weight_TK / jnp.maximum(total_T1, 0.5)


def admissible(score_TE: Float[Array, "T E"], logits_TE: Float[Array, "T E"]) -> Array:
    """The scores, -inf where the logit is: what `best` must not choose."""
    return jnp.where(logits_TE > -jnp.inf, score_TE, -jnp.inf)


def compared(score_T: Float[Array, "T"]) -> Float[Array, "T"]:
    """The scores of a group's tokens as they compete by them, without a gradient: those that follow
    each other, in falling order, at no more than 2^-18 of their size are equal, to the largest.

    Tokens of the same history (the same id at the start of two texts) have scores that differ by
    rounding alone, and differently on every mesh and batch size. That must not decide who is
    served: of equals it is the earlier. (On a grid of fewer bits a score beside one of its borders
    would be rounded here to this side, there to that.) In groups of more than 32,768 tokens the
    distance is 1 / (8 T), so that by chance few are near each other.
    """
    T = score_T.shape[0]
    score_T = jax.lax.stop_gradient(score_T)
    order_T = jnp.argsort(-score_T, stable=True)
    falling_T = score_T[order_T]
    before_t, after_t = falling_T[:-1], falling_T[1:]
    near_t = before_t - after_t <= min(TIED, 1 / (8 * T)) * jnp.abs(before_t)
    first_T = jnp.concatenate([jnp.ones((1,), bool), ~near_t])
    equal_T = jax.lax.cummin(jnp.where(first_T, falling_T, jnp.inf))
    return jnp.zeros_like(score_T).at[order_T].set(equal_T, unique_indices=True)


def choose(
    weight_TK: Float[Array, "T K"],
    expert_TK: Int[Array, "T K"],
    inputs: RouterInputs,
    E: int,
    drop_order: str = "token_major",
    Z: int = 0,
) -> Assignments:
    """Assignments of T tokens with K choices each, best first.

    Experts E..E+Z-1 are undispatched and take no capacity.

    drop_order, who is served first where capacity is short:
      token_major     earlier tokens with all their choices (causal)
      choice_major    all first choices, then all second choices (GShard, Switch, V-MoE)
      batch_priority  as choice_major, within a choice the tokens with the highest first weight
                      (V-MoE, 2106.05974, section 4.1), `compared`; of equals the earlier
    Choices with an expert >= E + Z, and all choices of invalid tokens, are unused rows.
    """
    T, K = expert_TK.shape
    used_TK = inputs.valid_T[:, None] & (expert_TK < E + Z)
    rank_TK = jnp.broadcast_to(jnp.arange(K, dtype=jnp.float32)[None], (T, K))
    if drop_order == "token_major":
        priority_R = None
    elif drop_order == "choice_major":
        priority_R = rank_TK.reshape(-1)
    else:
        best_T = compared(jnp.max(weight_TK, axis=1))
        # In [0, 1) for weights of any scale, so that it never outweighs a rank.
        priority_R = (rank_TK - (best_T / (1 + best_T))[:, None]).reshape(-1)
    return Assignments(
        token_R=jnp.repeat(jnp.arange(T, dtype=jnp.int32), K),
        expert_R=jnp.where(used_TK, expert_TK, E + Z).astype(jnp.int32).reshape(-1),
        weight_R=upcast(jnp.where(used_TK, weight_TK, 0)).reshape(-1),
        priority_R=priority_R,
        T=T,
        E=E,
        Z=Z,
        k=K,
    )


def make_sums(
    assignments: Assignments,
    logits_TE: Float[Array, "T E"],
    prob_TE: Float[Array, "T E"],
    gate_TE: Float[Array, "T E"],
    valid_T: Bool[Array, "T"],
    load_TE: Float[Array, "T E"] | None = None,
    own: Mapping[str, Array] | None = None,
) -> Sums:
    """Sums over the valid tokens of one group.

    own: the router's own sums, over valid tokens already. A token's first choice is the first of
    its k, or, without ranks, the wanted expert with the largest gate.
    """
    a = assignments
    if a.k is not None:
        first_TE = one_hot(a.expert_R.reshape(a.T, a.k)[:, 0], a.E)
    else:
        wanted_TE = jnp.zeros((a.T, a.E), bool).at[a.token_R, a.expert_R].set(True, mode="drop")
        best_T = jnp.argmax(jnp.where(wanted_TE, gate_TE, -jnp.inf), axis=1).astype(jnp.int32)
        first_TE = one_hot(best_T, a.E) & wanted_TE
    mask_T1 = valid_T[:, None]
    log_prob_TE = jnp.log(jnp.maximum(prob_TE, jnp.finfo(jnp.float32).tiny))
    entropy_T = -jnp.sum(prob_TE * log_prob_TE, axis=1)
    routable_T = jnp.any(logits_TE > -jnp.inf, axis=1)
    lse_T = jax.nn.logsumexp(jnp.where(routable_T[:, None], logits_TE, 0), axis=1)
    valid_z_T = valid_T & routable_T
    counted_TE = mask_T1 & (logits_TE > -jnp.inf)
    size_TE = jnp.where(counted_TE, jnp.abs(jax.lax.stop_gradient(logits_TE)), 0)

    def total(x_TE: Array) -> Array:
        return jnp.sum(jnp.where(mask_T1, x_TE, 0), axis=0)

    return Sums(
        wanted_E=count_experts(a.expert_R, a.expert_R < a.E, a.E),
        first_E=jnp.sum(first_TE, axis=0, dtype=jnp.int32),
        prob_E=total(prob_TE),
        importance_E=total(gate_TE),
        load_E=jnp.zeros((a.E,), jnp.float32) if load_TE is None else total(load_TE),
        z=jnp.sum(jnp.where(valid_z_T, jnp.square(lse_T), 0)),
        entropy=jnp.sum(jnp.where(valid_T, entropy_T, 0)),
        valid=jnp.sum(valid_T, dtype=jnp.int32),
        largest_logit=jnp.max(size_TE, initial=0.0),
        own=own or {},
    )


def scatter_gates(
    weight_TK: Float[Array, "T K"], expert_TK: Int[Array, "T K"], E: int
) -> Float[Array, "T {E}"]:
    """The sparse gates G(x): weight of each expert, 0 where it was not chosen."""
    token_T1 = jnp.arange(expert_TK.shape[0], dtype=jnp.int32)[:, None]
    empty_TE = jnp.zeros((expert_TK.shape[0], E), weight_TK.dtype)
    # Add instead of set: the gradient of an addition is a plain gather.
    return empty_TE.at[token_T1, expert_TK].add(weight_TK, mode="drop")
