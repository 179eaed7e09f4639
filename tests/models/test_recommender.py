"""The recommender: its formula in float64, what targets share, and who is a row of padding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config.checks import check
from moe_jax.config.errors import ConfigError
from moe_jax.config.overrides import load_config
from moe_jax.models.counts import count
from moe_jax.models.network import Network, flat
from moe_jax.models.recommender import RecommenderConfig
from moe_jax.models.types import IO, RowClass, Targets
from moe_jax.nn.attention import GroupedQuery
from moe_jax.nn.context import Context, TableBatch
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.nn.sharing import Extraction, MultiGate, SharedBottom, Single
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing import DenseMixture, Mixtral
from moe_jax.training.experiment import Experiment
from moe_jax.training.rules import cross_check

CENSUS = Path(__file__).parents[2] / "configs/census.py"
V, C, N, B = 24, 3, 2, 8
NAMES = ("a", "b")
SMALL = RecommenderConfig(
    model_dim=10, mlp_dim=12, activation="relu", embedding_dim=4, tower_dim=6, vocab_size=V,
    num_heads=2, num_kv_heads=2, head_dim=4,
)  # fmt: skip
MOE = MoEConfig(num_experts=6, expert_dim=5, router=DenseMixture(), group_size=4)
SHARING = {
    "single": (Single(), 0, 1),
    "shared_bottom": (SharedBottom(), 0, 1),
    "one gate": (SharedBottom(), 1, 1),
    "mmoe": (MultiGate(), 1, 1),
    "ple": (Extraction(own_experts=2), 1, 2),
}


def io_of(names=NAMES, table=(C, N), **settings):
    return IO(table=table, gives=Targets(binary=names, **settings))


def built(sharing=None, every=1, layers=1, io=None, moe=MOE, seed=0):
    io = io or io_of()
    config = dataclasses.replace(SMALL, sharing=sharing or MultiGate(), num_layers=layers)
    moe = config.gated(dataclasses.replace(moe, every=every), io)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    network = Network(lambda rngs: config.build(moe, io, mesh, rngs=rngs), mesh)
    return config, moe, network, network.init(jax.random.key(seed))


def batch(rows=B, valid=None, seed=0):
    random = np.random.default_rng(seed)
    return TableBatch(
        id_BC=jnp.asarray(random.integers(0, V, (rows, C)), jnp.int32),
        number_BN=jnp.asarray(random.normal(size=(rows, N)), jnp.float32),
        valid_B=jnp.ones(rows, bool) if valid is None else jnp.asarray(valid),
        row_B=jnp.arange(rows, dtype=jnp.int32),
    )


def run(network, params, rows):
    state = network.module(params).router_state()
    return jax.jit(lambda params: network.apply(params, rows, Context(), state))(params)


def values(network, params, rows):
    return np.asarray(run(network, params, rows).predictions.value_BT)


def norm(x):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5)


def test_mmoe_is_the_papers_formula():
    """y^k = tower_k(sum_i softmax(x W_k)_i f_i(x)), Ma et al. (KDD 2018), in float64."""
    _, _, network, params = built()
    rows = batch()
    p = {name: np.asarray(leaf, np.float64) for name, leaf in flat(params).items()}
    level = {name.rpartition("layers/00/")[2]: leaf for name, leaf in p.items()}
    x = np.concatenate(
        [p["table"][np.asarray(rows.id_BC)].reshape(B, -1), np.asarray(rows.number_BN)], axis=1
    )
    x = norm(x @ p["inward"][0] + p["bias"][0])
    up, down = level["moe/experts/w_up"][0], level["moe/experts/w_down"][0]
    outputs = np.einsum("bef,efd->bed", np.maximum(np.einsum("bd,edf->bef", x, up), 0), down)
    found = []
    for k in range(2):
        power = np.exp(x @ level["moe/router/kernel"][0, k])
        y = norm(np.einsum("be,bed->bd", power / power.sum(axis=1, keepdims=True), outputs))
        hidden = np.maximum(y @ p["towers/inward"][k] + p["towers/inward_bias"][k], 0)
        found.append(hidden @ p["towers/outward"][k] + p["towers/outward_bias"][k])
    wanted = np.concatenate(found, axis=1)
    np.testing.assert_allclose(values(network, params, rows), wanted, rtol=1e-4, atol=1e-5)


def test_with_one_target_it_is_the_ordinary_layer_bit_for_bit():
    io = io_of(("a",))
    many, one = (built(sharing, io=io) for sharing in (MultiGate(), SharedBottom()))
    assert many[1] == one[1] and many[1].gates == 1
    jax.tree.map(np.testing.assert_array_equal, many[3], one[3])
    np.testing.assert_array_equal(values(*many[2:], batch()), values(*one[2:], batch()))


@pytest.mark.parametrize("name", SHARING)
def test_parameters_are_as_counted(name):
    sharing, every, layers = SHARING[name]
    for io in (io_of(), io_of(("a",)), io_of(uncertain=True), io_of(table=(0, N))):
        config, moe, network, _ = built(sharing, every, layers, io)
        size = sum(leaf.size for leaf in jax.tree.leaves(network.abstract))
        assert count(config, moe, io).total == size
    assert len(config.gate_names(moe, io_of())) == (moe.gates if moe.gates > 1 else 0)


def test_targets_alone_share_nothing():
    """The gradient of one target moves none of the other's parameters, and each is the network that
    it would be with its target alone."""
    _, _, network, params = built(Single(), 0, 2)
    rows = batch()

    def of_target(params, k):
        return jnp.sum(run(network, params, rows).predictions.value_BT[:, k] ** 2)

    first, second = (jax.grad(of_target)(params, k) for k in range(2))
    used = {name: np.asarray(leaf) for name, leaf in flat(first).items()}
    other = {name: np.asarray(leaf) for name, leaf in flat(second).items()}
    for name in used:
        if "norm" not in name:
            assert not ((used[name] != 0) & (other[name] != 0)).any(), name
            assert (used[name] != 0).any() and (other[name] != 0).any(), name
    for sharing, every, layers in (SHARING["mmoe"], SHARING["ple"], SHARING["shared_bottom"]):
        _, _, network, params = built(sharing, every, layers)
        both = [flat(jax.grad(of_target)(params, k))["table"] for k in range(2)]
        assert ((np.asarray(both[0]) != 0) & (np.asarray(both[1]) != 0)).any()


@pytest.mark.parametrize("name", SHARING)
def test_rows_that_fill_up_a_batch_change_nothing(name):
    sharing, every, layers = SHARING[name]
    moe = dataclasses.replace(MOE, router=Mixtral(k=2))
    _, _, network, params = built(sharing, every, layers, moe=moe)
    valid = np.arange(B) < 5
    whole, part = run(network, params, batch()), run(network, params, batch(valid=valid))
    np.testing.assert_allclose(
        part.predictions.value_BT[:5], whole.predictions.value_BT[:5], rtol=1e-5, atol=1e-6
    )
    if every:
        assert np.asarray(part.report.sums.valid).sum(axis=1).max() == 5
    if name == "ple":  # nothing is asked of the shared gate behind the last level
        counted = np.asarray(whole.report.sums.valid).sum(axis=1)
        assert counted.tolist() == [B, B, B, B, B, 0]


def test_real_targets_come_behind_binary_ones_and_variances_are_learned():
    io = IO(table=(C, N), gives=Targets(binary=("a",), real=("r",), uncertain=True))
    _, _, network, params = built(io=io)
    found = run(network, params, batch()).predictions
    assert found.value_BT.shape == (B, 2) and found.binary == 1
    np.testing.assert_array_equal(found.log_variance_T, [0, 0])
    assert run(*built()[2:], batch()).predictions.log_variance_T is None


def test_what_it_does_not_read_or_give_is_told():
    assert [rule for _, rule in SMALL.fits(IO(length=9))] == [
        "reads rows of a table, and the data has none"
    ]
    (_, rule), = SMALL.fits(IO(table=(1, 1), gives=RowClass(3)))  # fmt: skip
    assert rule.startswith("gives a number for each target")
    assert "they are empty" in next(SMALL.fits(io_of(())))[1]
    wrong = dataclasses.replace(SMALL, mixer=GroupedQuery(), embedding_dim=0)
    assert {p.path for p in check(wrong)} == {"embedding_dim", "mixer"}


@pytest.mark.parametrize(
    ("overrides", "path", "rule"),
    [
        ({"moe.every": 0}, "moe.every", "must be 1: each level has experts"),
        ({"moe.first": 1, "model.num_layers": 2}, "moe.first", "must be 0"),
        ({"moe.gates": 4}, "moe.gates", "model.sharing says that they are 2"),
        ({"moe.own_experts": 2}, "moe.own_experts", "model.sharing.own_experts says how many"),
        ({"model.sharing.kind": "single"}, "moe.every", "must be 0"),
        ({"model.sharing.kind": "ple", "model.sharing.own_experts": 4}, "moe.own_experts", "leave"),
        ({"mesh.data": 1, "mesh.fsdp": 8, "model.embedding_dim": 4}, "model.embedding_dim", "div"),
        ({"moe.ensemble": 2}, "moe.gates", "must be 1 in an ensemble"),
        (
            {"moe.ensemble": 2, "model.sharing.kind": "shared_bottom"},
            "moe.ensemble",
            "must be 1 in a model of several targets",
        ),
        ({"model.kind": "decoder"}, "model.kind", "reads rows of text"),
    ],
)
def test_what_does_not_fit_is_told_with_its_path(overrides, path, rule):
    try:
        experiment = load_config(CENSUS, overrides, Experiment)
        problems = cross_check(experiment, 8)
    except ConfigError as error:
        problems = error.problems
    assert any(problem.path == path and rule in problem.rule for problem in problems), problems
