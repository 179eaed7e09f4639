"""Groups that do not move: neither do they stand in the gradient's norm, nor stop a step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.training.optimizer import AdamW, ConstantRate, Group, Groups
from moe_jax.training.parameters import group_of
from moe_jax.training.step import Step
from tests.drawn import some
from tests.training.forms import flat, program
from tests.training.steps import raw_batch

ALONE = {
    "router": Groups(experts=Group(frozen=True), rest=Group(frozen=True)),
    "experts": Groups(router=Group(frozen=True), rest=Group(frozen=True)),
    "nothing": Groups(),
}


def trained_program(alone, clip_norm=0.0):
    config = AdamW(
        learning_rate=0.1,
        weight_decay=0.0,
        b1=0.9,
        clip_norm=clip_norm,
        schedule=ConstantRate(),
        groups=ALONE[alone],
    )
    return program(optimizer=config)


def raw_of(one):
    raw = raw_batch()
    return {name: raw[name] for name in ("tokens", "segments", "row")}


@pytest.mark.grid
@pytest.mark.parametrize("alone", some(ALONE, ["router"]))
def test_the_norm_is_of_what_is_trained(alone):
    """Adam's first moment after one step is 0.1 g, for the groups that are trained alone."""
    one = trained_program(alone)
    state, result = jax.jit(one.step.train)(one.init(), raw_of(one), {})
    moments = optax.tree.get(state.opt_state, "mu")
    squares = [np.sum(np.square(np.asarray(m, np.float64))) for m in jax.tree.leaves(moments)]
    assert float(result.grad_norm) == pytest.approx(np.sqrt(sum(squares)) / 0.1, rel=1e-5)


@pytest.mark.grid
def test_the_norm_is_what_is_clipped():
    """Reported 2 c and clipped at c: Adam's first moment is half of what it was."""
    free = trained_program("router")
    before, result = jax.jit(free.step.train)(free.init(), raw_of(free), {})
    clipped = trained_program("router", clip_norm=float(result.grad_norm) / 2)
    after, _ = jax.jit(clipped.step.train)(clipped.init(), raw_of(clipped), {})
    pairs = zip(
        *(jax.tree.leaves(optax.tree.get(s.opt_state, "mu")) for s in (before, after)), strict=True
    )
    for whole, half in pairs:
        np.testing.assert_allclose(half, whole / 2, rtol=1e-4, atol=1e-9)


class NoGradientOfTheHead(Step):
    def _gradients(self, *args):
        loss, grads, sums = super()._gradients(*args)
        return loss, {**grads, "head": jnp.full_like(grads["head"], jnp.nan)}, sums


@pytest.mark.grid
@pytest.mark.parametrize(("alone", "skipped"), [("router", 0), ("nothing", 1)])
def test_a_nan_of_a_frozen_group_stops_nothing(alone, skipped):
    one = trained_program(alone)
    own = {f.name: getattr(one.step, f.name) for f in dataclasses.fields(one.step)}
    before = one.init()
    after, _ = jax.jit(NoGradientOfTheHead(**own).train)(before, raw_of(one), {})
    assert int(after.skipped) == skipped
    for path, value in flat(after.params).items():
        moved = not np.array_equal(value, flat(before.params)[path])
        assert moved == (not skipped and group_of(path) == "router"), path
