"""What a plan that does not fit says would: each suggestion fits, is small, can be given back."""

from __future__ import annotations

import re

import pytest

from moe_jax import plan
from moe_jax.cli import run_command
from moe_jax.config.errors import UserError
from moe_jax.config.overrides import apply_overrides, load_config
from moe_jax.planning import report
from moe_jax.planning.advice import MAX_CHANGES, would_fit
from moe_jax.planning.compiled import Compiled
from moe_jax.planning.hardware import larger, topology_of
from moe_jax.planning.search import candidate
from moe_jax.training.experiment import Experiment

MIXTRAL = "configs/mixtral_8x7b.py"
HERE = "v5e:2x2"
SMALL = {
    "batch_size": 32,
    "mesh.fsdp": 2,
    "mesh.expert": 2,
    "model.num_layers": 2,
    "model.vocab_size": 4096,
}


@pytest.fixture(scope="module")
def small():
    return load_config("configs/quickstart.py", SMALL, Experiment)


def pairs(flags):
    """Overrides as a command line gives them; the topology apart."""
    named = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    topology = named.pop("topology", None)
    return topology, [(path.removeprefix("config."), value) for path, value in named.items()]


def test_each_suggestion_is_a_command_line_that_fits(capsys):
    def cli(*extra):
        argv = [f"--config={MIXTRAL}", "--topology=v5p:4x4x8", "--analytic", *extra]
        code = run_command(plan.main, usage=plan.USAGE, flags=plan.FLAGS, argv=argv)
        return code, capsys.readouterr().out

    code, message = cli("--config.accumulation=1")
    assert code == 1
    lines = re.findall(r"^  (--\S+(?: --\S+)*) +([\d.]+) GiB$", message, re.MULTILINE)
    assert 2 <= len(lines) <= MAX_CHANGES
    assert lines[0] == ("--config.accumulation=2", lines[0][1])
    for flags, peak in lines:
        code, message = cli("--config.accumulation=1", *flags.split())
        assert code == 0
        assert re.search(r"^  peak +([\d.]+)", message, re.MULTILINE)[1] == peak
        assert "would fit" not in message
    assert "would fit" not in cli()[1]  # the config as it is


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.35, 0.25, 0.2])
def test_suggestions_fit_and_are_the_smallest(small, share):
    """Of ever less memory, down to where no single change is enough."""
    topology = topology_of(HERE)
    tried = candidate(small, topology)
    limit = share * tried.estimate.peak
    found = would_fit(tried, topology, filled=limit / topology.chip.memory)
    assert found and len(found) <= MAX_CHANGES
    for change in found:
        name, overrides = pairs(change.flags)
        there = topology_of(name) if name else topology
        again = candidate(apply_overrides(small, overrides), there)
        assert again.estimate == change.candidate.estimate
        assert again.estimate.peak <= limit
        assert (there is topology) or there.devices > topology.devices
    for change in found:
        _, overrides = pairs(change.flags)
        if [path for path, _ in overrides] == ["accumulation"]:
            fewer = [("accumulation", int(overrides[0][1]) // 2)]
            assert candidate(apply_overrides(small, fewer), topology).estimate.peak > limit
        elif len(overrides) > 1:  # none of the changes is enough by itself
            for one in overrides:
                try:
                    alone = candidate(apply_overrides(small, [one]), topology)
                except UserError:
                    continue
                assert alone.estimate.peak > limit, one


def test_shares_reach_from_one_change_to_several(small):
    """The test above has cases of both kinds, and of more hardware."""
    topology = topology_of(HERE)
    tried = candidate(small, topology)

    def counts(share):
        filled = share * tried.estimate.peak / topology.chip.memory
        return [len(change.flags) for change in would_fit(tried, topology, filled=filled)]

    assert counts(0.9)[0] == 1
    assert counts(0.2)[0] > 1


@pytest.mark.grid
def test_where_nothing_fits_that_is_said(small):
    topology = topology_of(HERE)
    tried = candidate(small, topology)
    assert would_fit(tried, topology, filled=1e-9) == []
    needed = Compiled(seconds=1.0, refused="no memory", needed=1e18, available=1e9)
    message = report.advice(report.LayoutPlan(topology=topology, candidate=tried, compiled=needed))
    assert "nothing was found that fits" in message


def test_what_the_compiler_took_counts(small):
    """It took ten times the estimate: suggestions leave it ten times as much room."""
    topology = topology_of(HERE)
    tried = candidate(small, topology)
    limit = 5 * tried.estimate.peak
    compiled = Compiled(
        seconds=1.0, refused="no memory", needed=10 * tried.estimate.peak, available=limit
    )
    one = report.LayoutPlan(topology=topology, candidate=tried, compiled=compiled)
    peaks = [float(peak) for peak in re.findall(r"([\d.]+) GiB", report.advice(one))]
    assert peaks
    assert max(peaks) * 2**30 <= limit / 10 * 1.01


def test_other_plans_are_given_no_advice(small):
    topology = topology_of(HERE)
    tried = candidate(small, topology)
    assert report.advice(report.LayoutPlan(topology=topology, candidate=tried)) == ""
    refused = Compiled(seconds=1.0, refused="UNIMPLEMENTED: ragged")
    assert (
        report.advice(report.LayoutPlan(topology=topology, candidate=tried, compiled=refused)) == ""
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5p:4x4x8", "v5p:4x8x8"),
        ("v5p:4x4x4", "v5p:4x4x8"),
        ("v5e:8x16", "v5e:16x16"),
        ("v5e:16x16", None),  # the largest there is
        ("h200:4", "h200:8"),
        ("h200:64", "h200:128"),
    ],
)
def test_the_next_larger_topology(name, expected):
    found = larger(topology_of(name))
    assert (found and found.name) == expected
