"""Which sums of a program are kept in fewer bits than float32: read off its jaxpr.

bfloat16 has 8 bits of mantissa: a sum of 257 ones kept in it is 256. A product of matrices that
takes and gives bfloat16 sums in float32 inside of the unit and rounds once; every other reduction
over many terms must say float32 itself. `narrow_sums` finds those that do not.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from moe_jax.parallel.compat import scan_sizes
from moe_jax.parallel.mesh import axis_names

# A JaxprEqn; of what its variables stand for jax.extend declares neither dtype nor shape.
Equation = Any

# The primitives that add. (Maximum, minimum and first are exact in any type.)
REDUCTIONS = frozenset(
    "reduce_sum reduce_prod reduce_window_sum cumsum cumprod cumlogsumexp "
    "scatter-add scatter_add scatter-mul scatter_mul "
    "psum psum2 psum_invariant reduce_scatter reduce_scatter_p psum_scatter "
    "unreduced_psum unreduced_reduce_scatter".split()
)
PRODUCTS = frozenset(("dot_general", "ragged_dot", "ragged_dot_general", "conv_general_dilated"))
ADDS = frozenset(("add", "add_any"))
# Primitives that only pass a value on, so that an accumulator behind them is the same one.
MOVES = frozenset(
    "reshape transpose squeeze expand_dims convert_element_type copy slice dynamic_slice "
    "dynamic_update_slice select_n broadcast_in_dim pvary pcast optimization_barrier".split()
)


@dataclass(frozen=True, order=True)
class NarrowSum:
    """One kind of sum: the primitive ("scan carry": a loop that adds to what it carries), the type
    of its accumulator, the file and function that it is from, and how many terms at the most."""

    primitive: str
    dtype: str
    file: str
    function: str
    terms: int

    def __str__(self) -> str:
        return f"{self.primitive} of {self.terms} in {self.dtype}: {self.file}, {self.function}"


def narrow_sums(closed: ClosedJaxpr) -> Counter[NarrowSum]:
    """The sums with a floating accumulator narrower than float32, and how often each stands there.

    Not counted: sums of one term; scatters whose indices are said to be unique; a product of
    matrices that rounds its result to its operands' type, unless its operands are wider.
    """
    return Counter(_walk(closed.jaxpr, {}))


def _walk(jaxpr: Jaxpr, axes: dict[str, int]) -> Iterator[NarrowSum]:
    """axes: the sizes of the mesh axes within a shard_map."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in REDUCTIONS and _is_narrow(eqn.outvars[0]) and not _is_unique(eqn):
            if (terms := _terms(eqn, axes)) > 1:
                yield _sum(name, eqn, terms)
        elif name in PRODUCTS and _is_narrow(eqn.outvars[0]):
            if any(not _is_narrow(var) for var in eqn.invars[:2]):
                yield _sum(name, eqn, 0)
        elif name == "scan":
            yield from _carried(eqn)
        inside = dict(eqn.params["mesh"].shape) if name == "shard_map" else axes
        for inner in _inner(eqn.params):
            yield from _walk(inner, inside)


def _sum(name: str, eqn: Equation, terms: int) -> NarrowSum:
    file, function = _place(eqn)
    return NarrowSum(name, str(eqn.outvars[0].aval.dtype), file, function, terms)


def _is_narrow(var: Any) -> bool:
    dtype = var.aval.dtype
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def _is_unique(eqn: Equation) -> bool:
    return bool(eqn.params.get("unique_indices", False))


def _terms(eqn: Equation, sizes: dict[str, int]) -> int:
    """How many terms one result has at the most."""
    name, operand = eqn.primitive.name, eqn.invars[0].aval
    if name in ("reduce_sum", "reduce_prod"):
        return math.prod(operand.shape[axis] for axis in eqn.params["axes"])
    if name.startswith("cum"):
        return operand.shape[eqn.params["axis"]]
    if name.startswith("scatter"):
        return int(eqn.invars[2].aval.size)
    if name.startswith("reduce_window"):
        return math.prod(eqn.params["window_dimensions"])
    # Between devices.
    axes = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return math.prod(sizes.get(axis, 2) for axis in axis_names(axes))


def _carried(eqn: Equation) -> Iterator[NarrowSum]:
    """The carries of a scan that its body adds to."""
    body = next(_inner(eqn.params))
    consts, carries = scan_sizes(eqn.params)
    for place in range(carries):
        carry, new = body.invars[consts + place], body.outvars[place]
        if _is_narrow(carry) and (adding := _added(body, carry, new)) is not None:
            yield _sum("scan carry", adding, int(eqn.params["length"]))


def _added(body: Jaxpr, carry: Var, new: Var | Literal) -> Equation | None:
    """The addition by which `new` is made of `carry`; None where there is none."""
    same, adding = {carry}, None
    for eqn in body.eqns:
        sources = [var for var in eqn.invars if not isinstance(var, Literal) and var in same]
        if not sources:
            continue
        if eqn.primitive.name in ADDS:
            adding = eqn
        elif eqn.primitive.name not in MOVES:
            continue
        same.update(eqn.outvars)
    return adding if not isinstance(new, Literal) and new in same else None


def _inner(params: Mapping[str, object]) -> Iterator[Jaxpr]:
    """All jaxprs among an equation's parameters."""
    for leaf in jax.tree.leaves(
        list(params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
    ):
        if isinstance(leaf, ClosedJaxpr):
            yield leaf.jaxpr
        elif isinstance(leaf, Jaxpr):
            yield leaf


def _place(eqn: Equation) -> tuple[str, str]:
    """(file, function) in which an equation was written, the file from moe_jax/ on."""
    text = source_info_util.summarize(eqn.source_info)  # "/a/moe_jax/nn/mlp.py:38:9 (__call__)"
    path, _, rest = text.partition(":")
    function = rest.partition("(")[2].rstrip(")").rpartition(".")[2]
    parts = path.replace(os.sep, "/").split("/moe_jax/")
    return (f"moe_jax/{parts[-1]}" if len(parts) > 1 else path.rpartition("/")[2]), function
