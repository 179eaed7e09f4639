"""The sparse layer as a whole: against a walk through the tokens, keys, padding, groups."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from moe_jax.nn.context import Context
from moe_jax.nn.moe_layer import Grouping, MoEConfig, _group_ids
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing import GShard, Mixtral, NoisyTopK, RoundRobin, Switch, TopK, VMoE
from moe_jax.routing.counterfactual import RouteBy
from tests.nn.sparse_layer import SEGMENTS, B, D, E, F, S, batch_of, float64, inputs, make, swiglu


@pytest.mark.parametrize("layout", ["rows", "slots_einsum"])
def test_dropless_layer_with_shared_experts(layout):
    """Each valid token: softmax over its two best logits, their experts, and the shared ones."""
    config = MoEConfig(num_experts=E, expert_dim=F, num_shared=2, shared_dim=3, layout=layout)
    layer, apply = make(config)
    x_BSD = inputs()
    y_BSD, report = apply(jnp.asarray(x_BSD), batch_of(range(B)), Context(), jnp.int32(0))
    (kernel,) = float64(layer.router.kernel)
    gate, up, down = float64(layer.experts.w_gate, layer.experts.w_up, layer.experts.w_down)
    shared = float64(layer.shared.w_gate, layer.shared.w_up, layer.shared.w_down)
    assert shared[0].shape == (D, 6)
    wanted_E, probability_E, z = np.zeros(E), np.zeros(E), 0.0
    for b in range(B):
        for s in range(S):
            x_D = x_BSD[b, s].astype(np.float64)
            expected = swiglu(x_D, *shared)
            if SEGMENTS[b, s]:
                logits = x_D @ kernel
                best = np.argsort(-logits)[:2]
                weights = scipy.special.softmax(logits[best])
                for weight, e in zip(weights, best, strict=True):
                    expected = expected + weight * swiglu(x_D, gate[e], up[e], down[e])
                wanted_E[best] += 1
                probability_E += scipy.special.softmax(logits)
                z += scipy.special.logsumexp(logits) ** 2
            np.testing.assert_allclose(y_BSD[b, s], expected, rtol=1e-4, atol=1e-5)
    sums = report.sums
    assert sums.valid.shape == (B,)
    assert int(sums.valid.sum()) == (SEGMENTS > 0).sum()
    np.testing.assert_array_equal(sums.wanted_E.sum(0), wanted_E)
    np.testing.assert_allclose(sums.prob_E.sum(0), probability_E, rtol=1e-5)
    np.testing.assert_allclose(sums.z.sum(), z, rtol=1e-5)
    assert int(report.traffic.dropped.sum()) == int(report.traffic.overflow.sum()) == 0


def noisy(router, **changes):
    return MoEConfig(num_experts=E, expert_dim=F, router=router, **changes)


@pytest.mark.parametrize(
    "router",
    [NoisyTopK(k=2, init_scale=1.0), VMoE(k=2, noise_std=4.0), GShard(), Switch(jitter=0.5)],
    ids=lambda router: type(router).__name__,
)
def test_noise_hangs_on_step_layer_and_group_alone(router):
    """A row meets the same noise wherever it stands in the batch; other rows, layers and steps
    meet other noise; evaluation meets none."""
    _, apply = make(noisy(router, capacity_factor=1.0, group_size=4))
    x_BSD = np.broadcast_to(inputs()[:1], (B, S, D))  # B times the same row

    def run(rows, step=0, layer=0, train=True):
        key = jax.random.fold_in(jax.random.key(1), step) if train else None
        context = Context(key=key, train=train, capacity_factor=1.0)
        batch = batch_of(rows)
        batch = dataclasses.replace(batch, segment_BS=jnp.ones((B, S), jnp.int32))
        return np.asarray(apply(jnp.asarray(x_BSD), batch, context, jnp.int32(layer))[0])

    first = run([4, 0, 9])
    np.testing.assert_array_equal(run([9, 4, 0]), first[[2, 0, 1]])
    assert np.abs(first[0] - first[1]).max() > 1e-4
    assert np.abs(run([4, 0, 9], step=1) - first).max() > 1e-4
    assert np.abs(run([4, 0, 9], layer=1) - first).max() > 1e-4
    quiet = run([4, 0, 9], train=False)
    np.testing.assert_array_equal(quiet[0], quiet[1])


def test_each_group_has_its_own_capacity():
    """Four tokens of a group, all to one expert with room for one: three are lost."""
    config = noisy(Switch(), capacity_factor=1.0, group_size=4)
    _, apply = make(config)
    x_BSD = jnp.ones((B, S, D))
    batch = dataclasses.replace(batch_of(range(B)), segment_BS=jnp.ones((B, S), jnp.int32))
    y_BSD, report = apply(x_BSD, batch, Context(capacity_factor=1.0), jnp.int32(0))
    np.testing.assert_array_equal(report.traffic.dropped, [3] * (B * 2))
    served = np.abs(np.asarray(y_BSD)).max(-1) > 0
    np.testing.assert_array_equal(served, [[True, False, False, False] * 2] * B)
    whole = Context(capacity_factor=1.0, whole_rows=True)
    _, report = apply(x_BSD, batch, whole, jnp.int32(0))
    np.testing.assert_array_equal(report.traffic.dropped, [6] * B)  # 8 tokens, room for 2


def test_routes_are_what_was_counted():
    config = noisy(Mixtral(k=2), capacity_factor=0.5)
    _, apply = make(config)
    context = Context(capture=True, capacity_factor=0.5)
    _, report = apply(jnp.asarray(inputs()), batch_of(range(B)), context, jnp.int32(0))
    routes = jax.tree.map(np.asarray, report.routes)
    assert np.all(routes.expert_BSK[SEGMENTS == 0] == E)
    assert np.all(routes.expert_BSK[SEGMENTS > 0] < E)
    for b in range(B):
        wanted = np.bincount(routes.expert_BSK[b].reshape(-1), minlength=E + 1)[:E]
        np.testing.assert_array_equal(report.sums.wanted_E[b], wanted)
        kept = routes.expert_BSK[b][routes.kept_BSK[b]]
        np.testing.assert_array_equal(report.traffic.accepted_E[b], np.bincount(kept, minlength=E))
    assert 0 < (~routes.kept_BSK[SEGMENTS > 0]).sum() == int(report.traffic.dropped.sum())
    np.testing.assert_allclose(routes.weight_BSK[SEGMENTS > 0].sum(-1), 1, rtol=1e-5)
    best = np.argsort(-routes.prob_BSE, -1)[..., :2]
    np.testing.assert_array_equal(best[SEGMENTS > 0], routes.expert_BSK[SEGMENTS > 0])


def test_other_routes_in_the_place_of_the_router_s():
    """Experts in turn, with each token's weight in total; probabilities stay the router's."""
    _, apply = make(MoEConfig(num_experts=E, expert_dim=F))
    x_BSD, batch, number = jnp.asarray(inputs()), batch_of(range(B)), jnp.int32(0)
    _, own = apply(x_BSD, batch, Context(capture=True), number)
    counterfactual = RouteBy(router=RoundRobin(k=2))
    y_BSD, report = apply(
        x_BSD, batch, Context(capture=True, counterfactual=counterfactual), number
    )
    routes = jax.tree.map(np.asarray, report.routes)
    for b in range(B):
        turn = np.arange((SEGMENTS[b] > 0).sum())[:, None]  # positions of this batch are all 0
        wanted = (2 * turn + np.arange(2)) % E
        np.testing.assert_array_equal(routes.expert_BSK[b][SEGMENTS[b] > 0], wanted)
    np.testing.assert_allclose(routes.weight_BSK[SEGMENTS > 0], 0.5, rtol=1e-5)
    np.testing.assert_allclose(routes.prob_BSE, own.routes.prob_BSE, rtol=1e-5)
    assert np.isfinite(y_BSD).all()


@pytest.mark.parametrize(
    ("size", "rows", "pieces"), [(None, 1, 1), (8, 1, 1), (4, 1, 2), (24, 3, 1)]
)
def test_grouping(size, rows, pieces):
    grouping = Grouping.of(size, 8)
    assert (grouping.rows, grouping.pieces) == (rows, pieces)
    cut = grouping.cut(jnp.arange(48).reshape(6, 8))
    np.testing.assert_array_equal(cut.reshape(-1), np.arange(48))
    assert cut.shape == (6 * pieces // rows, size or 8)


def test_a_group_that_does_not_fit_rows_is_refused():
    with pytest.raises(ValueError, match="neither divides"):
        Grouping.of(12, 8)


def test_group_numbers_are_distinct_and_of_the_rows_alone():
    """Rows 5, 2, 7 of a batch: numbers row * pieces + piece, or row // rows of a group."""
    row_B = jnp.asarray([5, 2, 7], jnp.int32)
    np.testing.assert_array_equal(
        _group_ids(row_B, Grouping.of(4, 8)), [[10, 11], [4, 5], [14, 15]]
    )
    pair = Grouping.of(16, 8)
    np.testing.assert_array_equal(_group_ids(jnp.arange(4, 8, dtype=jnp.int32), pair), [[2], [3]])


