"""The estimate against the compiled program, the published figures, and the command."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import pytest

from moe_jax import plan
from moe_jax.cli import run_command
from moe_jax.config.errors import UserError
from moe_jax.config.overrides import load_config
from moe_jax.parallel.mesh import AXES
from moe_jax.planning import report
from moe_jax.planning.compiled import Compiled, compile_step, memory_of
from moe_jax.planning.estimate import estimate, state_bytes
from moe_jax.planning.hardware import topology_of
from moe_jax.planning.published import FITTED_ON, checks
from moe_jax.planning.roofline import transfer_seconds
from moe_jax.planning.search import candidate, search
from moe_jax.routing.losses import RoutingLosses
from moe_jax.training.experiment import Experiment
from tests.drawn import some
from tests.training.programs import MESHES, B, compiled, program_of, sent
from tests.training.steps import S

MIXTRAL = "configs/mixtral_8x7b.py"


@pytest.mark.parametrize("mesh", MESHES)
def test_state_is_exact(mesh):
    """Bytes of parameters and optimizer on one device: those of the compiled program's arrays."""
    program = program_of(mesh)
    found = estimate(program.experiment, 8)

    def placed(tree):
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    assert found.parameters == placed(program.abstract_state.params)
    assert found.optimizer == placed(program.abstract_state.opt_state)
    assert state_bytes(program.abstract_state, found.sizes) == placed(program.abstract_state)


@pytest.mark.parametrize(
    ("mesh", "transport", "remat"),
    some(
        [
            ("data 2, expert 4", "all_to_all", "none"),
            ("data 2, expert 4", "all_to_all", "full"),
            ("fsdp 2, expert 2, tensor 2", "all_to_all", "received"),
            ("data 2, expert 4", "gather", "none"),
        ],
        [("data 2, expert 4", "all_to_all", "none")],
        several=True,
    ),
)
def test_bytes_over_expert_are_those_of_the_compiled_step(mesh, transport, remat):
    program = program_of(mesh, transport=transport, remat=remat)
    ops = ("all-to-all",) if transport == "all_to_all" else ("all-gather", "reduce-scatter")
    D = program.experiment.model.model_dim // program.mesh.shape["tensor"]
    found = sum(
        c.bytes_sent * c.times
        for c in sent(mesh, transport=transport, remat=remat)
        # Rows alone: beside them go weights and counts of the plan.
        if c.axes == {"expert"} and c.op in ops and c.arrays[0][1][-1] == D
    )
    (expected,) = (
        t.bytes_sent
        for t in estimate(program.experiment, 8).traffic
        if t.what == "tokens to experts"
    )
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.grid
@pytest.mark.parametrize(
    "mesh",
    some(["data 8", "data 4, expert 2", "data 2, expert 4", "expert 8"], ["data 2, expert 4"]),
)
def test_bytes_of_gradients_are_nearly_those_of_the_compiled_step(mesh):
    """Beside gradients the program sums a few metrics. (With fsdp the CPU compiler sums by
    all-reduce what others reduce-scatter.)"""
    expected = sum(
        t.bytes_sent
        for t in estimate(program_of(mesh).experiment, 8).traffic
        if t.op == "all-reduce"
    )
    found = sum(c.bytes_sent * c.times for c in sent(mesh) if c.op == "all-reduce")
    assert expected <= found <= 1.05 * expected


@pytest.mark.grid
@pytest.mark.parametrize(
    ("mesh", "settings"),
    some(
        [
            ("data 4, tensor 2", {}),
            ("data 4, tensor 2", {"every": 0}),
            ("data 4, tensor 2", {"latent_dim": 8}),
            ("data 4, tensor 2", {"num_shared": 1}),
            ("expert 4, tensor 2", {}),
            ("expert 4, tensor 2", {"transport": "gather"}),
        ],
        [("expert 4, tensor 2", {})],
        several=True,
    ),
)
def test_bytes_over_tensor_are_nearly_those_of_the_compiled_step(mesh, settings):
    """Beside activations the program sums and gathers numbers of the loss, one a token."""
    found = {"sum": 0.0, "gather": 0.0}
    for c in sent(mesh, **settings):
        if c.axes == {"tensor"}:
            found["sum" if c.op == "all-reduce" else "gather"] += c.bytes_sent * c.times
    expected = {"sum": 0.0, "gather": 0.0}
    for t in estimate(program_of(mesh, **settings).experiment, 8).traffic:
        if t.axes == ("tensor",):
            expected["sum" if t.op == "all-reduce" else "gather"] += t.bytes_sent
    few = 3 * 4 * B * S  # bytes: three numbers a token
    for kind, bytes_sent in expected.items():
        assert bytes_sent <= found[kind] <= bytes_sent + few, (kind, found, expected)


