"""Several gates over one pool of experts: the formula in float64, and what holds for each gate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import moe_jax
from moe_jax.routing.losses import LoadBalance, RouterZ, RoutingLosses
from tests.drawn import some

D, E, F, G = 12, 8, 10, 3
LOSSES = RoutingLosses(
    load_balance=LoadBalance(coefficient=0.1), router_z=RouterZ(coefficient=0.01)
)


def layer_of(gates=G, router=None, mesh=None, seed=1, **settings):
    return moe_jax.MoE(
        D, experts=E, hidden=F, gates=gates, losses=LOSSES, mesh=mesh,
        router=moe_jax.routers.Mixtral(k=2) if router is None else router,
        rngs=nnx.Rngs(params=seed), **settings,
    )  # fmt: skip


def single(layer, gate):
    """A layer of one gate with the experts and the parameters of one of them."""
    settings = {name: getattr(layer.config, name) for name in ("capacity_factor", "layout")}
    one = layer_of(1, layer.config.router, **settings)
    for name in one.layer.experts.names:
        getattr(one.layer.experts, name)[...] = getattr(layer.layer.experts, name)[...]
    for name in one.layer.router.names:
        getattr(one.layer.router, name)[...] = getattr(layer.layer.router, name)[gate]
    for name, variable in one.state.items():
        variable[...] = layer.state[name][gate]
    return one


def tokens(rows=4, S=16, seed=0):
    return jax.random.normal(jax.random.key(seed), (rows, S, D))


def test_the_dense_mixture_is_the_papers_formula():
    """y^k = sum_i softmax(x W_k)_i f_i(x), Ma et al. (KDD 2018), eq. 6 and 7."""
    layer, x = layer_of(router=moe_jax.routers.DenseMixture()), tokens()
    found, _ = layer(x)
    w = {name: np.asarray(getattr(layer.layer.experts, name)[...], np.float64)
         for name in layer.layer.experts.names}  # fmt: skip
    kernel = np.asarray(layer.layer.router.kernel[...], np.float64)
    assert found.shape == (G, *x.shape) and kernel.shape == (G, D, E)
    x = np.asarray(x, np.float64)
    gated = np.einsum("bsd,edf->bsef", x, w["w_gate"])
    hidden = gated / (1 + np.exp(-gated)) * np.einsum("bsd,edf->bsef", x, w["w_up"])
    experts = np.einsum("bsef,efd->bsed", hidden, w["w_down"])
    logits = np.einsum("bsd,kde->kbse", x, kernel)
    power = np.exp(logits - logits.max(axis=-1, keepdims=True))
    gate = power / power.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        found, np.einsum("kbse,bsed->kbsd", gate, experts), rtol=2e-4, atol=2e-5
    )


def value_and_grads(layer, x, **options):
    def loss_of(layer, x):
        y, report = layer(x, **options)
        weights = jnp.arange(1, y.size + 1, dtype=jnp.float32).reshape(y.shape) / y.size
        return jnp.sum(jnp.sin(y) * weights) + report.loss, report

    (loss, report), grads = nnx.jit(nnx.value_and_grad(loss_of, has_aux=True))(layer, x)
    return loss, report, nnx.to_pure_dict(grads)


def test_one_gate_is_the_ordinary_layer_bit_for_bit():
    x = tokens()
    plain = moe_jax.MoE(
        D, experts=E, hidden=F, losses=LOSSES, router=moe_jax.routers.Mixtral(k=2),
        rngs=nnx.Rngs(params=1),
    )  # fmt: skip
    one, other = value_and_grads(layer_of(1), x), value_and_grads(plain, x)
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    jax.tree.map(np.testing.assert_array_equal, one[2], other[2])
    assert one[1].metrics().keys() == other[1].metrics().keys()


ROUTERS = {
    "mixtral": moe_jax.routers.Mixtral(k=2),
    "dense": moe_jax.routers.DenseMixture(),
    "switch": moe_jax.routers.Switch(),
    "expert choice": moe_jax.routers.ExpertChoice(),
    "loss free": moe_jax.routers.LossFree(k=2),
    "soft": moe_jax.routers.SoftMoE(slots_per_expert=2),
    "moe++": moe_jax.routers.MoEPlusPlus(k=2),
}


# (router, capacity factor), without a factor where the router has a capacity of its own.
CASES = [
    (name, capacity)
    for name, router in ROUTERS.items()
    for capacity in ((None,) if router.own_capacity or router.soft else (None, 0.7))
]
USUAL = [case for case in CASES if case[0] in ("mixtral", "loss free", "moe++")]


@pytest.mark.parametrize(("name", "capacity"), some(CASES, USUAL, several=True))
def test_each_gate_is_a_layer_of_its_own(name, capacity):
    """Outputs, drops, losses, metrics and the next state are those of an ordinary layer with the
    gate's parameters and the same experts."""
    router = ROUTERS[name]
    settings = {"layout": "slots_einsum"} if router.soft else {}
    layer = layer_of(router=router, capacity_factor=capacity, **settings)
    x = tokens()
    y, report = layer(x, train=True, routes=True)
    losses, found = 0.0, report.metrics()
    for gate in range(G):
        wanted_y, wanted = single(layer, gate)(x, train=True, routes=True)
        np.testing.assert_allclose(y[gate], wanted_y, rtol=1e-5, atol=1e-6)
        losses += float(wanted.loss)
        for key, value in wanted.metrics().items():
            of_gate = found[key.replace("moe/", f"moe/gate_{gate}/", 1)]
            np.testing.assert_allclose(of_gate, value, rtol=1e-5, atol=1e-6, err_msg=key)
        np.testing.assert_array_equal(report.routes.expert_BSK[gate], wanted.routes.expert_BSK)
        for state, value in moe_jax.updated(wanted).items():
            np.testing.assert_array_equal(moe_jax.updated(report)[state][gate], value)
    assert float(report.loss) == pytest.approx(losses, 1e-5)
    assert not np.allclose(y[0], y[1]) and not np.allclose(y[1], y[2])


