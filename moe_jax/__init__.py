"""A JAX research framework for sparse Mixture-of-Experts models."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import moe_jax` is instant and does not start the JAX backend.
    if name == "load":
        from moe_jax.notebook import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
