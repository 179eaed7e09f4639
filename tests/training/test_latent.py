"""Latent experts on meshes: the numbers of one device, the bytes, the estimate, the rules."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from moe_jax.models.network import flat
from moe_jax.planning.estimate import estimate
from moe_jax.training.optimizer import is_muon
from moe_jax.training.parameters import group_of
from moe_jax.training.rules import cross_check
from tests.drawn import some
from tests.training.experiments import DEVICES, experiment
from tests.training.programs import MESHES as COMPILED
from tests.training.programs import D, exchanges, moves_no_weight, program_of, sent
from tests.training.steps import MESHES, MIXTRAL, gap, make, raw_batch

LATENT = dataclasses.replace(MIXTRAL, latent_dim=8, num_shared=1)


def one_step(**options):
    step, state = make(LATENT, optimizer=optax.sgd(1.0), **options)
    after, result = jax.jit(step.train)(state, raw_batch(), {})
    return jax.device_get((after.params, result.loss))


@pytest.fixture(scope="module")
def on_one_device():
    return one_step()


@pytest.mark.grid
@pytest.mark.parametrize(
    "mesh", some(["2x4", "fsdp tensor expert", "sequence"], ["fsdp tensor expert"])
)
def test_mesh(mesh, on_one_device):
    params, loss = one_step(mesh=MESHES[mesh])
    np.testing.assert_allclose(loss, on_one_device[1], rtol=1e-5)
    assert gap(params, on_one_device[0]) < 2e-5
    latent = params["layers"]["00"]["moe"]["latent"]
    assert {name: w.shape[1:] for name, w in latent.items()} == {"down": (16, 8), "up": (8, 16)}


@pytest.mark.grid
@pytest.mark.parametrize(
    "mesh", some(["data 2, expert 4", "fsdp 2, expert 2, tensor 2"], ["fsdp 2, expert 2, tensor 2"])
)
def test_bytes_shrink_by_the_latent_width(mesh):
    """Every exchange of rows over `expert` has L / D of its bytes; estimate and program agree."""
    L = D // 2
    (plain,), (latent,) = exchanges(sent(mesh)).items(), exchanges(sent(mesh, latent_dim=L)).items()
    assert latent == (plain[0] * L // D, plain[1])
    moves_no_weight(c for c in sent(mesh, latent_dim=L) if c.op == "all-to-all")
    found = estimate(program_of(mesh, latent_dim=L).experiment, 8)
    (message,) = (t.bytes_sent for t in found.traffic if t.what == "tokens to experts")
    program = sent(mesh, latent_dim=L)
    over_expert = sum(
        c.bytes_sent * c.times
        for c in program
        if c.axes == {"expert"} and c.op == "all-to-all" and c.arrays[0][0] == "f32"
    )
    assert message == over_expert


@pytest.mark.grid
def test_columns_over_tensor_are_those_of_the_formula():
    """Gathers and reduce-scatters over `tensor`, but for the indices of the head."""
    mesh, L = "fsdp 2, expert 2, tensor 2", D // 2
    found = estimate(program_of(mesh, latent_dim=L).experiment, 8)
    (message,) = (t.bytes_sent for t in found.traffic if t.what == "columns")
    moved = sum(
        c.bytes_sent * c.times
        for c in sent(mesh, latent_dim=L)
        if c.axes == {"tensor"}
        and c.op in ("all-gather", "reduce-scatter")
        and c.arrays[0][1][-1] in (L, D, L // 2)
    )
    assert moved == message


@pytest.mark.grid
@pytest.mark.parametrize("mesh", ["data 2, expert 4", "fsdp 2, expert 2, tensor 2"])
def test_state_is_exact_and_nothing_is_replicated(mesh):
    program, sizes = program_of(mesh, latent_dim=8), COMPILED[mesh]
    params = program.abstract_state.params
    placed = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(params)
    )
    assert estimate(program.experiment, 8).parameters == placed
    for leaf in params["layers"]["00"]["moe"]["latent"].values():
        share = leaf.size // math.prod(leaf.sharding.shard_shape(leaf.shape))
        assert share == sizes.get("fsdp", 1) * sizes.get("tensor", 1)


def test_optimizer_takes_the_projections_for_matrices_of_the_rest():
    step, _ = make(LATENT, optimizer=optax.sgd(1.0))
    forms = flat(step.network.forms)
    for name, sizes in (("down", (16, 8)), ("up", (8, 16))):
        path = f"layers/00/moe/latent/{name}"
        assert group_of(path) == "rest" and is_muon(path, forms[path])
        assert forms[path].sizes((2, *sizes)) == sizes


def test_rules():
    """L must be divisible as D is without it; D by fsdp alone."""
    assert cross_check(experiment(moe__latent_dim=16), DEVICES) == []
    (problem,) = cross_check(experiment(moe__latent_dim=9), DEVICES)
    assert problem.path == "moe.latent_dim"
    assert "lcm(mesh.fsdp, mesh.tensor) = 2 (9 = 4 x 2 + 1)" in str(problem)
    found = cross_check(experiment(moe__latent_dim=9, model__model_dim=33), DEVICES)
    assert [p.path for p in found] == ["moe.latent_dim", "model.model_dim"]
    assert "mesh.fsdp" in str(found[1]) and "lcm" not in str(found[1])
    assert cross_check(experiment(moe__latent_dim=9, moe__every=0), DEVICES) == []
    assert list(dataclasses.replace(LATENT, latent_dim=0).check()) == [
        ("latent_dim", "must be at least 1")
    ]
