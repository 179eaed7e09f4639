"""Every layout and transport against the dense oracle: values and all gradients, on every mesh,
under even, skewed, all-to-one and empty loads. Loads are data, so each dispatcher compiles once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from moe_jax.dispatch import dispatch
from moe_jax.dispatch.dense import dense
from moe_jax.ops.expert_ffn import ExpertWeights
from moe_jax.routing.plan import make_plan
from moe_jax.routing.types import Assignments, SoftPlan

G, T, D, F, E, K = 8, 12, 6, 10, 8, 2
LOADS = ("even", "skewed", "one", "empty", "padded")
MESHES = ((8, 1), (4, 2), (2, 4), (1, 8))


def choices(load: str) -> np.ndarray:
    """(G, T, K) distinct experts of each token; E marks an unused row."""
    rng = np.random.default_rng(LOADS.index(load))
    if load == "even":
        first = np.arange(G * T).reshape(G, T) % E
        return np.stack([first, (first + 1) % E], -1)
    if load == "one":
        return np.broadcast_to(np.array([3, E]), (G, T, K)).copy()
    weights = {
        "skewed": 2.0 ** -np.arange(E),
        "empty": np.array([1, 0, 1, 0, 0, 1, 1, 0]),
        "padded": np.ones(E),
    }[load]
    scores = np.log(weights + 1e-30) + rng.gumbel(size=(G, T, E))
    found = np.argsort(-scores, axis=-1)[..., :K]
    if load == "padded":
        found[rng.random((G, T)) < 0.4] = E
    return found


def assignments(expert_GTK, weight_GTK) -> Assignments:
    token_R = jnp.repeat(jnp.arange(T, dtype=jnp.int32), K)
    expert_GR = jnp.asarray(expert_GTK, jnp.int32).reshape(G, -1)
    weight_GR = jnp.where(expert_GR < E, weight_GTK.reshape(G, -1), 0)
    return Assignments(
        token_R=jnp.broadcast_to(token_R[None], expert_GR.shape),
        expert_R=expert_GR,
        weight_R=weight_GR,
        T=T,
        E=E,
        k=K,
    )


def irregular(a: Assignments) -> Assignments:
    """The same pairs in another order, without the promise that token_R[r] = r // k."""
    order = jnp.asarray(np.random.default_rng(0).permutation(T * K))
    return Assignments(
        token_R=a.token_R[:, order],
        expert_R=a.expert_R[:, order],
        weight_R=a.weight_R[:, order],
        T=T,
        E=E,
    )


def arrays():
    keys = jax.random.split(jax.random.key(0), 5)
    w = {
        "w_gate": jax.random.normal(keys[0], (E, D, F)) * D**-0.5,
        "w_up": jax.random.normal(keys[1], (E, D, F)) * D**-0.5,
        "w_down": jax.random.normal(keys[2], (E, F, D)) * F**-0.5,
    }
    x_GTD = jax.random.normal(keys[3], (G, T, D))
    return x_GTD, w, jax.random.uniform(keys[4], (G, T, K))


def experts(w) -> ExpertWeights:
    return ExpertWeights(
        w_gate_EDF=w["w_gate"], w_up_EDF=w["w_up"], w_down_EFD=w["w_down"], activation="swiglu"
    )


def value_and_gradients(run):
    """A jitted function of (x, w, weights, choices) -> value, outputs, gradients."""

    def loss(x_GTD, w, weight_GTK, expert_GTK):
        y_GTD, overflow_G = run(x_GTD, w, weight_GTK, expert_GTK)
        slope_D = jnp.arange(1, D + 1, dtype=jnp.float32)[None, None]
        return jnp.sum(jnp.square(y_GTD) * slope_D), (y_GTD, overflow_G)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def oracle(capacity, shape=lambda a: a):
    def run(x_GTD, w, weight_GTK, expert_GTK):
        a = shape(assignments(expert_GTK, weight_GTK))
        plan_G = jax.vmap(lambda a: make_plan(a, capacity))(a)
        return dense(x_GTD, plan_G, experts(w)), jnp.zeros((G,), jnp.int32)

    return value_and_gradients(run)


