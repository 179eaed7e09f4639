"""The command to the conventions of other codebases: what it prints, and what bad input gets."""

from __future__ import annotations

import re

import pytest

from moe_jax.config.overrides import apply_overrides
from moe_jax.routing.conventions import CODEBASES
from moe_jax.training.experiment import Experiment


def test_the_table(cli):
    code, out, err = cli("conventions")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert set(CODEBASES) <= set(rows)
    assert rows["hugging_face"][:5] == ["k", "all", "pooled", "micro_batch", "dropless"]
    assert rows["levanter"][0] == "1/k"
    assert rows["v_moe"][:5] == ["1", "first", "sum", "group", "multiple_of_4"]


@pytest.mark.parametrize("name", CODEBASES)
def test_the_settings_of_a_codebase_are_flags_as_they_stand(name, cli):
    code, out, err = cli("conventions", f"--codebase={name}")
    assert (code, err) == (0, "")
    assert CODEBASES[name].source in out
    flags = dict(re.findall(r"--config\.(\S+)=(\S+)", out))
    assert "moe.losses.over_layers" in flags
    apply_overrides(Experiment(), flags)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            "--coefficient=0.02 --source=maxtext --experts=8 --k=2 --layers=10",
            "load_balance 0.02 of maxtext is 0.004 in moe_jax\n"
            "over the same tokens; the scope is row in maxtext, global_batch in moe_jax\n",
        ),
        (
            "--coefficient=0.01 --source=switch --target=hugging_face --experts=8 --k=1",
            "load_balance 0.01 of switch is 0.01 in hugging_face\n"
            "over the same tokens; the scope is group in switch, micro_batch in hugging_face\n",
        ),
        (
            "--coefficient=0.01 --source=megatron_core --target=hugging_face --experts=8 --k=2",
            "load_balance 0.01 of megatron_core is 0.005 in hugging_face\n",
        ),
        (
            "--coefficient=0.1 --source=v_moe --target=tutel --experts=5 --k=2 --loss=importance",
            "importance 0.1 of v_moe is 0.08 in tutel\n"
            "over the same tokens; the scope is group in v_moe, micro_batch in tutel\n",
        ),
        (
            "--capacity_factor=1.25 --source=v_moe --tokens=10 --experts=4 --k=2",
            "capacity factor 1.25 of v_moe is 1.5 in moe_jax: 8 slots per expert\n"
            "any factor from 1.400001 to 1.6 gives as many\n",
        ),
        (
            "--capacity_factor=99 --source=tutel --tokens=10 --experts=4 --k=2",
            "capacity factor 99 of tutel is 2 in moe_jax: 10 slots per expert\n"
            "any factor from 1.800001 gives as many\n",
        ),
    ],
)
def test_a_translation(argv, message, cli):
    assert cli("conventions", *argv.split()) == (0, message, "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--coefficient=0.01 --source=switch", "--coefficient needs --experts, --k too"),
        ("--capacity_factor=1 --source=tutel --k=2", "needs --tokens, --experts too"),
        ("--coefficient=0.01 --capacity_factor=1", "one at a time"),
        ("--source=tutel", "--source needs --coefficient or --capacity_factor"),
        ("--codebase=megatron", "did you mean megatron_core?"),
        (
            "--coefficient=0.01 --source=switch --target=hugging_face --experts=8 --k=2",
            "no factor exists with k = 2: one loss counts first choices, the other all",
        ),
        (
            "--coefficient=1 --source=maxtext --target=hugging_face --experts=8 --k=2 --layers=12",
            "neither the sum nor the mean",
        ),
        ("--coefficient=0.01 --source=maxtext --experts=2 --k=4", "k at most E"),
        ("--coefficient=x --source=maxtext --experts=2 --k=1", "coefficient"),
        (
            "--capacity_factor=1.25 --source=megatron_core --target=v_moe --tokens=10 --experts=4 "
            "--k=2",
            "7 slots",
        ),
        ("--capacity_factor=-1 --source=tutel --tokens=8 --experts=4 --k=2", "above 0"),
        ("--capacity_factor=1 --source=levanter --tokens=8 --experts=4 --k=2", "dropless"),
        ("--expert=8", "did you mean --experts?"),
    ],
)
def test_bad_input_ends_with_one_message(argv, message, cli):
    code, out, err = cli("conventions", *argv.split())
    assert (code, out) == (2, "")
    assert message in err and err.startswith("error: ")
    assert "Traceback" not in err
