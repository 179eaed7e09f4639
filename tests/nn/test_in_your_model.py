"""docs/in_your_model.md runs as it stands, and `moe_jax.MoE` is the layer of our own models."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import moe_jax
from moe_jax.nn.context import Context, TokenBatch
from moe_jax.nn.moe_layer import MoEConfig, MoELayer
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing.losses import SCOPES, LoadBalance, RouterZ, RoutingLosses, scoped_loss
from tests.drawn import some
from tests.training.programs import program_of

PAGE = Path(__file__).parents[2] / "docs/in_your_model.md"
LOSSES = RoutingLosses(
    load_balance=LoadBalance(coefficient=0.1), router_z=RouterZ(coefficient=0.01)
)
D, E, F = 16, 8, 24


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(1, 5), ids=["nnx", "linen", "plain", "mesh"])
def test_each_program_of_the_page_runs_behind_its_first_lines(number):
    """Pasted into an empty file behind the page's first block; where it trains, it learns."""
    first, *others = blocks()
    assert len(others) == 4
    found: dict = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(compile(first + others[number - 1], f"{PAGE.name}:{number}", "exec"), found)
    if "losses" in found:
        assert found["losses"][-1] < 0.9 * found["losses"][0]
    else:
        assert found["layer"].layer.experts.w_up[...].sharding.spec[0] == "model"


def of(**settings) -> moe_jax.MoE:
    return moe_jax.MoE(D, experts=E, hidden=F, rngs=nnx.Rngs(params=1), losses=LOSSES, **settings)


def value_and_grads(layer, x, **options):
    def loss_of(layer, x):
        y, report = layer(x, **options)
        return jnp.sum(jnp.sin(y)) + report.loss, report

    run = nnx.jit(nnx.value_and_grad(loss_of, has_aux=True))
    (loss, report), grads = run(layer, x)
    return loss, report, nnx.to_pure_dict(grads)


call = nnx.jit(lambda layer, x: layer(x))


def close(one, two, rtol=2e-5):
    for (path, a), (_, b) in zip(
        jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(two), strict=True
    ):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol, rtol * np.abs(a).max(), err_msg=str(path))


X = jax.random.normal(jax.random.key(0), (8, 12, D))
ROUTERS = [
    moe_jax.routers.Mixtral(k=2),
    moe_jax.routers.NoisyTopK(k=2),
    moe_jax.routers.LossFree(k=2),
    moe_jax.routers.MoEPlusPlus(),
]


@pytest.mark.grid
@pytest.mark.parametrize("router", ROUTERS)
def test_it_is_the_layer_of_our_own_models(router):
    """Output, losses, metrics and gradients are those of `MoELayer` on our mesh of one device."""
    key = jax.random.key(3)
    mine = of(router=router, capacity_factor=1.25, shared=1)
    config = dataclasses.replace(mine.config, receive_factor=8.0)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    theirs = MoELayer(
        config,
        model_dim=D,
        activation="swiglu",
        init_scale=1.0,
        mesh=mesh,
        rngs=nnx.Rngs(params=1),
    )
    B, S = X.shape[:2]
    batch = TokenBatch(
        token_BS=jnp.zeros((B, S), jnp.int32),
        position_BS=jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32)[None], (B, S)),
        segment_BS=jnp.ones((B, S), jnp.int32),
        row_B=jnp.arange(B, dtype=jnp.int32),
    )
    context = Context(key=key, train=True, capacity_factor=1.25)

    def loss_of(layer):
        y, report = layer(X, batch, context, router.state(E), jnp.int32(0))
        sums = jax.tree.map(lambda leaf: leaf[None], report.sums)
        return jnp.sum(jnp.sin(y)) + scoped_loss(LOSSES, router, sums, SCOPES, 1), report

    (loss, report), grads = nnx.jit(nnx.value_and_grad(loss_of, has_aux=True))(theirs)
    my_loss, my_report, my_grads = value_and_grads(mine, X, key=key, train=True)
    np.testing.assert_allclose(my_loss, loss, rtol=1e-6)
    close(my_grads["layer"], nnx.to_pure_dict(grads), 1e-6)
    np.testing.assert_array_equal(my_report.sums.wanted_E, report.sums.wanted_E.sum(0))
    dropped = my_report.metrics()["moe/dropped_fraction"]
    wanted, lost = report.traffic.wanted_K.sum(), report.traffic.dropped_K.sum()
    np.testing.assert_allclose(dropped, lost / wanted, rtol=1e-6)


