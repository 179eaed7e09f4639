"""Matrix products of groups of rows with one matrix per group."""

from moe_jax.ops.grouped_matmul.api import AUTO, BACKENDS, grouped_matmul

__all__ = ["AUTO", "BACKENDS", "grouped_matmul"]
