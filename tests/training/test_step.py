"""The training step against its own definition: loss scopes, knobs, reported norms, and the
collectives of the compiled step of a run."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.data.tokenizer import ByteTokenizer
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.collectives import collectives
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.routing.losses import Importance, LoadBalance, RouterZ, RoutingLosses
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment
from tests.training.test_invariance import (
    GSHARD,
    LOSSES,
    MESHES,
    MIXTRAL,
    NOISY,
    Counting,
    S,
    close,
    gap,
    make,
    raw_batch,
    run,
)

# --- what must not matter ---


@pytest.mark.parametrize(
    ("moe", "mesh"),
    [(GSHARD, MeshConfig(data=8)), (NOISY, MeshConfig(data=1, expert=8))],
    ids=["drops, 8x1", "noise, 1x8"],
)
def test_the_two_extreme_meshes(moe, mesh):
    close(run(moe, steps=2, mesh=mesh), run(moe, steps=2))


def step_of(moe, **options):
    """Parameters after one step of plain SGD, and its result."""
    step, state = make(moe, optimizer=optax.sgd(1.0), **options)
    after, result = jax.jit(step.train)(state, raw_batch(), {})
    return state.params, after.params, result


def test_every_additive_scope_under_accumulation():
    """Load balance per row of two groups, importance per group, z over the batch; tokens are
    dropped and rows are padded. One, two (on eight devices) and four micro-batches agree."""
    losses = RoutingLosses(
        load_balance=LoadBalance(coefficient=1.0, scope="row"),
        importance=Importance(coefficient=1.0, scope="group"),
        router_z=RouterZ(coefficient=1.0),
    )
    moe = dataclasses.replace(GSHARD, losses=losses, group_size=16)
    _, params, result = step_of(moe)
    assert int(result.sums.traffic.dropped.sum()) > 0
    for options in ({"accumulation": 2, "mesh": MESHES["2x4"]}, {"accumulation": 4}):
        _, other, found = step_of(moe, **options)
        np.testing.assert_allclose(found.loss, result.loss, rtol=1e-5)
        assert gap(jax.device_get(other), jax.device_get(params)) < 2e-5, options
        for name in ("wanted_E", "valid"):
            np.testing.assert_array_equal(
                getattr(found.sums.routing, name), getattr(result.sums.routing, name)
            )
        assert int(found.sums.traffic.dropped.sum()) == int(result.sums.traffic.dropped.sum())


def test_reported_norms_and_the_other_layout_and_remat_policy():
    """With SGD of rate 1 the gradient is the change of the parameters."""
    before, after, result = step_of(MIXTRAL)
    grads = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b), before, after)
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(result.grad_norm, norm, rtol=1e-4)
    experts = grads["layers"]["00"]["moe"]["experts"].values()  # (L, E, ., .) each
    squares = sum((g**2).sum((2, 3)) for g in experts)
    np.testing.assert_allclose(result.expert_grad_norm, np.sqrt(squares), rtol=1e-3, atol=1e-6)

    einsum = dataclasses.replace(MIXTRAL, layout="slots_einsum")
    _, other, found = step_of(einsum, remat="dots")
    np.testing.assert_allclose(found.loss, result.loss, rtol=1e-5)
    assert gap(other, after) < 2e-5


# --- the loss, and what makes a step bad ---


def leaves_equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_loss_knobs_and_bad_losses():
    """loss = mean nats + coefficient * sum over layers of mean z. A coefficient that is NaN or
    inf makes a bad step: nothing but the counters changes, and nothing is compiled again."""
    knob = "moe.losses.router_z.coefficient"
    moe = dataclasses.replace(
        MIXTRAL,
        router=Counting(k=2),
        losses=dataclasses.replace(
            LOSSES, load_balance=LoadBalance(), importance=Importance(), router_z=RouterZ()
        ),
    )
    step, state = make(moe)
    train = jax.jit(step.train)

    def at(state, coefficient):
        return train(state, raw_batch(), {knob: np.float32(coefficient)})

    good, result = at(state, 0.5)
    at(good, 0.5)
    compilations = train._cache_size()
    sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), result.sums)
    z = np.sum(sums.routing.z / sums.routing.valid)
    np.testing.assert_allclose(result.loss, sums.task.nats / sums.task.tokens + z / 2, rtol=1e-5)
    plain = at(state, 0)[1]
    np.testing.assert_allclose(plain.loss, sums.task.nats / sums.task.tokens, rtol=1e-5)
    assert not leaves_equal(good.params, state.params)
    for bad_value in (np.nan, np.inf):
        after, result = at(good, bad_value)
        assert not np.isfinite(result.loss)
        for name in ("params", "opt_state", "router_state"):
            assert leaves_equal(getattr(after, name), getattr(good, name)), name
        assert (int(after.bad_steps), int(after.skipped), int(after.step)) == (1, 1, 2)
    healthy, _ = at(after, 0.5)
    assert (int(healthy.bad_steps), int(healthy.skipped), int(healthy.step)) == (0, 1, 3)
    assert not leaves_equal(healthy.router_state, good.router_state)
    assert train._cache_size() == compilations


def test_a_dense_model():
    step, state = make(MoEConfig(every=0))
    state, result = jax.jit(step.train)(state, raw_batch(), {})
    task = result.sums.task
    np.testing.assert_allclose(result.loss, float(task.nats) / int(task.tokens), rtol=1e-6)
    assert (result.layers, result.sums.routing, result.expert_grad_norm) == ({}, None, None)
    segments = raw_batch()["segments"]
    targets = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    assert int(task.tokens) == targets.sum()


# --- the compiled step of a run ---

# F is a prime: no other array of the step has a dimension of 22 or of 11 = 22 / tensor.
F, D, E, LAYERS = 22, 16, 8, 2


@pytest.fixture(scope="module")
def program():
    base = Experiment()
    experiment = dataclasses.replace(
        base,
        batch_size=16,
        data=dataclasses.replace(base.data, sequence_length=S),
        mesh=MESHES["fsdp tensor expert"],
        model=DecoderConfig(
            vocab_size=264,
            num_layers=LAYERS,
            model_dim=D,
            num_heads=4,
            num_kv_heads=2,
            head_dim=4,
            mlp_dim=32,
        ),
        moe=dataclasses.replace(MIXTRAL, expert_dim=F, receive_factor=1.5),
    )
    return build(experiment, ByteTokenizer())


@pytest.fixture(scope="module")
def compiled(program):
    def rows(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=program.batch_sharding)

    B = program.experiment.batch_size
    raw = {"tokens": rows(B, S + 1), "segments": rows(B, S + 1), "row": rows(B)}
    return program.train_step.lower(program.abstract_state, raw, program.knobs(0)).compile()


def test_every_array_of_the_state_lies_where_the_rules_say(program, compiled):
    """Parameters and both moments, after the compiled step: none is silently replicated."""
    state_out, _ = compiled.output_shardings
    state = program.abstract_state
    flat = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), where in zip(flat, jax.tree.leaves(state_out), strict=True):
        assert where.is_equivalent_to(leaf.sharding, leaf.ndim), jax.tree_util.keystr(path)
    rules = {"w_gate": 8, "w_up": 8, "w_down": 8, "wq": 4, "wk": 4, "wv": 4, "wo": 4}
    rules |= {"embedding": 4, "head": 4, "kernel": 2, "scale": 1}
    seen = []
    for path, leaf in flat:
        if leaf.ndim == 0 or "params" not in jax.tree_util.keystr(path[:1]):
            continue
        name = path[-1].key
        share = leaf.size // np.prod(leaf.sharding.shard_shape(leaf.shape))
        assert share == rules[name], (jax.tree_util.keystr(path), share)
        seen.append(leaf)
    shapes = [leaf.shape for leaf in seen]
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(leaf.shape for leaf in moments) == sorted(2 * shapes)
    whole = sum(leaf.size for leaf in moments)
    held = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in moments)
    assert held < whole / 4


def test_no_weight_crosses_the_expert_axis(program, compiled):
    """Over `expert` move rows and counts, of exactly the bytes that the transport states, and sums
    of gradients of what all devices share."""
    found = collectives(compiled.as_text(), program.mesh)
    assert any(c.axes == {"fsdp"} and c.op == "all-gather" for c in found)
    for c in (c for c in found if "expert" in c.axes):
        for _, shape in c.arrays:
            assert F not in shape and F // 2 not in shape, c
            assert c.op in ("all-to-all", "all-reduce") or np.prod(shape) <= 16 * (S + 1), c
    exchanges = [c for c in found if c.op == "all-to-all"]
    assert all(c.axes == {"expert"} for c in exchanges)
    n, M = 2, (16 // 4) * S * 2  # devices along expert; rows of one device, k = 2
    row_bytes = n * int(np.ceil(1.5 * M / n)) * D * 4
    rows = [c for c in exchanges if c.arrays[0][0] == "f32"]
    counts = [c for c in exchanges if c.arrays[0][0] == "s32"]
    assert {c.result_bytes for c in rows} == {row_bytes}
    assert sum(c.times for c in rows) == 4 * LAYERS  # 2 forward, 2 backward a layer
    assert {c.result_bytes for c in counts} == {E * 4}
    assert sum(c.times for c in counts) in (LAYERS, 2 * LAYERS)


def test_the_vocabulary_stays_split(program, compiled):
    """Embedding and head are gathered over `fsdp` at most, V / tensor rows of them."""
    V = program.experiment.model.vocab_size
    for c in collectives(compiled.as_text(), program.mesh):
        assert all(V not in shape for _, shape in c.arrays), c