@pytest.mark.parametrize("scaled", [False, True])
def test_weights_after_drops(scaled):
    """Where drops took some of a token's experts, the weights of the others stay or, if asked, are
    scaled to the sum of all."""
    config = noisy(
        TopK(k=2), capacity_factor=0.75, renormalize_after_drop=scaled, capacity_rounding="floor"
    )
    layer, apply = make(config)
    x_BSD = inputs()
    context = Context(capacity_factor=0.75)
    y_BSD, report = apply(jnp.asarray(x_BSD), batch_of(range(B)), context, jnp.int32(0))
    (kernel,) = float64(layer.router.kernel)
    gate, up, down = float64(layer.experts.w_gate, layer.experts.w_up, layer.experts.w_down)
    room, halves = int(S * 2 * 0.75 / E), 0
    for b in range(B):
        queues = np.zeros(E, int)
        for s in np.flatnonzero(SEGMENTS[b]):
            x_D = x_BSD[b, s].astype(np.float64)
            weights_E = scipy.special.softmax(x_D @ kernel)
            best = np.argsort(-weights_E)[:2]
            kept = [e for e in best if queues[e] < room]
            queues[best] += 1
            factor = weights_E[best].sum() / weights_E[kept].sum() if kept and scaled else 1.0
            terms = [factor * weights_E[e] * swiglu(x_D, gate[e], up[e], down[e]) for e in kept]
            np.testing.assert_allclose(y_BSD[b, s], sum(terms, np.zeros(D)), rtol=1e-4, atol=1e-5)
            halves += len(kept) == 1
    assert halves > 2 and int(report.traffic.dropped.sum()) >= halves