MESHES = {"expert=4": {"data": 2, "expert": 4}, "expert=2": {"data": 4, "expert": 2}}


@pytest.mark.parametrize("name", some(MESHES, ["expert=2"]))
@pytest.mark.parametrize("capacity", some([None, 0.7], [0.7]))
def test_no_mesh_changes_a_number(name, capacity):
    sizes = MESHES[name]
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    x = tokens(rows=8)
    plain = value_and_grads(layer_of(capacity_factor=capacity), x, train=True)
    split = value_and_grads(layer_of(capacity_factor=capacity, mesh=mesh), x, train=True)
    np.testing.assert_allclose(split[0], plain[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), split[2], plain[2]
    )
    for key, value in plain[1].metrics().items():
        np.testing.assert_allclose(split[1].metrics()[key], value, rtol=1e-5, atol=1e-6)


def test_noise_is_each_gates_own():
    router = moe_jax.routers.NoisyTopK(k=1)
    layer = layer_of(router=router)
    for gate in range(1, G):  # the same parameters: only noise tells the gates apart
        for name in layer.layer.router.names:
            value = getattr(layer.layer.router, name)
            value[...] = value[...].at[gate].set(value[0])
    x = tokens()
    quiet, _ = layer(x)
    np.testing.assert_array_equal(quiet[0], quiet[1])
    loud, _ = layer(x, train=True, key=jax.random.key(0))
    again, _ = layer(x, train=True, key=jax.random.key(0))
    np.testing.assert_array_equal(loud, again)
    assert np.abs(np.asarray(loud[0] - loud[1])).max() > 1e-3


def test_parameters_say_what_they_are():
    """One matrix for each gate, drawn apart; the optimizer sees as many."""
    layer = layer_of()
    kernel = layer.layer.router.kernel
    form = kernel.get_metadata("form")
    assert form.axes(3) == ((1,), (2,)) and form.sizes(kernel[...].shape) == (D, E)
    assert not np.allclose(kernel[0], kernel[1])
    with pytest.raises(ValueError, match="gates = 0: must be at least 1"):
        layer_of(0)
    with pytest.raises(ValueError, match="must be 1 in an ensemble"):
        layer_of(2, ensemble=2)
    cost = layer.config.cost(D, "swiglu", 16)
    one = layer_of(1).config.cost(D, "swiglu", 16)
    assert cost.parameters == one.parameters + (G - 1) * D * E
    assert cost.routed == G * one.routed