def test_a_global_loss_under_accumulation_takes_one_more_forward_pass():
    """2 exchanges more for each 4, a third more FLOPs; a loss of each row takes none."""
    program = program_of("data 2, expert 4")

    def sums(accumulation, scope="global_batch"):
        e = dataclasses.replace(program.experiment, accumulation=accumulation)
        balance = dataclasses.replace(e.moe.losses.load_balance, coefficient=0.1, scope=scope)
        losses = RoutingLosses(load_balance=balance)
        found = estimate(dataclasses.replace(e, moe=dataclasses.replace(e.moe, losses=losses)), 8)
        exchanged = sum(t.bytes_sent for t in found.traffic if t.what == "tokens to experts")
        return exchanged, found.hardware_flops / found.model_flops

    assert sums(2)[0] == pytest.approx(1.5 * sums(1)[0])
    assert sums(2)[1] == pytest.approx(sums(1)[1] + 1 / 3)
    assert sums(2, "row") == pytest.approx(sums(1, "row"))


@pytest.mark.grid
@pytest.mark.parametrize("name", ["data 2, expert 4"])
def test_compiled_step_by_kind(name):
    """The plan's own compile of the run's step: memory and collectives as the compiler has them."""
    experiment = program_of(name).experiment
    found = compile_step(experiment, jax.devices())
    memory = compiled(name).memory_analysis()
    assert found.arguments == memory.argument_size_in_bytes
    assert found.temporaries == memory.temp_size_in_bytes
    over_expert = sum(c.bytes_sent * c.times for c in sent(name) if c.axes == {"expert"})
    message = sum(s.bytes_sent for s in found.sent if s.axes == ("expert",))
    assert message == pytest.approx(over_expert)


def test_too_little_memory_is_a_result():
    """The TPU compiler's words, and where they go in the report."""
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (18.71G) exceeds available HBM (15.75G)."
    )
    needed, available = memory_of(message)
    assert (needed, available) == (18.71 * 2**30, 15.75 * 2**30)
    topology = topology_of("v5e:2x4")
    one = candidate(program_of("data 8").experiment, topology)
    failed = Compiled(seconds=1.0, refused=message, needed=needed, available=available)
    found = report.LayoutPlan(topology=topology, candidate=one, compiled=failed)
    assert not found.fits
    assert "DOES NOT FIT, by 2.96 GiB" in report.text(found)
    assert not report.to_json(found)["fits"]


def test_what_the_compiler_cannot_do_is_a_result():
    message = (
        "INTERNAL: Ragged all-to-all is currently not supported in limited ICI routing settings"
    )
    topology = topology_of("v5e:2x4")
    one = candidate(program_of("data 8").experiment, topology)
    found = report.LayoutPlan(
        topology=topology, candidate=one, compiled=Compiled(seconds=1.0, refused=message)
    )
    assert not found.fits
    assert f"THE COMPILER REFUSES: {message}" in report.text(found)
    assert "GiB to spare" not in report.text(found)
    json.dumps(report.to_json(found), allow_nan=False)


@pytest.mark.parametrize("check", checks(), ids=lambda check: check.topology)
def test_published_utilisation(check):
    """The efficiency is the fit to the first figure; no expectation is below a published one."""
    if check.topology == FITTED_ON:
        assert check.expected == pytest.approx(check.published, rel=0.01)
    assert check.published <= check.expected * 1.01