@pytest.mark.parametrize("devices", [None, (2, 4)], ids=["no mesh", "mesh"])
def test_a_scalar_of_the_router_follows_a_schedule_without_a_new_program(devices):
    """As a layer whose router was made with that value."""
    traces, mesh, axes = [], None, None
    if devices is not None:
        mesh = jax.make_mesh(devices, ("batch", "model"), axis_types=(AxisType.Auto,) * 2)
        axes = moe_jax.MeshAxes(rows=("batch",), expert="model")
    key = jax.random.key(4)
    made = moe_jax.routers.VMoE(k=2)
    layer = of(router=made, mesh=mesh, axes=axes)

    @nnx.jit
    def run(layer, router):
        traces.append(1)
        y, report = layer(X, key=key, train=True, router=router)
        return y, report

    run(layer, layer.router)  # lays the parameters out over the mesh
    seen, before = [], len(traces)
    for noise_std in (0.5, 2.0, 0.0):
        router = dataclasses.replace(layer.router, noise_std=noise_std)
        y, report = run(layer, router)
        wanted, theirs = of(router=router)(X, key=key, train=True)
        np.testing.assert_allclose(y, wanted, rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(report.sums.wanted_E, theirs.sums.wanted_E)
        np.testing.assert_allclose(report.loss, theirs.loss, rtol=2e-5)
        seen.append(np.asarray(y))
    assert len(traces) - before <= 2  # at most one for both values, one for 0, which is static
    assert np.abs(seen[0] - seen[1]).max() > 0.1


MESHES = {
    "rows and experts": ((2, 4), dict(rows=("batch",), expert="model")),
    "experts alone": ((1, 8), dict(expert="model")),
    "rows alone": ((8, 1), dict(rows=("batch",))),
    "width of experts": ((4, 2), dict(rows=("batch",), tensor="model")),
    "gathered weights": ((2, 4), dict(rows=("batch",), fsdp="model")),
    "copies": ((4, 2), dict(rows=("batch",))),
}


KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
GRID = [(name, kind) for name in MESHES for kind in KINDS]


@pytest.mark.grid
@pytest.mark.parametrize(
    ("name", "kind"),
    some(GRID, [("rows and experts", "explicit"), ("width of experts", "auto")], several=True),
)
def test_no_mesh_of_the_user_changes_a_number(name, kind):
    shape, named = MESHES[name]
    options: dict = dict(router=moe_jax.routers.Mixtral(k=2), capacity_factor=1.0, shared=1)
    loss, report, grads = value_and_grads(of(**options), X, train=True)
    mesh = jax.make_mesh(shape, ("batch", "model"), axis_types=(KINDS[kind],) * 2)
    layer = of(**options, axes=moe_jax.MeshAxes(**named))
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("batch")))
        there, report_there, grads_there = value_and_grads(layer, x, train=True)
        y = jax.eval_shape(lambda layer, x: layer(x)[0], layer, x)
        assert kind == "auto" or y.sharding.spec == jax.typeof(x).sharding.spec
    np.testing.assert_allclose(there, loss, rtol=2e-6)
    np.testing.assert_allclose(report_there.loss, report.loss, rtol=2e-6)
    np.testing.assert_array_equal(report_there.sums.wanted_E, report.sums.wanted_E)
    close(grads, grads_there)


def test_metadata_of_a_whole_model_tell_where_its_parameters_lie():
    """What `nnx.get_partition_spec` says of a model of a run is how its arrays are placed."""
    program = program_of("fsdp 2, expert 2, tensor 2")
    network = program.network
    message = nnx.get_partition_spec(nnx.state(network.module(network.abstract), nnx.Param))
    message = nnx.to_pure_dict(message)
    placed = jax.tree.map(lambda sharding: sharding.spec, network.shardings)
    assert jax.tree.leaves(message) == jax.tree.leaves(placed)
    experts = message["layers"]["00"]["moe"]["experts"]
    assert experts["w_up"] == PartitionSpec(None, "expert", "fsdp", "tensor")


