"""Optimizers against formulas; schedules; parameter groups by path."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.nn.param import Form
from moe_jax.training.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    WSD,
    AdamW,
    ConstantRate,
    Group,
    Groups,
    Muon,
    Rsqrt,
    WarmupCosine,
    make_optimizer,
)
from moe_jax.training.parameters import by_path, group_of


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


MATRICES = {"wq": ((-3,), (-2, -1)), "wo": ((-3, -2), (-1,)), "scale": None}


def forms(params):
    """The forms that a decoder's parameters declare."""

    def form(path, leaf):
        matrix = MATRICES.get(path.rsplit("/", 1)[-1], ((-2,), (-1,)))
        return Form.of(leaf.ndim, matrix, decays=matrix is not None)

    return by_path(form, params)


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def first_update(config, params, grads, steps=100):
    optimizer, _ = make_optimizer(config, params, forms(params), steps)
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
    optimizer, _ = make_optimizer(config, params, forms(params), 400)

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
    optimizer, schedule = make_optimizer(config, params, forms(params), 10)
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
    assert np.all(values(ConstantRate()) == peak)
    assert set(SCHEDULES) == {"warmup_cosine", "wsd", "rsqrt", "constant"}


def test_groups_by_path():
    groups = {name: group_of(name) for name in flat(parameters())}
    assert groups["layers/00/moe/router/kernel"] == "router"
    assert groups["layers/00/moe/experts/w_up"] == "experts"
    assert groups["layers/00/attention/wq"] == groups["embedding"] == "rest"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_and_multiplied_groups(name):
    params, grads = parameters(), parameters(5)
    same = {"schedule": ConstantRate(), "weight_decay": 0.0, "clip_norm": 0.0}
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
    config = AdamW(learning_rate=0.1, weight_decay=0.2, schedule=ConstantRate(), groups=groups)
    for path, update in flat(first_update(config, params, zeros)).items():
        factor = 0.0 if path.endswith("scale") else 0.5 if "experts" in path else 1.0
        np.testing.assert_allclose(update, -0.1 * 0.2 * factor * flat(params)[path], rtol=1e-6)


def test_clipping_scales_by_the_global_norm():
    params, grads = parameters(), jax.tree.map(lambda g: 100 * g, parameters(2))
    config = OPTIMIZERS["adamw"](schedule=ConstantRate(), weight_decay=0.0, clip_norm=1.0, eps=1.0)
    norm = np.sqrt(sum(float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(grads)))
    for path, update in flat(first_update(config, params, grads)).items():
        g = np.asarray(flat(grads)[path], np.float64) / norm
        np.testing.assert_allclose(update, -1e-3 * g / (np.abs(g) + 1.0), rtol=1e-4, atol=1e-9)


def test_muon_of_a_stack_is_muon_of_each_matrix():
    """Layers and experts are batch axes; attention's (D, heads, head_dim) is one matrix."""
    from optax.contrib import MuonDimensionNumbers, scale_by_muon

    params, grads = parameters(), parameters(3)
    config = Muon(learning_rate=1.0, schedule=ConstantRate(), weight_decay=0.0, clip_norm=0.0)
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


def test_muon_is_close_to_the_orthogonal_factor():
    """numpy's SVD: G = U S V' becomes about U V', whatever S; Newton-Schulz leaves singular values
    within 0.3 of 1 (Jordan et al. 2024)."""
    matrices = np.random.default_rng(0).normal(size=(3, 8, 64)).astype(np.float32)
    matrices *= np.array([1e-3, 1.0, 1e3], np.float32)[:, None, None]
    params = {"layers": {"00": {"mlp": {"w_up": jnp.ones((3, 8, 64))}}}}
    grads = {"layers": {"00": {"mlp": {"w_up": jnp.asarray(matrices)}}}}
    config = Muon(learning_rate=1.0, schedule=ConstantRate(), weight_decay=0.0, clip_norm=0.0)
    update = flat(first_update(config, params, grads))["layers/00/mlp/w_up"]
    for matrix, found in zip(matrices, np.asarray(update), strict=True):
        u, _, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        inner = u.T @ (-found / (0.2 * 64**0.5)) @ v.T  # the same singular vectors
        singular = np.diag(inner)
        assert singular.min() > 0.7 and singular.max() < 1.3
        np.testing.assert_allclose(inner - np.diag(singular), 0, atol=1e-4)


