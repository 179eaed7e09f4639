"""Optimizers against formulas; schedules; parameter groups by path."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.training.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    WSD,
    AdamW,
    Constant,
    Group,
    Groups,
    Muon,
    Rsqrt,
    WarmupCosine,
    group_of,
    is_matrix,
    make_optimizer,
)


def parameters(seed=0):
    """The paths and ranks of a decoder of two layers and three experts."""
    keys = iter(jax.random.split(jax.random.key(seed), 10))

    def array(*shape):
        return jax.random.normal(next(keys), shape)

    return {
        "embedding": array(7, 4),
        "final_norm": {"scale": array(4)},
        "layers": {
            "00": {
                "attention": {"wq": array(2, 4, 2, 3), "wo": array(2, 2, 3, 4)},
                "attention_norm": {"scale": array(2, 4)},
                "moe": {
                    "router": {"kernel": array(2, 4, 3)},
                    "experts": {"w_up": array(2, 3, 4, 5), "w_down": array(2, 3, 5, 4)},
                },
            }
        },
    }


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def first_update(config, params, grads, steps=100):
    optimizer, _ = make_optimizer(config, params, steps)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return updates


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_minimises_a_quadratic(name):
    params, target = parameters(), parameters(1)
    config = OPTIMIZERS[name](
        learning_rate=0.05,
        weight_decay=0.0,
        schedule=WarmupCosine(warmup_steps=1, final_fraction=0.0),
        clip_norm=0.0,
    )
    optimizer, _ = make_optimizer(config, params, 400)

    def loss(params):
        squares = jax.tree.map(lambda p, t: jnp.sum(jnp.square(p - t)), params, target)
        return sum(jax.tree.leaves(squares))

    @jax.jit
    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    (_, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=400)
    assert losses[-1] < 0.05 * losses[0]


def test_adamw_against_numpy_in_float64():
    config = AdamW(learning_rate=0.01, schedule=WarmupCosine(warmup_steps=2), clip_norm=0.0)
    params = parameters()
    optimizer, schedule = make_optimizer(config, params, 10)
    state = optimizer.init(params)
    mine = {k: np.asarray(v, np.float64) for k, v in flat(params).items()}
    m = {k: np.zeros_like(v) for k, v in mine.items()}
    v = {k: np.zeros_like(v) for k, v in mine.items()}
    for t in range(1, 6):
        grads = parameters(t)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        rate = float(schedule(t - 1))
        for name, g in flat(grads).items():
            g = np.asarray(g, np.float64)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            step = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.95**t)) + 1e-8)
            decay = 0.0 if name.endswith("scale") else 0.1
            mine[name] -= rate * (step + decay * mine[name])
    for name, value in flat(params).items():
        np.testing.assert_allclose(value, mine[name], rtol=2e-5, atol=2e-6)


def test_schedules_against_formulas():
    peak, steps = 2.0, 100

    def values(schedule):
        return np.array([float(schedule.build(peak, steps)(s)) for s in range(steps)])

    cosine = values(WarmupCosine(warmup_steps=10, final_fraction=0.1))
    np.testing.assert_allclose(cosine[:10], peak * np.arange(1, 11) / 10, rtol=1e-6)
    s = np.arange(10, steps)
    shape = 0.5 * (1 + np.cos(np.pi * (s - 10) / 90))
    np.testing.assert_allclose(cosine[10:], peak * (0.1 + 0.9 * shape), rtol=1e-5)

    wsd = values(WSD(warmup_steps=10, decay_fraction=0.2, final_fraction=0.0))
    np.testing.assert_allclose(wsd[10:80], peak, rtol=1e-6)
    np.testing.assert_allclose(wsd[80:], peak * (1 - (np.arange(80, 100) - 80) / 20), rtol=1e-5)

    rsqrt = values(Rsqrt(warmup_steps=10))
    s = np.arange(10, steps)
    np.testing.assert_allclose(rsqrt[10:], peak * np.sqrt(10 / s), rtol=1e-5)
    assert np.all(values(Constant()) == peak)
    assert set(SCHEDULES) == {"warmup_cosine", "wsd", "rsqrt", "constant"}


def test_groups_by_path():
    groups = {name: group_of(name) for name in flat(parameters())}
    assert groups["layers/00/moe/router/kernel"] == "router"
    assert groups["layers/00/moe/experts/w_up"] == "experts"
    assert groups["layers/00/attention/wq"] == groups["embedding"] == "rest"
    assert not is_matrix("layers/00/attention_norm/scale") and is_matrix("embedding")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_and_multiplied_groups(name):
    params, grads = parameters(), parameters(5)
    same = {"schedule": Constant(), "weight_decay": 0.0, "clip_norm": 0.0}
    plain = OPTIMIZERS[name](**same)
    groups = Groups(router=Group(frozen=True), experts=Group(learning_rate_multiplier=0.25))
    changed = OPTIMIZERS[name](**same, groups=groups)
    before, after = (flat(first_update(c, params, grads)) for c in (plain, changed))
    for path, update in before.items():
        factor = {"router": 0.0, "experts": 0.25, "rest": 1.0}[group_of(path)]
        np.testing.assert_array_equal(after[path], factor * update)
        assert np.any(np.asarray(update) != 0)


def test_weight_decay_on_matrices_and_by_group():
    params = parameters()
    zeros = jax.tree.map(jnp.zeros_like, params)
    groups = Groups(experts=Group(weight_decay_multiplier=0.5))
    config = AdamW(learning_rate=0.1, weight_decay=0.2, schedule=Constant(), groups=groups)
    for path, update in flat(first_update(config, params, zeros)).items():
        factor = 0.0 if path.endswith("scale") else 0.5 if "experts" in path else 1.0
        np.testing.assert_allclose(update, -0.1 * 0.2 * factor * flat(params)[path], rtol=1e-6)


def test_clipping_scales_by_the_global_norm():
    params, grads = parameters(), jax.tree.map(lambda g: 100 * g, parameters(2))
    config = OPTIMIZERS["adamw"](schedule=Constant(), weight_decay=0.0, clip_norm=1.0, eps=1.0)
    norm = np.sqrt(sum(float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(grads)))
    for path, update in flat(first_update(config, params, grads)).items():
        g = np.asarray(flat(grads)[path], np.float64) / norm
        np.testing.assert_allclose(update, -1e-3 * g / (np.abs(g) + 1.0), rtol=1e-4, atol=1e-9)


def test_muon_of_a_stack_is_muon_of_each_matrix():
    """Layers and experts are batch axes; attention's (D, heads, head_dim) is one matrix."""
    from optax.contrib import MuonDimensionNumbers, scale_by_muon

    params, grads = parameters(), parameters(3)
    config = Muon(learning_rate=1.0, schedule=Constant(), weight_decay=0.0, clip_norm=0.0)
    found = flat(first_update(config, params, grads))

    def single(matrix):
        plain = {"w": MuonDimensionNumbers(0, 1)}
        one = scale_by_muon(beta=0.95, weight_dimension_numbers=plain)
        update, _ = one.update({"w": matrix}, one.init({"w": matrix}))
        return -update["w"] * 0.2 * max(matrix.shape) ** 0.5

    up = flat(grads)["layers/00/moe/experts/w_up"]
    wq, wo = (flat(grads)[f"layers/00/attention/{name}"] for name in ("wq", "wo"))
    for layer in range(2):
        for expert in range(3):
            np.testing.assert_allclose(
                found["layers/00/moe/experts/w_up"][layer, expert],
                single(up[layer, expert]),
                rtol=1e-4,
                atol=1e-5,
            )
        for name, value, shape in (("wq", wq, (4, 6)), ("wo", wo, (6, 4))):
            np.testing.assert_allclose(
                np.asarray(found[f"layers/00/attention/{name}"][layer]).reshape(shape),
                single(value[layer].reshape(shape)),
                rtol=1e-4,
                atol=1e-5,
            )
    # Embedding and router take Adam's first step: the sign of the gradient.
    for path in ("embedding", "layers/00/moe/router/kernel"):
        np.testing.assert_allclose(found[path], -np.sign(flat(grads)[path]), rtol=1e-4)
