"""Rules between the parts of a config: each one broken by itself, and all at once."""

from __future__ import annotations

import dataclasses

import pytest

from moe_jax.config.errors import UserError
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.routing import ExpertChoice, GShard, Hash, Mixtral, SoftMoE, Switch, TopK
from moe_jax.routing.losses import DeviceBalance, LoadBalance, RouterZ, RoutingLosses
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.rules import cross_check, warnings
from tests.training.experiments import DEVICES, MESH, experiment


def test_a_good_config_passes():
    assert cross_check(experiment(), DEVICES) == []
    assert cross_check(Experiment(), 1) == []


# change -> the path that is told, and what the message must hold beside the value.
BROKEN = {
    "k above E": ({"moe__router": Mixtral(k=9)}, "moe.router.k", ["9", "experts, 8"]),
    "two choices of one expert": (
        {"moe__router": GShard(), "moe__num_experts": 1, "mesh": MeshConfig(data=8)},
        "moe.router.kind",
        ["number of experts, 1"],
    ),
    "a table of ids against the vocabulary": (
        {"moe__router": Hash(table="balanced", vocab_size=200), "model__vocab_size": 264},
        "moe.router.vocab_size",
        ["200", "model.vocab_size = 264"],
    ),
    "no layer is sparse": ({"moe__first": 4}, "moe.first", ["model.num_layers = 4"]),
    "experts against the expert axis": (
        {"moe__num_experts": 9},
        "moe.num_experts",
        ["mesh.expert = 2", "9 = 4 x 2 + 1"],
    ),
    "blocks of experts against the experts": (
        {"moe__losses": RoutingLosses(device_balance=DeviceBalance(groups=3))},
        "moe.losses.device_balance.groups",
        ["3", "must divide moe.num_experts = 8"],
    ),
    "mixtures in a layout of rows": (
        {"moe__router": SoftMoE()},
        "moe.layout",
        ["mixes tokens", '"slots_einsum" or "dense"'],
    ),
    "a capacity besides the router's own": (
        {"moe__router": ExpertChoice(), "moe__capacity_factor": 1.25},
        "moe.capacity_factor",
        ["must be none"],
    ),
    "dense layout with an expert axis": ({"moe__layout": "dense"}, "moe.layout", ["mesh.expert"]),
    "no transport with an expert axis": (
        {"moe__transport": "local"},
        "moe.transport",
        ["mesh.expert"],
    ),
    "group against the row": (
        {"moe__group_size": 48},
        "moe.group_size",
        ["data.sequence_length = 64"],
    ),
    "group against the sequence shard": (
        {"moe__group_size": 64},
        "moe.group_size",
        ["32 = 64 / 2"],
    ),
    "a row as a group, cut by the sequence axis": (
        {"moe__group_size": None},
        "moe.group_size",
        ["mesh.sequence = 2", "at most 32"],
    ),
    "a loss per row of groups of rows": (
        {
            "moe__group_size": 128,
            "mesh": MeshConfig(data=4),
            "moe__losses": RoutingLosses(router_z=RouterZ(coefficient=0.1, scope="row")),
        },
        "moe.losses.router_z.scope",
        ["row of 64", "moe.group_size = 128"],
    ),
    "batch against mesh and micro-batches": (
        {"batch_size": 12},
        "batch_size",
        ["4 x 1 x accumulation 2 = 8", "12 = 1 x 8 + 4"],
    ),
    "batch against groups of rows": (
        {"moe__group_size": 256, "mesh": MeshConfig(data=4), "accumulation": 3},
        "batch_size",
        ["4 x 4", "accumulation 3", "16 = 0 x 48 + 16"],
    ),
    "evaluation's batch": (
        {"evaluation": EvalConfig(batch_size=6)},
        "evaluation.batch_size",
        ["6 = 1 x 4 + 2"],
    ),
    "heads against the tensor axis": (
        {"model__num_heads": 3, "model__num_kv_heads": 2},
        "model.num_heads",
        ["mesh.tensor = 2"],
    ),
    "key heads against the tensor axis": (
        {"model__num_kv_heads": 1},
        "model.num_kv_heads",
        ["1 = 0 x 2 + 1"],
    ),
    "vocabulary": ({"model__vocab_size": 263}, "model.vocab_size", ["mesh.tensor = 2"]),
    "vocabulary in chunks": (
        {"model__logits_chunks": 16},
        "model.vocab_size",
        ["model.logits_chunks * mesh.tensor"],
    ),
    "width of dense layers": ({"model__mlp_dim": 63}, "model.mlp_dim", ["mesh.tensor = 2"]),
    "width of experts": ({"moe__expert_dim": 15}, "moe.expert_dim", ["mesh.tensor = 2"]),
    "width of shared experts": (
        {"moe__num_shared": 3, "moe__shared_dim": 15},
        "moe.shared_dim",
        ["mesh.tensor", "15 = 7 x 2 + 1"],
    ),
    "model width": ({"model__model_dim": 33}, "model.model_dim", ["mesh.fsdp", "33 = 16 x 2 + 1"]),
    "row length": (
        {"data__sequence_length": 65, "moe__every": 0},
        "data.sequence_length",
        ["mesh.sequence = 2", "65 = 32 x 2 + 1"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_rule(name):
    """Exactly one problem, with its path, its value and the arithmetic."""
    changes, path, fragments = BROKEN[name]
    broken = experiment(**changes)
    devices = DEVICES if broken.mesh is MESH else abs(broken.mesh.data)
    (problem,) = cross_check(broken, devices)
    assert problem.path == path
    for fragment in fragments:
        assert fragment in str(problem), str(problem)


def test_all_problems_at_once():
    broken = experiment(
        moe__router=TopK(k=10),
        moe__num_experts=9,
        moe__group_size=48,
        batch_size=12,
        model__num_kv_heads=1,
        model__model_dim=33,
    )
    assert {problem.path for problem in cross_check(broken, DEVICES)} == {
        "moe.router.k",
        "moe.num_experts",
        "moe.group_size",
        "batch_size",
        "model.num_kv_heads",
        "model.model_dim",
    }


def test_a_dense_model_asks_nothing_of_experts():
    dense = experiment(
        moe=MoEConfig(every=0, num_experts=7, expert_dim=15, group_size=48, router=Mixtral(k=9))
    )
    assert cross_check(dense, DEVICES) == []
    sparse = experiment(moe__every=1, model__mlp_dim=63)  # no dense layer has that width
    assert cross_check(sparse, DEVICES) == []


NUMBERS = (
    "batch_size",
    "accumulation",
    "data__sequence_length",
    "model__num_layers",
    "model__model_dim",
    "model__num_heads",
    "model__num_kv_heads",
    "model__mlp_dim",
    "model__vocab_size",
    "moe__num_experts",
    "moe__expert_dim",
    "moe__every",
    "moe__first",
    "moe__group_size",
    "moe__num_shared",
    "moe__shared_dim",
    "evaluation__batch_size",
)


@pytest.mark.parametrize("value", [0, -1, -8])
@pytest.mark.parametrize("name", NUMBERS)
def test_sizes_without_sense_do_not_end_in_a_traceback(name, value):
    """Their own rules tell them; the rules between parts hold their tongue or tell more."""
    cross_check(experiment(**{name: value}), DEVICES)


@pytest.mark.parametrize("value", [0, -1, -2])
@pytest.mark.parametrize("axis", ["data", "fsdp", "expert", "tensor", "sequence"])
def test_a_mesh_that_does_not_fit_is_a_user_error(axis, value):
    mesh = dataclasses.replace(MESH, **{"data": -1, axis: value})
    if axis == "data" and value == -1:
        assert cross_check(experiment(mesh=mesh), DEVICES) == []
        return
    with pytest.raises(UserError, match="mesh"):
        cross_check(experiment(mesh=mesh), DEVICES)


def test_warnings():
    assert warnings(experiment(moe__every=0, moe__router=Mixtral(k=1))) == []
    assert warnings(experiment(accumulation=1)) == []

    def warnings_of(**changes):
        return " ".join(warnings(experiment(**changes)))

    assert "constant" in warnings_of(moe__router=Mixtral(k=1))
    assert "constant" not in warnings_of(moe__router=Switch())
    assert "later" in warnings_of(moe__router=GShard(), moe__capacity_factor=1.0)
    assert "later" not in warnings_of(moe__router=GShard())
    for term in (LoadBalance(coefficient=0.1), RouterZ(coefficient=0.1)):
        name = "load_balance" if isinstance(term, LoadBalance) else "router_z"
        whole = {f"moe__losses__{name}": term}
        assert "one more forward pass" in warnings_of(**whole)
        assert "one more forward pass" not in warnings_of(**whole, accumulation=1)
        micro = {f"moe__losses__{name}": dataclasses.replace(term, scope="micro_batch")}
        assert f"moe.losses.{name}.scope" in warnings_of(**micro)
        assert "one more forward pass" not in warnings_of(**micro)
        assert f"moe.losses.{name}.scope" not in warnings_of(**micro, accumulation=1)
    assert "scope" not in warnings_of()
    rises = "moe.losses.load_balance.coefficient = linear(0, 0.01, 100)"
    assert "one more forward pass" in warnings_of(schedules=(rises,))


def test_losses_of_a_router_without_parameters():
    """They are told, also where only a schedule gives them a value."""
    balance = {"moe__losses__load_balance": LoadBalance(coefficient=0.1)}

    def warnings_of(router, **changes):
        return " ".join(warnings(experiment(moe__router=router, accumulation=1, **changes)))

    assert "moe.losses.load_balance.coefficient does nothing" in warnings_of(Hash(), **balance)
    assert "does nothing" not in warnings_of(Hash())
    assert "does nothing" not in warnings_of(Mixtral(), **balance)
    rises = "moe.losses.router_z.coefficient = linear(0, 0.01, 100)"
    assert "moe.losses.router_z.coefficient does nothing" in warnings_of(Hash(), schedules=(rises,))
    assert "does nothing" not in warnings_of(Mixtral(), schedules=(rises,))
