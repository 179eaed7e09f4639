"""Errors of a mixture of local experts, on the outputs of the experts before they are combined.

Jacobs, Jordan, Nowlan and Hinton, "Adaptive Mixtures of Local Experts", Neural Computation 3
(1991): which error a mixture is trained with decides whether its experts share every case or each
take some. p_TE are the gate's probabilities: rows sum to 1, and an expert whose probability is 0
(or below the smallest normal number) takes no part. y_TED are the outputs o of all experts
(`dispatch.dense.outputs`), target_TD the wanted d. A loss is one number per token; everything is
computed in float32 or wider.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cooperative_loss(
    p_TE: Float[Array, "T E"], y_TED: Float[Array, "T E D"], target_TD: Float[Array, "T D"]
) -> Float[Array, "T"]:
    """||d - sum_i p_i o_i||^2, the error of the combined output (eq. 1.1).

    Each expert learns what the others leave over, so all experts take part in every case.
    """
    p_TE, y_TED, target_TD = _upcast(p_TE), _upcast(y_TED), _upcast(target_TD)
    mean_TD = jnp.einsum("TE,TED->TD", p_TE, y_TED, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(jnp.square(target_TD - mean_TD), axis=-1)


def competing_loss(
    p_TE: Float[Array, "T E"], y_TED: Float[Array, "T E D"], target_TD: Float[Array, "T D"]
) -> Float[Array, "T"]:
    """sum_i p_i ||d - o_i||^2, the error of one expert drawn by the gate, expected (eq. 1.2).

    Its gradient at o_i is -2 p_i (d - o_i) (eq. 1.4): the gate alone weighs it, so where the gate
    is undecided the best expert learns no faster than the others.
    """
    return jnp.sum(_upcast(p_TE) * _squared_error(y_TED, target_TD), axis=-1)


def likelihood_loss(
    p_TE: Float[Array, "T E"],
    y_TED: Float[Array, "T E D"],
    target_TD: Float[Array, "T D"],
    std: float | Float[Array, ""] = 1.0,
) -> Float[Array, "T"]:
    """-log sum_i p_i exp(-||d - o_i||^2 / (2 std^2)) (eq. 1.3, where std is 1).

    The negative log likelihood of d under a mixture of Gaussians of a fixed width around the
    outputs, without the constant D/2 log(2 pi std^2). Its gradient at o_i is
    -h_i (d - o_i) / std^2 (eq. 1.5), h the `responsibilities`. By logsumexp: finite, with its
    gradients, wherever the squared errors are.
    """
    return _mixture_nll(p_TE, _log_gaussian(y_TED, target_TD, std))


def classification_loss(
    p_TE: Float[Array, "T E"], y_TED: Float[Array, "T E D"], target_T: Int[Array, "T"]
) -> Float[Array, "T"]:
    """-log sum_i p_i softmax(o_i)[target]: the likelihood of a class in a mixture of categoricals.

    Not in the paper, whose four vowels are fitted by eq. 1.3; the same mixture with the density
    that suits classes. D is the number of classes; target_T holds 0..D-1.
    """
    return _mixture_nll(p_TE, _log_categorical(y_TED, target_T))


def responsibilities(
    p_TE: Float[Array, "T E"],
    y_TED: Float[Array, "T E D"],
    target_TD: Float[Array, "T D"],
    std: float | Float[Array, ""] = 1.0,
) -> Float[Array, "T E"]:
    """h_i = p_i N_i / sum_j p_j N_j, N_i = exp(-||d - o_i||^2 / (2 std^2)): what weighs eq. 1.5.

    The posterior probability that expert i made d. Rows sum to 1.
    """
    return _posterior(p_TE, _log_gaussian(y_TED, target_TD, std))


def class_responsibilities(
    p_TE: Float[Array, "T E"], y_TED: Float[Array, "T E D"], target_T: Int[Array, "T"]
) -> Float[Array, "T E"]:
    """`responsibilities` where N_i = softmax(o_i)[target]."""
    return _posterior(p_TE, _log_categorical(y_TED, target_T))


def _upcast(x: Array) -> Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _squared_error(
    y_TED: Float[Array, "T E D"], target_TD: Float[Array, "T D"]
) -> Float[Array, "T E"]:
    return jnp.sum(jnp.square(_upcast(target_TD)[:, None, :] - _upcast(y_TED)), axis=-1)


def _log_gaussian(
    y_TED: Float[Array, "T E D"], target_TD: Float[Array, "T D"], std: float | Array
) -> Float[Array, "T E"]:
    return _squared_error(y_TED, target_TD) * (-0.5 / std**2)


def _log_categorical(
    y_TED: Float[Array, "T E D"], target_T: Int[Array, "T"]
) -> Float[Array, "T E"]:
    log_prob_TED = jax.nn.log_softmax(_upcast(y_TED), axis=-1)
    return jnp.take_along_axis(log_prob_TED, target_T[:, None, None], axis=-1)[:, :, 0]


def _log_joint(p_TE: Float[Array, "T E"], log_density_TE: Float[Array, "T E"]) -> Array:
    """log p_i + log N_i; -inf where p_i is 0, with a gradient of 0 there."""
    p_TE = _upcast(p_TE)
    taking_part = p_TE >= jnp.finfo(p_TE.dtype).tiny  # 1 / p is finite
    log_p_TE = jnp.log(jnp.where(taking_part, p_TE, 1))
    return jnp.where(taking_part, log_p_TE + log_density_TE, -jnp.inf)


def _mixture_nll(p_TE: Float[Array, "T E"], log_density_TE: Float[Array, "T E"]) -> Array:
    return -jax.nn.logsumexp(_log_joint(p_TE, log_density_TE), axis=-1)


def _posterior(p_TE: Float[Array, "T E"], log_density_TE: Float[Array, "T E"]) -> Array:
    return jax.nn.softmax(_log_joint(p_TE, log_density_TE), axis=-1)
