"""Adafactor's scaling, matrix by matrix of a stack (optax takes a stacked array for one tensor)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from moe_jax.nn.param import Form
from moe_jax.training.parameters import Forms, by_path

EPSILON = 1e-30  # added to squared gradients
MIN_SCALE = 1e-3  # of a parameter, so that one initialised to zero moves


class AdafactorState(NamedTuple):
    """Means of squared gradients: over columns and over rows of factored matrices (their axes kept
    with size 1), entry by entry of the others; a scalar stands where one is not needed."""

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as optax does
    rows: PyTree[jax.Array]
    columns: PyTree[jax.Array]
    entries: PyTree[jax.Array]


class Moments(NamedTuple):
    """The state of one parameter."""

    rows: ArrayLike
    columns: ArrayLike
    entries: ArrayLike


def scale_by_adafactor(
    decay_rate: float, min_dim_size_to_factor: int, forms: Forms
) -> optax.GradientTransformation:
    """Shazeer, Stern (1804.04235), algorithms 4 and 5, without learning rate and first moment.

    G^2 ~ R C / mean(R) with R, C running means of decay 1 - t^-decay_rate; the update G / sqrt(G^2)
    is clipped to root mean square 1 and multiplied by max(1e-3, rms(parameter)). Both root mean
    squares are of one matrix (one vector, one scalar): no layer and no expert acts on another.
    forms: what is one matrix of each parameter.
    """

    def init(params: optax.Params) -> AdafactorState:
        def part(number: int) -> PyTree[jax.Array]:
            return by_path(
                lambda path, param: _first(forms[path], param, min_dim_size_to_factor)[number],
                params,
            )

        return AdafactorState(jnp.zeros((), jnp.int32), part(0), part(1), part(2))

    def update(
        grads: optax.Updates, state: AdafactorState, params: optax.Params
    ) -> tuple[optax.Updates, AdafactorState]:
        count = optax.safe_increment(state.count)
        decay = 1 - count.astype(jnp.float32) ** -decay_rate
        # (update, Moments) at the place of each gradient
        paired = by_path(partial(_update, forms, decay), grads, params, *state[1:])
        outer, inner = jax.tree.structure(grads), jax.tree.structure((0, Moments(0, 0, 0)))
        updates, moments = jax.tree.transpose(outer, inner, paired)
        return updates, AdafactorState(count, *moments)

    return optax.GradientTransformation(init, update)


def is_factored(form: Form, shape: tuple[int, ...], least: int) -> bool:
    """Whether a parameter's matrices have at least `least` rows and columns."""
    return form.is_matrix and min(form.sizes(shape)) >= least


def _first(form: Form, param: jax.Array, least: int) -> Moments:
    """Zeros; factored where the matrices are large enough."""
    none = jnp.zeros((), jnp.float32)
    if not is_factored(form, param.shape, least):
        return Moments(none, none, jnp.zeros(param.shape, jnp.float32))
    row_axes, column_axes = form.axes(param.ndim)
    return Moments(
        rows=jnp.zeros(_without(param.shape, column_axes), jnp.float32),
        columns=jnp.zeros(_without(param.shape, row_axes), jnp.float32),
        entries=none,
    )


def _update(
    forms: Forms,
    decay: jax.Array,
    path: str,
    grad: jax.Array,
    param: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    entries: jax.Array,
) -> tuple[jax.Array, Moments]:
    """The update of one parameter, and its next state."""
    row_axes, column_axes = forms[path].axes(param.ndim)
    square = jnp.square(grad) + EPSILON

    def mix(old: jax.Array, new: jax.Array) -> jax.Array:
        return decay * old + (1 - decay) * new

    if rows.ndim:
        rows = mix(rows, jnp.mean(square, column_axes, keepdims=True))
        columns = mix(columns, jnp.mean(square, row_axes, keepdims=True))
        share = rows / jnp.mean(rows, row_axes, keepdims=True)
        scaled = grad * jax.lax.rsqrt(share) * jax.lax.rsqrt(columns)
    else:
        entries = mix(entries, square)
        scaled = grad * jax.lax.rsqrt(entries)
    axes = row_axes + column_axes
    scaled = scaled / jnp.maximum(1.0, _rms(scaled, axes))
    size = jnp.maximum(_rms(param, axes), MIN_SCALE)
    return scaled * size, Moments(rows, columns, entries)


def _without(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _rms(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(array), axes, keepdims=True))
