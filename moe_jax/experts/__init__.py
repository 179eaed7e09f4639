"""What experts compute. Plain arrays, no Flax, no collective."""

from moe_jax.experts.clamped_swiglu import ClampedSwiGLU
from moe_jax.experts.feed_forward import FeedForward
from moe_jax.experts.low_rank import LowRank
from moe_jax.experts.types import Expert

# A new expert is a new file and one row here.
EXPERTS: dict[str, type[Expert]] = {
    "feed_forward": FeedForward,
    "clamped_swiglu": ClampedSwiGLU,
    "low_rank": LowRank,
}

__all__ = ["EXPERTS", "ClampedSwiGLU", "Expert", "FeedForward", "LowRank"]