def test_capacity_is_the_context_s():
    """Evaluation has its own factor: 8 tokens of 4 experts, all to one, by 0.5 and by 2."""
    _, apply = make(noisy(Switch(), capacity_factor=1.0))
    batch = dataclasses.replace(batch_of(range(B)), segment_BS=jnp.ones((B, S), jnp.int32))
    for factor, dropped in ((0.5, 7), (2.0, 4), (None, 0)):
        context = Context(capacity_factor=factor)
        _, report = apply(jnp.ones((B, S, D)), batch, context, jnp.int32(0))
        np.testing.assert_array_equal(report.traffic.dropped, [dropped] * B)


def test_overflow_is_no_drop():
    """Two devices along `expert`, all tokens to one expert: of 8 rows a buffer of the even load
    takes 4. The others are overflow, and nothing is dropped."""
    mesh = make_mesh(MeshConfig(data=1, expert=2), jax.devices()[:2])
    _, apply = make(noisy(Switch(), receive_factor=1.0), mesh)
    rows = dataclasses.replace(batch_of(range(2)), segment_BS=jnp.ones((2, S), jnp.int32))
    _, report = apply(jnp.ones((2, S, D)), rows, Context(), jnp.int32(0))
    np.testing.assert_array_equal(report.traffic.overflow, [4, 4])
    np.testing.assert_array_equal(report.traffic.dropped, [0, 0])
    np.testing.assert_array_equal(report.traffic.accepted_E.sum(1), [S, S])