def test_adafactor_of_a_stack_is_adafactor_of_each_matrix():
    """optax, an oracle for single matrices, over several steps; factored and not factored."""
    from moe_jax.training.optimizer import Adafactor

    config = Adafactor(
        learning_rate=1.0, schedule=ConstantRate(), clip_norm=0.0, min_dim_size_to_factor=5
    )
    oracle = optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=5),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
        optax.scale(-1.0),
    )
    keys = jax.random.split(jax.random.key(0), 5)

    def stacks(key):
        keys = jax.random.split(key, 4)
        # Layers and experts of very different size: a mean over the stack would show.
        size = jnp.exp(2 * jax.random.normal(keys[3], (2, 3, 1, 1)))
        return {
            "layers": {
                "moe": {"experts": {"w_up": size * jax.random.normal(keys[0], (2, 3, 6, 7))}},
                "attention": {"wq": size * jax.random.normal(keys[1], (2, 3, 2, 4))},
                "norm": {"scale": size[:, 0, 0] * jax.random.normal(keys[2], (2, 5))},
            }
        }

    def singles(tree):
        """The same numbers as separate arrays: per layer and expert, heads flattened."""
        tree = tree["layers"]
        w_up, wq = tree["moe"]["experts"]["w_up"], tree["attention"]["wq"]
        return (
            [[w_up[layer, e] for e in range(3)] for layer in range(2)],
            [wq[layer].reshape(3, 8) for layer in range(2)],
            [tree["norm"]["scale"][layer] for layer in range(2)],
        )

    params = stacks(keys[0])
    optimizer, _ = make_optimizer(config, params, forms(params), 10)
    mine, theirs = optimizer.init(params), oracle.init(singles(params))
    for key in keys[1:]:
        grads = stacks(key)
        updates, mine = optimizer.update(grads, mine, params)
        expected, theirs = oracle.update(singles(grads), theirs, singles(params))
        for here, there in zip(
            jax.tree.leaves(singles(updates)), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(here, there, rtol=2e-5, atol=1e-7)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(mine) if leaf.ndim)
    assert sizes == [2 * 5, 2 * 3 * 6, 2 * 3 * 7, 2 * 3 * 2 * 4]  # w_up is kept as two vectors


def test_lion_is_the_sign_of_the_mixed_momentum():
    """The paper's algorithm 2, in float64, over several steps."""
    from moe_jax.training.optimizer import Lion

    config = Lion(learning_rate=0.01, weight_decay=0.5, schedule=ConstantRate(), clip_norm=0.0)
    params = parameters()
    optimizer, _ = make_optimizer(config, params, forms(params), 10)
    state = optimizer.init(params)
    mine = {k: np.asarray(v, np.float64) for k, v in flat(params).items()}
    momentum = {k: np.zeros_like(v) for k, v in mine.items()}
    for t in range(1, 5):
        updates, state = optimizer.update(parameters(t), state, params)
        params = optax.apply_updates(params, updates)
        for name, g in flat(parameters(t)).items():
            g = np.asarray(g, np.float64)
            decay = 0.0 if name.endswith("scale") else 0.5
            direction = np.sign(0.9 * momentum[name] + 0.1 * g)
            mine[name] -= 0.01 * (direction + decay * mine[name])
            momentum[name] = 0.99 * momentum[name] + 0.01 * g
    for name, value in flat(params).items():
        np.testing.assert_allclose(value, mine[name], rtol=1e-5, atol=1e-6)


def test_frozen_group_counts_for_nothing():
    """Neither its huge gradient in the clipping, nor its size in the optimizer's state."""
    params, grads = parameters(), parameters(5)
    experts = params["layers"]["00"]["moe"]["experts"]
    grads["layers"]["00"]["moe"]["experts"] = jax.tree.map(lambda w: 1e6 * w, experts)
    groups = Groups(experts=Group(frozen=True))
    config = AdamW(schedule=ConstantRate(), eps=1.0, clip_norm=1.0, groups=groups)
    optimizer, _ = make_optimizer(config, params, forms(params), 10)
    state = optimizer.init(params)
    expert_shapes = {w.shape for w in jax.tree.leaves(experts)}
    assert not expert_shapes & {leaf.shape for leaf in jax.tree.leaves(state)}
    updates, _ = optimizer.update(grads, state, params)
    after = optax.apply_updates(params, updates)
    for path, value in flat(after).items():
        same = np.array_equal(value, flat(params)[path])
        assert same == (group_of(path) == "experts"), path
    rest = {path: g for path, g in flat(grads).items() if group_of(path) != "experts"}
    norm = np.sqrt(sum(np.sum(np.square(np.asarray(g, np.float64))) for g in rest.values()))
    g = np.asarray(rest["embedding"], np.float64) / norm
    decayed = g / (np.abs(g) + 1.0) + 0.1 * np.asarray(params["embedding"])
    np.testing.assert_allclose(flat(updates)["embedding"], -1e-3 * decayed, rtol=1e-4)