@pytest.mark.parametrize(
    ("topology", "op", "axes", "sizes", "seconds"),
    [
        # One dimension's links of three: 200 GB/s; eight devices in a ring are no detour.
        ("v5p:4x4x8", "all-to-all", ("expert",), {"expert": 8}, 1.0),
        ("v5p:4x4x8", "all-to-all", ("expert",), {"expert": 16}, 2.0),
        ("v5p:4x4x8", "all-gather", ("fsdp",), {"fsdp": 16}, 1.0),
        # Within a host 450 GB/s, between hosts 50 GB/s.
        ("h200:64", "all-to-all", ("expert",), {"expert": 8}, 200 / 450),
        ("h200:64", "all-to-all", ("expert",), {"expert": 16}, 4.0),
        ("h200:64", "all-reduce", ("data",), {"data": 8, "expert": 8}, 4.0),
    ],
)
def test_seconds_of_200_gigabytes(topology, op, axes, sizes, seconds):
    sizes = dict.fromkeys(AXES, 1) | sizes
    found = transfer_seconds(topology_of(topology), sizes, op, axes, 200e9)
    assert found == pytest.approx(seconds)


@pytest.mark.lab
def test_search_ranks_what_fits():
    topology = topology_of("v5p:4x4x8")
    experiment = load_config(MIXTRAL, {}, Experiment)
    found = search(experiment, topology)
    mfu = [round(c.roofline.expected_mfu, 6) for c in found]
    assert mfu == sorted(mfu, reverse=True)
    assert all(c.estimate.peak <= topology.chip.memory for c in found)
    transports = {c.experiment.moe.transport for c in found}
    assert {"all_to_all", "gather", "ragged"} <= transports
    with pytest.raises(UserError, match=r"none of .* fits"):
        search(experiment, topology_of("v5e:2x2"))


def test_hardware_without_ragged_exchanges():
    """Left out of a search; told where it is asked for, compiler or not."""
    topology = topology_of("v5e:2x4")
    experiment = program_of("expert 8").experiment
    moe = dataclasses.replace(experiment.moe, transport="ragged", layout="rows")
    experiment = dataclasses.replace(experiment, moe=moe)

    def transports(topology):
        return {c.experiment.moe.transport for c in search(experiment, topology)}

    assert transports(topology) == transports(topology_of("v6e:2x4")) - {"ragged"}
    asked = candidate(experiment, topology)
    one = report.LayoutPlan(topology=topology, candidate=asked)
    assert not one.fits
    assert "v5e:2x4 has no ragged all-to-all" in report.text(one)


def test_door(tmp_path, capsys):
    def cli(*extra):
        argv = [f"--config={MIXTRAL}", "--analytic", *extra]
        return run_command(plan.main, usage=plan.USAGE, flags=plan.FLAGS, argv=argv)

    file = tmp_path / "plan.json"
    assert cli("--topology=v5p:4x4x8", f"--json={file}") == 0
    assert "compute binds" in capsys.readouterr().out
    (message,) = json.loads(file.read_text())
    assert message["fits"] and message["estimate"]["counts"]["total"] == 46_702_792_704
    # 12 bytes a parameter, experts over all 128 devices.
    assert message["estimate"]["parameters"] + message["estimate"]["optimizer"] > 12 * 46.7e9 / 128
    assert cli("--topology=v5e:4x4") == 2  # 1024 rows fit, fsdp 16 x expert 8 do not
    assert cli("--topology=v7:4") == 2
    assert "no hardware 'v7'" in capsys.readouterr().err
    assert cli("--topology=h200:12") == 2
    whole = ("--config.batch_size=2048", "--config.accumulation=1")
    assert cli("--topology=h200:128", *whole) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_attention_on_tpu_keeps_no_logits():
    """Rows that splash attention takes; others, and other platforms, hold a block of them."""

    def activations(platform, S, kernel="auto"):
        e = Experiment()
        data = dataclasses.replace(e.data, sequence_length=S)
        model = dataclasses.replace(e.model, attention=kernel)
        e = dataclasses.replace(e, data=data, model=model)
        return estimate(e, 1, platform).activations

    assert activations("tpu", 256) == activations("cpu", 256, "splash") < activations("cpu", 256)
    assert activations("tpu", 256, "blocks") == activations("gpu", 256) == activations("cpu", 256)
    assert activations("tpu", 192) == activations("cpu", 192)
