"""Every layout and transport against the dense oracle: values and all gradients, on every mesh,
under even, skewed, all-to-one and empty loads. Loads are data, so each dispatcher compiles once.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from moe_jax.dispatch import gathered_weights, sharded_dispatch
from moe_jax.dispatch.dense import dense
from moe_jax.dispatch.transport.ragged import ragged_all_to_all
from moe_jax.experts import FeedForward
from moe_jax.ops.expert_ffn import ExpertWeights
from moe_jax.parallel.mesh import AXES
from moe_jax.routing.plan import make_plan
from moe_jax.routing.types import Assignments, SoftPlan
from tests.drawn import some

G, T, D, F, E, K = 8, 12, 6, 10, 8, 2
LOADS = ("even", "skewed", "one", "empty", "padded")
MESHES = {
    "data 8": {"data": 8},
    "data 4, expert 2": {"data": 4, "expert": 2},
    "data 2, expert 4": {"data": 2, "expert": 4},
    "expert 8": {"expert": 8},
    "fsdp 2, expert 4": {"fsdp": 2, "expert": 4},
    "expert 4, tensor 2": {"expert": 4, "tensor": 2},
    "expert 4, sequence 2": {"expert": 4, "sequence": 2},
    "fsdp 2, expert 2, tensor 2": {"fsdp": 2, "expert": 2, "tensor": 2},
}
# layout, transport, capacity
DISPATCHERS = [
    ("rows", "all_to_all", None),
    ("rows", "all_to_all", 3),
    ("rows", "gather", 3),
    ("rows", "ragged", 3),
    ("slots_scatter", "all_to_all", None),
    ("slots_einsum", "all_to_all", 3),
    ("slots_scatter", "gather", 3),
]
EVERYWHERE = [(*dispatcher, mesh) for dispatcher in DISPATCHERS for mesh in MESHES]


def is_ordinary(layout, transport, capacity, mesh):
    """One dispatcher on every mesh, and every one on some."""
    everywhere = (layout, transport, capacity) == ("rows", "all_to_all", 3)
    split = layout == "slots_einsum" and mesh == "expert 4, tensor 2"
    return everywhere or split or mesh in ("data 8", "data 2, expert 4")


# As the layer lays them out.
TOKENS = PartitionSpec(("data", "fsdp", "expert", "sequence"))
WEIGHTS = {
    "w_gate": PartitionSpec("expert", "fsdp", "tensor"),
    "w_up": PartitionSpec("expert", "fsdp", "tensor"),
    "w_down": PartitionSpec("expert", "tensor", "fsdp"),
}


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


SPECS = FeedForward(activation="swiglu").params(E, D, F, 1.0)


def experts(w) -> ExpertWeights:
    return ExpertWeights(
        w_gate_EDF=w["w_gate"],
        w_up_EDF=w["w_up"],
        w_down_EFD=w["w_down"],
        activation="swiglu",
        backend="reference",
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


def make_mesh(sizes):
    shape = [sizes.get(axis, 1) for axis in AXES]
    return Mesh(np.asarray(jax.devices()).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 5)


def on_mesh(layout, transport, sizes, capacity=None, receive_factor=8.0, shape=None, chunks=1):
    def shard(x_gTD, w, plan_g):
        return sharded_dispatch(
            x_gTD,
            plan_g,
            experts(gathered_weights(w, SPECS, x_gTD.dtype, "fsdp")),
            layout=layout,
            transport=transport,
            receive_factor=receive_factor,
            chunks=chunks,
        )

    def run(x_GTD, w, weight_GTK, expert_GTK):
        a = assignments(expert_GTK, weight_GTK)
        plan_G = jax.vmap(lambda a: make_plan(a, capacity))(shape(a) if shape else a)
        return jax.shard_map(
            shard,
            mesh=make_mesh(sizes),
            in_specs=(TOKENS, WEIGHTS, TOKENS),
            out_specs=(TOKENS, TOKENS),
            check_vma=False,
        )(x_GTD, w, plan_G)

    return value_and_gradients(run)


def check_equal(found, expected):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in leaves:
        scale = max(float(jnp.max(jnp.abs(b))), 1e-6)
        assert float(jnp.max(jnp.abs(a - b))) < 2e-5 * scale


@functools.cache
def expected(capacity, load):
    x, w, weight = arrays()
    return oracle(capacity)(x, w, weight, jnp.asarray(choices(load), jnp.int32))


@pytest.mark.parametrize(
    ("layout", "transport", "capacity", "mesh"),
    some(EVERYWHERE, [case for case in EVERYWHERE if is_ordinary(*case)], several=True),
)
def test_equals_dense_on_every_load(layout, transport, capacity, mesh):
    x, w, weight = arrays()
    run = on_mesh(layout, transport, MESHES[mesh], capacity)
    for load in LOADS:
        found = run(x, w, weight, jnp.asarray(choices(load), jnp.int32))
        check_equal(found, expected(capacity, load))
        assert int(jnp.sum(found[0][1][1])) == 0  # no overflow


@pytest.mark.parametrize(
    ("layout", "transport"), [(layout, transport) for layout, transport, c in DISPATCHERS if c]
)
def test_irregular_assignments(layout, transport):
    x, w, weight = arrays()
    expert = jnp.asarray(choices("padded"), jnp.int32)
    run = on_mesh(layout, transport, {"data": 2, "expert": 4}, 3, shape=irregular)
    check_equal(run(x, w, weight, expert), oracle(3, irregular)(x, w, weight, expert))


@pytest.mark.parametrize("transport", ["all_to_all", "gather", "ragged"])
def test_chunks(transport):
    """Two groups of a device one after the other."""
    x, w, weight = arrays()
    run = on_mesh("rows", transport, {"expert": 4, "tensor": 2}, chunks=2)
    for load in ("skewed", "one"):
        expert = jnp.asarray(choices(load), jnp.int32)
        check_equal(run(x, w, weight, expert), expected(None, load))


def test_tensor_parallel_without_expert_parallel():
    """Every rank has all experts and a part of their hidden width: the outputs are summed."""
    x, w, weight = arrays()
    run = on_mesh("rows", "all_to_all", {"data": 4, "tensor": 2})
    expert = jnp.asarray(choices("skewed"), jnp.int32)
    check_equal(run(x, w, weight, expert), expected(None, "skewed"))


@pytest.mark.parametrize("transport", ["all_to_all", "gather"])
def test_soft_plan(transport):
    """Soft MoE: the slots layout with other maps; values and all gradients."""
    x, w, _ = arrays()
    logits = jax.random.normal(jax.random.key(9), (G, T, E, 2))

    def on_devices(x, p, w):
        return sharded_dispatch(
            x,
            p,
            experts(gathered_weights(w, SPECS, x.dtype, "fsdp")),
            layout="slots_einsum",
            transport=transport,
            receive_factor=1.0,
        )[0]

    def run(x, p, w):
        return jax.shard_map(
            on_devices,
            mesh=make_mesh({"data": 2, "expert": 4}),
            in_specs=(TOKENS, TOKENS, WEIGHTS),
            out_specs=TOKENS,
            check_vma=False,
        )(x, p, w)

    def gradients(dispatched):
        def loss(x, w, logits):
            by_slot = jax.nn.softmax(logits.reshape(G, T, E * 2), -1).reshape(logits.shape)
            plan_G = SoftPlan(dispatch_TEC=jax.nn.softmax(logits, 1), combine_TEC=by_slot)
            y_GTD = dispatched(x, plan_G, w)
            slope_D = jnp.arange(1, D + 1, dtype=jnp.float32)[None, None]
            return jnp.sum(jnp.square(y_GTD) * slope_D), y_GTD

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(x, w, logits)

    check_equal(gradients(run), gradients(lambda x, p, w: dense(x, p, experts(w))))


# All tokens want expert 3 of device 1; of T = 12 rows of each of 8 devices in 2 x 4, a buffer of
# receive_factor times the even load takes:
LOST = {
    # from each source ceil(24 / 4 * 1) = 6 rows
    "all_to_all": np.full(8, 6),
    # 24 rows, those of the first two sources
    "ragged": np.array([0, 0, 12, 12] * 2),
    "gather": np.array([0, 0, 12, 12] * 2),
}


@pytest.mark.parametrize("transport", LOST)
def test_overflow_is_counted_and_nothing_else_is_lost(transport):
    """A receive buffer of the even load, all tokens to one expert: what fits is right, what does
    not is zero and counted."""
    x, w, weight = arrays()
    expert = jnp.asarray(choices("one"), jnp.int32)
    sizes = {"data": 2, "expert": 4}
    (_, (y, lost_G)), _ = on_mesh("rows", transport, sizes, receive_factor=1.0)(
        x, w, weight, expert
    )
    (_, (whole, _)), _ = expected(None, "one")
    wrong_GT = np.any(~np.isclose(y, whole, rtol=1e-4, atol=1e-4), axis=-1)
    assert np.all(np.asarray(y)[wrong_GT] == 0)
    np.testing.assert_array_equal(wrong_GT.sum(1), np.asarray(lost_G))
    np.testing.assert_array_equal(lost_G, LOST[transport])


def test_emulated_ragged_exchange():
    """Rows of random sizes arrive where the metadata says, by numpy loops; and the offsets of a
    4 x 4 matrix of counts."""
    n, M, N, D = 8, 40, 48, 3
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 6, (n, n)).astype(np.int32)  # source, destination
    x = rng.normal(size=(n, M, D)).astype(np.float32)
    departure = np.cumsum(sizes, 1) - sizes
    arrival = np.cumsum(sizes, 0) - sizes
    want = np.zeros((n, N, D), np.float32)
    for s in range(n):
        for d in range(n):
            rows = x[s, departure[s, d] : departure[s, d] + sizes[s, d]]
            want[d, arrival[s, d] : arrival[s, d] + sizes[s, d]] = rows

    def shard(x, *metadata):
        out = jnp.zeros((N, D), jnp.float32)
        return ragged_all_to_all(x[0], out, *[m[0] for m in metadata], "expert")[None]

    spec = PartitionSpec("expert")
    run = jax.shard_map(
        shard, mesh=make_mesh({"expert": 8}), in_specs=spec, out_specs=spec, check_vma=False
    )
    metadata = [np.ascontiguousarray(m) for m in (departure, sizes, arrival, sizes.T)]
    np.testing.assert_array_equal(jax.jit(run)(x, *metadata), want)
    slope = rng.normal(size=want.shape).astype(np.float32)
    dx = jax.jit(jax.grad(lambda x: jnp.sum(run(x, *metadata) * slope)))(x)
    for s in range(n):
        for d in range(n):
            np.testing.assert_array_equal(
                dx[s, departure[s, d] : departure[s, d] + sizes[s, d]],
                slope[d, arrival[s, d] : arrival[s, d] + sizes[s, d]],
            )
