"""What the check shrinks, which variants it takes, whom it blames, and what bad input gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moe_jax import check as cli
from moe_jax.checking.compare import blame, compare
from moe_jax.checking.invariance import micro_batch_terms, scalars_over_the_run
from moe_jax.checking.shrink import shrink
from moe_jax.checking.trial import Trial, synthetic_rows
from moe_jax.checking.variants import variants
from moe_jax.cli import run_command
from moe_jax.config import checks
from moe_jax.config.overrides import load_config
from moe_jax.dispatch import LAYOUTS, TRANSPORTS
from moe_jax.models.layout import layout_of
from moe_jax.models.transformer import REMAT_POLICIES
from moe_jax.parallel.mesh import AXES
from moe_jax.training.experiment import Experiment
from tests.checking.trials import trial

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


def load(name, *overrides):
    return load_config(next(c for c in CONFIGS if c.stem == name), overrides, Experiment)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_shrinks_and_runs_in_every_variant(config):
    experiment = load_config(config, (), Experiment)
    small, changes = shrink(experiment, 3)
    assert not checks.check(small)
    assert {change.path for change in changes} >= {"model.model_dim", "steps"}
    assert small.moe.router.__class__ is experiment.moe.router.__class__
    assert small.moe.losses == experiment.moe.losses
    found, skipped = variants(small, 8)
    # A row of a table is one token, and a group may be several rows: then rows are not split.
    length = small.model.row_length(small.io)
    whole_rows = length == 1 or (small.moe.group_size or 0) > length
    assert all(whole_rows and "sequence" in variant.name for variant in skipped)
    axes = set(AXES) - ({"sequence"} if whole_rows else set())
    assert {axis for variant in found for axis in variant.axes} == axes
    assert {variant.accumulation for variant in found} == {1, 2, 4}
    assert {variant.remat for variant in found} == set(REMAT_POLICIES)
    if experiment.moe.every:
        assert {variant.layout for variant in found} == set(LAYOUTS) - {"dense"}
        assert {variant.transport for variant in found} == set(TRANSPORTS)
        pairs = {(variant.layout, variant.transport) for variant in found}
        assert {("rows", "ragged"), ("rows", "gather"), ("slots_scatter", "gather")} <= pairs
        assert small.moe.num_experts == 8
        takes_all = small.moe.router.choices(99) == 99  # a dense mixture
        assert takes_all or 2 * small.moe.router.choices(small.moe.num_experts) <= 8


def test_the_pattern_of_dense_and_sparse_layers_stays():
    """Prologue, pattern, and at least one sparse layer."""
    for layers, every, first in [
        (28, 1, 1),
        (12, 2, 1),
        (12, 4, 3),
        (6, 1, 3),
        (1, 1, 0),
        (2, 2, 1),
    ]:
        small, _ = shrink(
            load(
                "quickstart",
                ("model.num_layers", layers),
                ("moe.every", every),
                ("moe.first", first),
            ),
            3,
        )
        before = layout_of(
            layers, load("quickstart", ("moe.every", every), ("moe.first", first)).moe
        )
        after = layout_of(small.model.num_layers, small.moe)
        assert after.moe_layers
        assert bool(before.prologue) == bool(after.prologue)
        dense = [len(layout.moe_stacks) < len(layout.stacks) for layout in (before, after)]
        assert dense[0] == dense[1]


def test_groups_keep_their_kind():
    """Pieces of a row, one row, several rows; 64 positions become 32."""
    for group, small_group in ((16, 8), (32, 16), (64, 16), (128, 64)):
        experiment = load("quickstart", ("data.sequence_length", 64), ("moe.group_size", group))
        small, _ = shrink(experiment, 3)
        assert (small.data.sequence_length, small.moe.group_size) == (32, small_group)
        assert variants(small, 8)[0]


@pytest.mark.parametrize(
    ("length", "group", "small_group"),
    [(25, None, 5), (25, 5, 5), (24, None, 12), (24, 6, 6), (27, None, 9), (23, None, None)],
)
def test_groups_divide_a_row_that_keeps_its_length(length, group, small_group):
    """25: a group of half a shrunken row, 16, divided none of it, and no variant was left."""
    experiment = load(
        "quickstart", ("data.sequence_length", length), ("moe.group_size", group or "none")
    )
    small, _ = shrink(experiment, 3, keep=("data.sequence_length",))
    assert (small.data.sequence_length, small.moe.group_size) == (length, small_group)
    assert {"data=8 rows", "tensor=4 rows"} <= {v.name for v in variants(small, 8)[0]}


def test_groups_of_experts_shrink_with_the_experts():
    """64 experts in 16 groups of which 6 are kept, for losses too: 8 in 8, of which 3 are kept."""
    experiment = load(
        "quickstart",
        ("moe.num_experts", 64),
        ("moe.router.kind", "deepseek_v3"),
        ("moe.router.expert_groups", 16),
        ("moe.router.kept_groups", 6),
        ("moe.router.k", 8),
        ("moe.losses.device_balance.groups", 32),
    )
    small, _ = shrink(experiment, 3)
    router = small.moe.router
    assert (router.expert_groups, router.kept_groups, router.k) == (8, 3, 3)
    assert small.moe.losses.device_balance.groups == 8
    assert {"data=8 rows", "expert=8 rows/all_to_all"} <= {v.name for v in variants(small, 8)[0]}


def test_keep():
    small, changes = shrink(load("olmoe_1b_7b"), 3, keep=("moe.num_experts", "moe.router.k"))
    assert (small.moe.num_experts, small.moe.router.k) == (64, 8)
    assert "moe.num_experts" not in {change.path for change in changes}


def test_what_a_config_cannot_run_is_told():
    experiment = load("quickstart", ("model.num_heads", 4), ("model.num_kv_heads", 1))
    found, skipped = variants(shrink(experiment, 3)[0], 8)
    reasons = {variant.name: variant.reason for variant in skipped}
    assert "num_kv_heads" in reasons["tensor=2 rows"]
    assert not any("tensor" in variant.axes for variant in found)


def test_few_experts_and_few_devices():
    """6 experts: 2 devices along `expert`; 2 devices: no mesh of more."""
    small, _ = shrink(load("quickstart", ("moe.num_experts", 6)), 3)
    assert {v.axes["expert"] for v in variants(small, 8)[0] if "expert" in v.axes} == {2}
    found, skipped = variants(shrink(load("quickstart"), 3)[0], 2)
    assert {variant.devices for variant in found} == {1, 2}
    assert {variant.reason for variant in skipped} == {"needs 8 devices"}


def test_rows_have_segments_and_padding():
    """Devices differ in their number of tokens; the same rows every time."""
    small, _ = shrink(load("quickstart"), 3)
    batches = synthetic_rows(small, 3)
    for batch, again in zip(batches, synthetic_rows(small, 3), strict=True):
        np.testing.assert_array_equal(batch["tokens"], again["tokens"])
        segments = batch["segments"]
        assert segments.max() == 3
        valid_B = (segments > 0).sum(axis=1)
        assert valid_B.min() == 0  # a row that is all padding
        assert len(set(valid_B.reshape(8, -1).sum(axis=1))) > 2
        # A segment's tokens stand together, and padding last.
        for row in segments:
            used = row[row > 0]
            assert (np.diff(used) >= 0).all() and (row[: len(used)] > 0).all()


def test_schedules_are_read_over_the_whole_run():
    experiment = load(
        "quickstart",
        ("steps", 300),
        ("schedules", ("moe.losses.load_balance.coefficient = linear(0, 0.3, 300)",)),
    )
    values = [k["moe.losses.load_balance.coefficient"] for k in scalars_over_the_run(experiment, 3)]
    np.testing.assert_allclose(values, [0.05, 0.15, 0.25], rtol=1e-6)


def test_only_losses_in_use_are_left_out():
    scope = ("moe.losses.{}.scope", "micro_batch")
    names = [(scope[0].format(name), scope[1]) for name in ("load_balance", "importance")]
    assert micro_batch_terms(load("quickstart", *names)) == ("load_balance",)
    assert micro_batch_terms(load("quickstart")) == ()
    assert micro_batch_terms(load("dense_quickstart", *names)) == ()


# --- comparing ---


def differing(**changes):
    return [d.quantity for d in compare(trial(**changes), trial(), 1e-5) if d.excess > 1]


def test_compare():
    assert differing() == []
    assert differing(numbers={"loss": 4.0 * (1 + 0.9e-5)}) == []
    assert differing(numbers={"loss": 4.0 * (1 + 1.1e-5)}) == ["loss, step 1"]
    assert differing(numbers={"loss": float("nan")}) == ["loss, step 1"]
    assert differing(counts={"dropped": np.array([4, 3])}) == ["count of dropped, step 1"]
    assert differing(sums={"prob_E": np.array([[1.0, 2.1]])}) == ["sum of prob_E, step 1"]
    assert differing(router_state={"bias": np.array([0.02])}) == ["router state bias, step 1"]
    # || difference || / || gradient || = 5e-4 / 5 = 10 x tolerance
    for size, found in ((4.9e-4, []), (5.1e-4, ["gradient of w, step 1"])):
        w = np.array([3.0, 4.0 + size])
        assert differing(gradients={"w": w, "router": np.array([1e-9, 0.0])}) == found
    # Rounding of a gradient that is nothing beside the others is no difference.
    rounding = np.array([2e-9, 0.0])
    assert differing(gradients={"w": np.array([3.0, 4.0]), "router": rounding}) == []
    # w has moved by 0.5: 1e-3 of that is allowed.
    assert differing(params={"w": np.array([1.0, 1.5 + 4e-4])}) == []
    assert differing(params={"w": np.array([1.0, 1.5 + 6e-4])}) == ["parameter w"]


def test_an_element_whose_gradient_is_rounding_may_go_either_way():
    """AdamW makes a whole step of it: 1e-9 beside 3, but not 1e-2. It goes no further."""
    gradients = {"w": np.array([3.0, 1e-9]), "router": np.array([1.0, 1e-2])}
    start = {name: np.zeros(2) for name in gradients}
    step = trial(gradients=gradients).steps[0]
    right = {"w": np.array([0.1, 0.1]), "router": np.array([0.1, 0.1])}

    def differ(**params):
        after = {**right, **{name: np.array(value) for name, value in params.items()}}
        trials = (Trial(steps=(step,), start=start, params=p) for p in (after, right))
        return [d.quantity for d in compare(*trials, 1e-5) if d.excess > 1]

    assert differ(w=[0.1, -0.1]) == []
    assert differ(w=[0.1002, -0.1]) == ["parameter w"]
    assert differ(router=[0.1, -0.1]) == ["parameter router"]
    for far in (0.31, -0.11, np.nan):
        assert differ(w=[0.1, far]) == ["parameter w"], far


def guilty(*cases):
    outcomes = [(f"v{i}", frozenset(factors.split()), ok) for i, (factors, ok) in enumerate(cases)]
    return [
        " or ".join(part.split(" ")[0] for part in line.split(" or ")) for line in blame(outcomes)
    ]


def test_blame():
    assert guilty(("rows", True), ("rows data", True)) == []
    assert guilty(("rows", True), ("rows data", False)) == ["data"]
    # A layout that fails alone explains every variant with it.
    assert guilty(("rows", False), ("rows data", False), ("data slots", True)) == ["rows"]
    # Two axes, each alone.
    both = (("rows", True), ("rows data", False), ("rows fsdp", False), ("rows data fsdp", False))
    assert guilty(*both) == ["data", "fsdp"]
    # One transport of several, although it never comes without the axis.
    ways = (("rows expert a2a", False), ("rows expert gather", True), ("rows", True))
    assert guilty(*ways) == ["a2a"]
    # The axis, whatever the transport.
    assert guilty(("rows expert a2a", False), ("rows expert gather", False), ("rows", True)) == [
        "expert"
    ]
    # Nothing tells the two apart.
    assert guilty(("rows expert a2a", False), ("rows", True)) == ["a2a or expert"]
    assert guilty(("a b", False), ("a", True), ("b", True)) == ["no"]  # no factor alone
    assert guilty(("a b", False), ("a", True), ("b", True), ("c", False)) == ["c", "no"]


# --- the command ---

ROW_OF_36 = "--config.data.sequence_length=36"


def test_a_fresh_process_has_its_devices(one_device_flags):
    """Nothing asks for 3 devices but the command."""
    code = (
        "from moe_jax.check import ask_for_devices, start_devices; "
        "ask_for_devices(3); print(len(start_devices(3)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XLA_FLAGS": one_device_flags},
    )
    assert done.stdout.strip() == "3", done.stderr


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        (["--steps=0"], ["--steps", "at least 1"]),
        (["--devices=1"], ["--devices", "at least 2"]),
        (["--devices=64"], ["--devices=64", "8 CPU devices"]),
        (["--tolerance=0"], ["--tolerance"]),
        (["--only=expert=3"], ["--only=expert=3", "data=8 rows"]),
        (
            ["--config.data.sequence_length=25", "--keep=data.sequence_length", "--only=nothing"],
            ["--only=nothing", "data=8 rows"],
        ),
        (
            ["--keep=moe.group_size", "--config.moe.group_size=12", ROW_OF_36],
            ["moe.group_size = 12", "data.sequence_length = 32", "--keep=moe.group_size"],
        ),
        (["--keep=moe.num_expert"], ["moe.num_expert", "moe.num_experts"]),
        (["--config.moe.router.k=9"], ["moe.router.k", "at most the number of experts, 8"]),
        (["--config.moe.router.kind=nowhere:Router"], ["nowhere"]),
        (["--config.moe.num_expert=8"], ["num_experts"]),
        (["--step=3"], ["--steps"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_bad_input(argv, fragments, capsys):
    quickstart = next(c for c in CONFIGS if c.stem == "quickstart")
    argv = [f"--config={quickstart}", *argv]
    code = run_command(cli.main, usage=cli.USAGE, flags=cli.FLAGS, argv=argv)
    error = capsys.readouterr().err
    assert code == 2, error
    assert "Traceback" not in error
    # No message blames a flag that was not given.
    for flag in ("--only", "--keep", "--steps", "--devices", "--tolerance"):
        assert flag not in error or any(flag.startswith(a.partition("=")[0]) for a in argv), error
    for fragment in fragments:
        assert fragment in error, error