def test_schedules_of_short_runs_still_end_low():
    """Warm-up and decay that do not both fit: the decay gives way, and ends where it should."""
    schedule = WSD(warmup_steps=50, decay_fraction=0.8, final_fraction=0.0).build(1.0, 100)
    values = np.array([float(schedule(step)) for step in range(101)])
    assert values[49] == values[50] == 1.0 and values[100] == 0.0
    np.testing.assert_allclose(np.diff(values[50:]), -1 / 50, rtol=1e-3)
    warmup_only = WSD(warmup_steps=50).build(1.0, 20)
    assert [float(warmup_only(s)) for s in (0, 19)] == pytest.approx([1 / 50, 20 / 50])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_is_sharded_like_its_parameters(name, frozen):
    """In a whole program, on data x expert = 2 x 4: what has an expert's shape lies on `expert`."""
    from dataclasses import replace

    from moe_jax.data.tokenizer import ByteTokenizer
    from moe_jax.models.decoder import DecoderConfig
    from moe_jax.nn.moe_layer import MoEConfig
    from moe_jax.parallel.mesh import MeshConfig
    from moe_jax.training.build import build
    from moe_jax.training.experiment import Experiment

    sizes = {"num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8}
    plain = Experiment()
    experiment = replace(
        plain,
        batch_size=16,
        data=replace(plain.data, sequence_length=16),
        mesh=MeshConfig(data=2, expert=4),
        model=DecoderConfig(**sizes),
        moe=MoEConfig(num_experts=4, expert_dim=32),
        optimizer=OPTIMIZERS[name](groups=Groups(router=Group(frozen=frozen))),
    )
    state = build(experiment, ByteTokenizer()).abstract_state
    by_shape = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(state.params)}
    for leaf in jax.tree.leaves(state.opt_state):
        assert leaf.sharding.mesh.shape["expert"] == 4
    # Only the experts' shapes are theirs alone.
    moments = [m for m in jax.tree.leaves(state.opt_state) if m.ndim == 4 and m.shape[1] == 4]
    assert len(moments) >= len(jax.tree.leaves(state.params["layers"]["00"]["moe"]["experts"]))
    for leaf in moments:
        assert leaf.sharding.is_equivalent_to(by_shape[leaf.shape], leaf.ndim)
        assert leaf.sharding.shard_shape(leaf.shape)[1] == 1


def test_bad_settings_are_named():
    def broken(config):
        return [name for name, _ in config.check()]

    assert broken(AdamW(b1=1.0, b2=-0.1, eps=0.0)) == ["b1", "b2", "eps"]
    assert broken(Muon(momentum=1.0, learning_rate=0.0)) == ["learning_rate", "momentum"]
    assert broken(OPTIMIZERS["adafactor"](decay_rate=0.0)) == ["decay_rate"]
    every = Group(frozen=True)
    assert broken(Groups(router=every, experts=every, rest=every)) == ["rest.frozen"]
    assert not any(broken(cls()) for cls in OPTIMIZERS.values())


def test_command_line_reaches_optimizers_schedules_and_groups():
    from moe_jax.config.overrides import apply_overrides
    from moe_jax.training.experiment import Experiment
    from moe_jax.training.optimizer import Lion

    optimizer = apply_overrides(
        Experiment(),
        {
            "optimizer.groups.router.learning_rate_multiplier": "0.1",
            "optimizer.schedule.kind": "wsd",
            "optimizer.schedule.decay_fraction": "0.5",
            "optimizer.kind": "lion",
        },
    ).optimizer
    assert isinstance(optimizer, Lion) and optimizer.learning_rate == Lion().learning_rate
    assert optimizer.schedule == WSD(decay_fraction=0.5)
    assert optimizer.groups.router.learning_rate_multiplier == 0.1
