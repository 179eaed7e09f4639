"""Experts of each gate's own, and gates that see streams: PLE's level in float64, on any mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import moe_jax
from moe_jax.nn.context import Context, TokenBatch
from moe_jax.nn.gates import Gates
from moe_jax.nn.moe_layer import MoEConfig, MoELayer
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing import DenseMixture, Mixtral
from tests.drawn import some

D, F, E, K, OWN = 10, 6, 8, 3, 2
ROWS = 16


def level(router, devices=None, **settings):
    """Of one token a row, four rows a group; without a mesh, or on one."""
    config = MoEConfig(
        num_experts=E, expert_dim=F, router=router, group_size=4, receive_factor=8.0,
        **{"gates": K, "own_experts": OWN, **settings},
    )  # fmt: skip
    mesh = None if devices is None else make_mesh(devices, jax.devices())
    return MoELayer(
        config, model_dim=D, activation="relu", init_scale=1.0, mesh=mesh, rngs=nnx.Rngs(params=3)
    )


def batch(valid=None, rows=ROWS):
    ones = jnp.ones((rows, 1), jnp.int32)
    return TokenBatch(
        token_BS=None, position_BS=0 * ones, row_B=jnp.arange(rows, dtype=jnp.int32),
        segment_BS=ones if valid is None else jnp.asarray(valid, jnp.int32)[:, None],
    )  # fmt: skip


def streams(rows=ROWS):
    return jax.random.normal(jax.random.key(0), (K, rows, 1, D))


def run(layer, x, rows=None, asked=None):
    rows = batch() if rows is None else rows
    return layer(x, rows, Context(), {}, jnp.int32(0), asked_K=asked)


def expected(layer, x, k=None):
    """y^k = sum_e g^k(x^k)_e f_e(x^owner(e)), the gate over what it may choose."""
    x = np.asarray(x, np.float64)[:, :, 0]
    up, down = (
        np.asarray(getattr(layer.experts, name)[...], np.float64) for name in ("w_up", "w_down")
    )
    kernel = np.asarray(layer.router.kernel[...], np.float64)
    owner = [0, 0, 1, 1, 2, 2, 2, 2]
    outputs = np.stack([np.maximum(x[owner[e]] @ up[e], 0) @ down[e] for e in range(E)])
    found = []
    for gate in range(K):
        logits = x[gate] @ kernel[gate]
        for e in range(E):
            if gate != K - 1 and owner[e] not in (gate, K - 1):
                logits[:, e] = -np.inf
        if k is not None:
            least = np.sort(logits, axis=1)[:, -k][:, None]
            logits = np.where(logits >= least, logits, -np.inf)
        power = np.exp(logits - logits.max(axis=1, keepdims=True))
        weight = power / power.sum(axis=1, keepdims=True)
        found.append(np.einsum("be,ebd->bd", weight, outputs))
    return np.stack(found)[:, :, None]


LAYOUTS = ("rows", "slots_scatter", "slots_einsum", "dense")


@pytest.mark.parametrize("layout", some(LAYOUTS, ["rows", "dense"]))
@pytest.mark.parametrize(("router", "k"), [(DenseMixture(), None), (Mixtral(k=2), 2)])
def test_a_level_is_the_papers_formula(router, k, layout):
    """Tang et al. (RecSys 2020), eq. 1 to 6."""
    layer, x = level(router, layout=layout), streams()
    y, report = run(layer, x)
    np.testing.assert_allclose(y, expected(layer, x, k), rtol=2e-4, atol=2e-5)
    wanted = np.asarray(report.sums.wanted_E).sum(axis=1)
    assert (wanted[0, 2:4] == 0).all() and (wanted[1, :2] == 0).all()
    assert wanted[2].sum() == ROWS * (k or E) and wanted[0].sum() == ROWS * (k or 6)


def test_all_gates_see_one_input_at_the_first_level():
    layer, x = level(DenseMixture()), streams()[0]
    y, _ = run(layer, x)
    np.testing.assert_allclose(y, run(layer, jnp.stack([x] * K))[0], rtol=1e-5, atol=1e-6)


def test_without_own_experts_each_gate_sends_its_stream():
    """As K ordinary layers with one gate each and the same experts."""
    layer, x = level(Mixtral(k=2), own_experts=0), streams()
    y, _ = run(layer, x)
    for gate in range(K):
        one = level(Mixtral(k=2), own_experts=0, gates=1)
        one.router.kernel[...] = layer.router.kernel[...][gate]
        np.testing.assert_allclose(y[gate], run(one, x[gate])[0], rtol=1e-5, atol=1e-6)


def test_what_is_not_asked_chooses_nothing_and_padding_neither():
    layer, x = level(DenseMixture()), streams()
    asked = jnp.asarray([True, True, False])
    y, report = run(layer, x, asked=asked)
    whole, _ = run(layer, x)
    np.testing.assert_allclose(y[:2], whole[:2], rtol=1e-6)
    np.testing.assert_array_equal(y[2], 0)
    assert np.asarray(report.sums.valid).sum(axis=1).tolist() == [ROWS, ROWS, 0]
    valid = np.arange(ROWS) % 3 > 0
    y, report = run(layer, x, batch(valid))
    np.testing.assert_array_equal(y[:, ~valid], 0)
    np.testing.assert_allclose(y[:, valid], whole[:, valid], rtol=1e-5, atol=1e-6)
    assert np.asarray(report.sums.valid).sum(axis=1).tolist() == [valid.sum()] * K


MESHES = {
    "expert=4": MeshConfig(data=2, expert=4),
    "expert=2": MeshConfig(data=4, expert=2),
    "fsdp, tensor": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
}


@pytest.mark.parametrize("name", some(MESHES, ["expert=2"]))
@pytest.mark.parametrize("transport", some(("all_to_all", "gather"), ["all_to_all"]))
def test_no_mesh_changes_a_number(name, transport):
    def value(layer, x):
        y, report = run(layer, x, batch(rows=32))
        weights = jnp.arange(1, y.size + 1, dtype=jnp.float32).reshape(y.shape) / y.size
        return jnp.sum(jnp.sin(y) * weights), report.sums.wanted_E

    found = []
    for mesh in (None, MESHES[name]):
        layer = level(Mixtral(k=2), mesh, transport="local" if mesh is None else transport)
        (loss, wanted), grads = nnx.jit(nnx.value_and_grad(value, has_aux=True))(layer, streams(32))
        found.append((loss, np.asarray(wanted).sum(axis=1), nnx.to_pure_dict(grads)))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)
    np.testing.assert_array_equal(found[1][1], found[0][1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found[1][2], found[0][2],
    )  # fmt: skip


def test_figures_are_over_what_a_gate_may_choose():
    layer = moe_jax.MoE(
        D, experts=E, hidden=F, gates=K, own_experts=OWN, group_size=4, rngs=nnx.Rngs(0),
        router=DenseMixture(),
    )  # fmt: skip
    _, report = layer(streams()[0])
    found = report.metrics()
    for gate in range(K):
        assert found[f"moe/gate_{gate}/dead_experts"] == 0
        assert found[f"moe/gate_{gate}/max_violation"] == 0
        assert found[f"moe/gate_{gate}/experts_per_token"] == (E if gate == K - 1 else 6)
        assert found[f"moe/gate_{gate}/load_balance_loss"] == pytest.approx(1, 1e-5)
    assert float(report.loss) == pytest.approx(0.01 * K, 1e-4)


def test_who_sees_what():
    gates = Gates(number=K, own=OWN)
    assert gates.owner(E).tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
    assert gates.allowed(E).sum(axis=1).tolist() == [6, 6, 8]
    assert Gates(number=K).allowed(E).all() and gates.asked(7, E) == 6 + 6 + 7
    cost = level(DenseMixture()).config.cost(D, "relu", 4)
    assert cost.routed == 20 * 2 * D * F and cost.parameters == 8 * 2 * D * F + K * D * E


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"own_experts": 4}, "own_experts = 4: must leave shared ones"),
        ({"capacity_factor": 1.0}, "capacity_factor = 1.0: must be none"),
        ({"router": moe_jax.routers.MoEPlusPlus()}, "cannot choose among some of the experts"),
    ],
)
def test_what_does_not_go_together_is_told(settings, message):
    with pytest.raises(ValueError, match=message):
        moe_jax.MoE(
            D, experts=E, hidden=F, gates=K, rngs=nnx.Rngs(0), **{"own_experts": OWN, **settings}
        )
