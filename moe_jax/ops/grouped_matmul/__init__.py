"""Matrix products of groups of rows with one matrix per group."""

from moe_jax.ops.grouped_matmul.api import BACKENDS, grouped_matmul, resolve

__all__ = ["BACKENDS", "grouped_matmul", "resolve"]