def test_the_mesh_may_be_given():
    explicit = jax.make_mesh((2, 4), ("data", "expert"), axis_types=(AxisType.Explicit,) * 2)
    x = jax.device_put(X, NamedSharding(explicit, PartitionSpec("data")))
    typed, _ = call(of(mesh=explicit), x)
    mesh = make_mesh(MeshConfig(data=2, expert=4), jax.devices())
    y, report = call(of(mesh=mesh), X)
    np.testing.assert_allclose(typed, y, rtol=1e-5, atol=1e-6)
    alone, report_alone = call(of(), X)
    np.testing.assert_allclose(y, alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(report.sums.wanted_E, report_alone.sums.wanted_E)


@pytest.mark.parametrize("shape", [(5, D), (2, 3, 4, D)])
def test_any_leading_axes(shape):
    x = jax.random.normal(jax.random.key(1), shape)
    y, _ = call(of(), x)
    flat, _ = call(of(), x.reshape(1, -1, D))
    assert y.shape == shape
    np.testing.assert_allclose(y.reshape(-1, D), flat[0], rtol=1e-5, atol=1e-6)


def test_padding_is_not_counted_and_gets_nothing():
    valid = jnp.arange(12)[None] < jnp.arange(8)[:, None] + 3
    run = nnx.jit(lambda layer, x, valid: layer(x, valid=valid, routes=True))
    y, report = run(of(), X, valid)
    assert int(report.sums.valid) == int(valid.sum())
    assert not np.any(np.asarray(y)[~np.asarray(valid)])
    assert np.all(np.asarray(report.routes.expert_BSK)[~np.asarray(valid)] == E)


def test_it_works_under_vmap_and_in_a_shard_map_of_the_user():
    layer = of()
    together, _ = call(layer, X)
    one_by_one = nnx.jit(lambda layer, x: jax.vmap(lambda x: layer(x)[0])(x))(layer, X)
    np.testing.assert_allclose(one_by_one, together, rtol=1e-5, atol=1e-6)
    mesh = jax.make_mesh((8,), ("mine",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("mine")
    with jax.set_mesh(mesh):
        inner = jax.shard_map(lambda x: layer(x)[0], in_specs=spec, out_specs=spec, check_vma=False)
        mapped = jax.jit(inner)(X)
    np.testing.assert_allclose(mapped, together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shared": 1, "latent_dim": 8},
        {"router": moe_jax.routers.LossFree(k=2), "expert": moe_jax.experts.LowRank(rank=4)},
    ],
    ids=["usual", "surrounded", "stateful"],
)
def test_its_graph_is_a_static_argument(settings):
    """As functional programs of Flax pass it: equal layers have one compilation."""
    compiled = []

    def run(graph, state, x):
        compiled.append(graph)
        return nnx.merge(graph, state)(x)[0]

    jitted = jax.jit(run, static_argnames="graph")
    x = jax.random.normal(jax.random.key(0), (2, 8, D))
    outputs = [jitted(*nnx.split(of(**settings)), x) for _ in range(2)]
    assert len(compiled) == 1
    np.testing.assert_array_equal(outputs[0], of(**settings)(x)[0])


def test_a_state_is_taken_on_as_the_router_says():
    layer = of(router=moe_jax.routers.LossFree(k=2))
    before = {name: jnp.asarray(v[...]) for name, v in layer.state.items()}
    _, report = nnx.jit(lambda layer, x: layer(x, train=True))(layer, X)
    layer.update(report)
    wanted = layer.config.router.update(before, report.sums)
    for name, value in wanted.items():
        np.testing.assert_array_equal(layer.state[name][...], value)
        assert not np.array_equal(value, before[name])
    close(moe_jax.updated(report), wanted, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(router=moe_jax.routers.Mixtral(k=9)), "chooses 9 of experts = 8"),
        (dict(capacity_factor=-1.0), "capacity_factor = -1.0: must be above 0"),
        (dict(layout="heap"), "layout = 'heap': must be one of"),
        (dict(ensemble=2), "belongs to a whole model"),
    ],
)
def test_wrong_settings_are_told(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        of(**wrong)


def test_wrong_calls_are_told():
    with pytest.raises(ValueError, match=r"the layer takes \(..., tokens, 16\)"):
        of()(jnp.ones((3, 5)))
    with pytest.raises(ValueError, match="give ids="):
        of(router=moe_jax.routers.Hash(k=1))(X)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"axes=moe_jax.MeshAxes\(rows"):
        of()(X)
    axes = moe_jax.MeshAxes(rows=("a",), expert="b")
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="12 rows are not divisible over"):
        of(axes=axes)(jnp.ones((12, 4, D)))
    six = moe_jax.MoE(D, experts=6, hidden=F, rngs=nnx.Rngs(0), axes=axes)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="6 experts are not divisible over"):
        six(jnp.ones((8, 4, D)))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="axes names c; the mesh has a, b"):
        of(axes=moe_jax.MeshAxes(rows=("c",)))(X)


def test_only_public_names_are_promised():
    assert set(dir(moe_jax)) == set(moe_jax.__all__)
    assert all(getattr(moe_jax, name) is not None for name in moe_jax.__all__)
    assert MoEConfig is not None
