"""Soft MoE against float64 numpy: its maps, its statistics, a whole layer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from moe_jax.dispatch import sharded_dispatch
from moe_jax.ops.expert_ffn import ExpertWeights
from moe_jax.parallel.mesh import AXES
from moe_jax.routing import SoftMoE
from moe_jax.routing.balance import routing_metrics
from moe_jax.routing.plan import plan_traffic
from tests.routing.any_router import D, E, T, inputs, parameters

C = 3


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def maps(batch, params, normalize=True):
    """Dispatch and combine of the valid tokens, by the paper's algorithm 1."""
    x = np.asarray(batch.x_TD, np.float64)[np.asarray(batch.valid_T)]
    phi = np.asarray(params["phi"], np.float64).reshape(D, -1)
    if normalize:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        phi = float(params["scale"][0]) * phi / np.linalg.norm(phi, axis=0, keepdims=True)
    logits = x @ phi
    shape = (len(x), E, -1)
    return logits, softmax(logits, 0).reshape(shape), softmax(logits, 1).reshape(shape)


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("normalize", [True, False])
def test_maps_against_numpy(normalize, padding):
    router = SoftMoE(slots_per_expert=C, normalize=normalize)
    params, batch = parameters(router), inputs(padding=padding)
    if normalize:
        params["scale"] = jnp.full((1,), 3.0)
    plan, sums = router.route(params, {}, batch)
    logits, dispatch, combine = maps(batch, params, normalize)
    valid = T - padding
    for found, expected in ((plan.dispatch_TEC, dispatch), (plan.combine_TEC, combine)):
        np.testing.assert_allclose(found[:valid], expected, rtol=2e-5, atol=1e-7)
        assert np.all(np.asarray(found)[valid:] == 0)
    prob = combine.sum(2)
    lse = np.log(np.exp(logits).sum(1))
    expected = {
        "wanted_E": [C] * E,
        "first_E": np.bincount(prob.argmax(1), minlength=E),
        "prob_E": prob.sum(0),
        "importance_E": prob.sum(0),
        "z": np.sum(lse**2),
        "entropy": -np.sum(prob * np.log(prob)),
        "valid": valid,
        "largest_logit": np.abs(logits).max(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(sums, name), value, rtol=2e-5, err_msg=name)


def test_the_norm_of_a_token_has_no_say():
    """Section 2.3: only directions and the scale matter."""
    router = SoftMoE(slots_per_expert=C)
    params, batch = parameters(router), inputs(train=False)
    longer = dataclasses.replace(batch, x_TD=100 * batch.x_TD)
    (one, _), (two, _) = (router.route(params, {}, x) for x in (batch, longer))
    np.testing.assert_allclose(one.dispatch_TEC, two.dispatch_TEC, rtol=1e-4)
    still = dataclasses.replace(batch, x_TD=jnp.zeros_like(batch.x_TD))

    def combined(x_TD):
        zero = dataclasses.replace(still, x_TD=x_TD)
        return jnp.sum(router.route(params, {}, zero)[0].combine_TEC[:, 0])

    assert np.all(np.isfinite(jax.grad(combined)(still.x_TD)))


def test_load_metrics_say_balanced():
    router = SoftMoE(slots_per_expert=C)
    plan, sums = router.route(parameters(router), {}, inputs())
    metrics = routing_metrics(sums, plan_traffic(plan, inputs().valid_T))
    assert metrics["load_balance_loss"] == pytest.approx(1)
    assert metrics["max_violation"] == metrics["dead_experts"] == metrics["dropped_fraction"] == 0
    assert metrics["capacity_utilization"] == 1
    assert metrics["experts_per_token"] == router.experts_per_token(E, T) == E * C / T


def layer(transport, layout, sizes):
    """A jitted (params, x_GTD, w) -> y of the whole layer on a mesh."""
    router = SoftMoE(slots_per_expert=C)
    shape = [sizes.get(axis, 1) for axis in AXES]
    devices = np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 5)
    tokens = PartitionSpec(("data", "fsdp", "expert", "sequence"))
    by_expert = PartitionSpec("expert", "fsdp", "tensor"), PartitionSpec("expert", "tensor", "fsdp")

    def shard(params, x_gTD, w_up, w_down):
        def plan(x_TD):
            batch = dataclasses.replace(inputs(padding=2), x_TD=x_TD)
            return router.route(params, {}, batch)[0]

        experts = ExpertWeights(
            w_gate_EDF=None,
            w_up_EDF=w_up,
            w_down_EFD=w_down,
            activation="relu",
            backend="reference",
        )
        return sharded_dispatch(
            x_gTD,
            jax.vmap(plan)(x_gTD),
            experts,
            layout=layout,
            transport=transport,
            receive_factor=1.0,
        )[0]

    specs = (PartitionSpec(), tokens, *by_expert)
    return jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=tokens, check_vma=False)


def arrays():
    G, F = 8, 10
    keys = jax.random.split(jax.random.key(0), 3)
    return (
        parameters(SoftMoE(slots_per_expert=C)),
        jax.random.normal(keys[0], (G, T, D)),
        jax.random.normal(keys[1], (E, D, F)),
        jax.random.normal(keys[2], (E, F, D)),
    )


def test_the_whole_layer_against_numpy():
    params, x, w_up, w_down = arrays()
    found = layer("local", "dense", {})(params, x, w_up, w_down)
    for g, x_TD in enumerate(np.asarray(x, np.float64)):
        batch = dataclasses.replace(inputs(padding=2), x_TD=x[g])
        _, dispatch, combine = maps(batch, params)
        slots = np.einsum("tec,td->ecd", dispatch, x_TD[: T - 2])
        hidden = np.maximum(np.einsum("ecd,edf->ecf", slots, np.asarray(w_up, np.float64)), 0)
        out = np.einsum("ecf,efd->ecd", hidden, np.asarray(w_down, np.float64))
        y = np.einsum("tec,ecd->td", combine, out)
        np.testing.assert_allclose(found[g, : T - 2], y, rtol=1e-4, atol=1e-4)
        assert np.all(np.asarray(found[g, T - 2 :]) == 0)


@pytest.mark.parametrize("transport", ["all_to_all", "gather"])
def test_values_and_gradients_on_a_mesh(transport):
    def loss(run):
        slope = jnp.arange(1, D + 1, dtype=jnp.float32)[None, None]
        return jax.jit(
            jax.value_and_grad(
                lambda *a: jnp.sum(jnp.square(run(*a)) * slope), argnums=(0, 1, 2, 3)
            )
        )

    expected = loss(layer("local", "dense", {}))(*arrays())
    found = loss(layer(transport, "slots_einsum", {"data": 2, "expert": 2, "tensor": 2}))(*arrays())
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.max(jnp.abs(b))), rtol=0)
