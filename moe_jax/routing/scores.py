"""From logits to the scores by which experts are chosen and weighted."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.routing.choice import softmax

LOW = -20.0


def sqrt_softplus(logits: Float[Array, "T E"]) -> Float[Array, "T E"]:
    """sqrt(log(1 + exp(logit))), above 0 and not bounded; 0 for a logit of -inf."""
    admissible = logits > -jnp.inf
    finite = jnp.where(admissible, logits, 0)
    # Below, log(1 + exp(x)) is exp(x) to the last bit. Where that becomes 0, the slope of the root
    # would be inf, and inf times 0 is NaN.
    low = finite < LOW
    root = jnp.sqrt(jax.nn.softplus(jnp.where(low, LOW, finite)))
    root = jnp.where(low, jnp.exp(jnp.where(low, finite, LOW) / 2), root)
    return jnp.where(admissible, root, 0)


# Each of a token's logits alone, but for softmax. All are 0 where the logit is -inf.
SCORES: dict[str, Callable[[Float[Array, "T E"]], Float[Array, "T E"]]] = {
    "softmax": softmax,
    "sigmoid": jax.nn.sigmoid,
    "sqrt_softplus": sqrt_softplus,
}