def on_mesh(layout, capacity, mesh_shape, receive_factor=8.0, shape=lambda a: a):
    mesh = Mesh(
        np.asarray(jax.devices()).reshape(mesh_shape),
        ("data", "expert"),
        axis_types=(AxisType.Auto,) * 2,
    )
    tokens, split = PartitionSpec(("data", "expert")), PartitionSpec("expert")
    axis = "expert" if mesh_shape[1] > 1 else None

    def shard(x_gTD, w, plan_g):
        return dispatch(
            x_gTD,
            plan_g,
            experts(w),
            layout=layout,
            transport="all_to_all",
            axis=axis,
            receive_factor=receive_factor,
        )

    def run(x_GTD, w, weight_GTK, expert_GTK):
        a = shape(assignments(expert_GTK, weight_GTK))
        plan_G = jax.vmap(lambda a: make_plan(a, capacity))(a)
        return jax.shard_map(
            shard,
            mesh=mesh,
            in_specs=(tokens, split, tokens),
            out_specs=(tokens, tokens),
            check_vma=False,
        )(x_GTD, w, plan_G)

    return value_and_gradients(run)


def check_equal(found, expected):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in leaves:
        scale = max(float(jnp.max(jnp.abs(b))), 1e-6)
        assert float(jnp.max(jnp.abs(a - b))) < 2e-5 * scale


@pytest.mark.parametrize("mesh_shape", MESHES)
@pytest.mark.parametrize(
    ("layout", "capacity"),
    [
        ("rows", None),
        ("rows", 3),
        ("slots_scatter", 3),
        ("slots_einsum", 3),
        ("slots_scatter", None),
    ],
)
def test_equals_dense_on_every_load(layout, capacity, mesh_shape):
    x, w, weight = arrays()
    reference, run = oracle(capacity), on_mesh(layout, capacity, mesh_shape)
    for load in LOADS:
        expert = jnp.asarray(choices(load), jnp.int32)
        found, expected = run(x, w, weight, expert), reference(x, w, weight, expert)
        check_equal(found, expected)
        assert int(jnp.sum(found[0][1][1])) == 0  # no overflow


@pytest.mark.parametrize("layout", ["rows", "slots_scatter", "slots_einsum"])
def test_irregular_assignments(layout):
    x, w, weight = arrays()
    expert = jnp.asarray(choices("padded"), jnp.int32)
    run = on_mesh(layout, 3, (2, 4), shape=irregular)
    check_equal(run(x, w, weight, expert), oracle(3, irregular)(x, w, weight, expert))


def test_soft_plan_over_all_to_all():
    """Soft MoE: the slots layout with other maps."""
    x, w, _ = arrays()
    logits = jax.random.normal(jax.random.key(9), (G, T, E, 2))
    by_slot = jax.nn.softmax(logits.reshape(G, T, E * 2), -1).reshape(logits.shape)
    plan_G = SoftPlan(dispatch_TEC=jax.nn.softmax(logits, 1), combine_TEC=by_slot)
    mesh = Mesh(
        np.asarray(jax.devices()).reshape(2, 4),
        ("data", "expert"),
        axis_types=(AxisType.Auto,) * 2,
    )
    tokens = PartitionSpec(("data", "expert"))
    y_GTD, _ = jax.shard_map(
        lambda x, w, p: dispatch(
            x, p, experts(w), layout="slots_einsum", transport="all_to_all", axis="expert"
        ),
        mesh=mesh,
        in_specs=(tokens, PartitionSpec("expert"), tokens),
        out_specs=(tokens, tokens),
        check_vma=False,
    )(x, w, plan_G)
    check_equal(y_GTD, dense(x, plan_G, experts(w)))


def test_overflow_is_counted_and_nothing_else_is_lost():
    """A receive buffer of the even load, all tokens to one expert: what fits is right, what does
    not is zero and counted."""
    x, w, weight = arrays()
    expert = jnp.asarray(choices("one"), jnp.int32)
    (_, (y, overflow_G)), _ = on_mesh("rows", None, (2, 4), receive_factor=1.0)(
        x, w, weight, expert
    )
    (_, (expected, _)), _ = oracle(None)(x, w, weight, expert)
    rows_per_shard, buffer = G * T // 8, G * T * K // 8 // 4
    lost = 8 * max(rows_per_shard - buffer, 0)
    assert int(jnp.sum(overflow_G)) == lost > 0
    wrong_GT = np.any(~np.isclose(y, expected, rtol=1e-4, atol=1e-4), axis=-1)
    assert wrong_GT.sum() == lost
    assert np.all(np.asarray(y)[wrong_GT] == 0)
    np.testing.assert_array_equal(wrong_GT.sum(1), np.asarray(overflow_G))
