"""The arm in bfloat16: gradients within what its rounding explains, and faults that are not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import check as cli
from moe_jax.checking import table
from moe_jax.checking.compare import compare_rounding, rounding_allowed
from moe_jax.checking.invariance import MANY, check, plan, with_tokens
from moe_jax.cli import run_command
from moe_jax.config.overrides import load_config
from moe_jax.models import text
from moe_jax.routing import Mixtral
from moe_jax.routing.choice import router_logits, softmax, top
from moe_jax.training.experiment import Experiment
from tests.checking.trials import trial

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
NAME = "1 device rows dtype=bfloat16"


def arm(*overrides):
    """The report of the arm alone, and its plan."""
    planned = plan(load_config(QUICKSTART, overrides, Experiment), jax.devices(), steps=1)
    chosen = tuple(v for v in planned.variants if v.dtype == "bfloat16")
    planned = dataclasses.replace(planned, variants=chosen)
    return check(planned), planned


@pytest.mark.grid
def test_bfloat16_is_within_its_rounding(capsys, tmp_path):
    """Through the command: all parameters are compared, no narrow sum is named."""
    file = tmp_path / "report.json"
    argv = [f"--config={QUICKSTART}", "--only=bfloat16", "--steps=1", f"--json={file}"]
    code = run_command(cli.main, usage=cli.USAGE, flags=cli.FLAGS, argv=argv)
    message = capsys.readouterr().out
    assert code == 0, message
    assert (
        f"{NAME} " in message and "equal [2]" in message and f"one step on {MANY} tokens" in message
    )
    (variant,) = json.loads(file.read_text())["variants"]
    assert (variant["name"], variant["dtype"], variant["narrow_sums"]) == (NAME, "bfloat16", [])
    sizes = {d["quantity"]: d["size"] for d in variant["differences"]}
    assert {"gradient of embedding in bfloat16", "gradient of head in bfloat16"} <= sizes.keys()
    assert all("gradient of" in quantity for quantity in sizes)
    # It is bfloat16 that ran: float32 is a thousand times nearer.
    assert min(sizes.values()) > 1e-4


@pytest.mark.grid
def test_an_embedding_summed_in_bfloat16_raises_an_alarm(monkeypatch):
    """The table cast before the look-up: then the gradient's scatter adds up in bfloat16."""

    def narrow(table_VD, ids, dtype):
        return table_VD.astype(dtype)[ids]

    monkeypatch.setattr(text, "rows_of_table", narrow)
    report, planned = arm()
    (outcome,) = report.outcomes
    too_far = {d.quantity: d.size for d in outcome.differences if d.excess > 1}
    assert too_far.keys() == {"gradient of embedding in bfloat16"}
    assert too_far.popitem()[1] > 0.1
    assert "dtype bfloat16 (1 of 1 variants with it differ)" in report.blame[0]
    assert any("scatter-add" in found and "bfloat16" in found for found in outcome.narrow)
    message = table.foot(report, planned)
    assert "a narrow sum: scatter-add of" in message and "narrow" in message
    assert "DIFFERS [2]: gradient of embedding in bfloat16" in table.row(outcome, planned)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Narrow(Mixtral):
    """Mixtral whose loads are added up in the type of its inputs."""

    def route(self, params, state, inputs):
        logits_TE = router_logits(params, inputs)
        best_TK, expert_TK = top(logits_TE, self.k)
        prob_TE = softmax(logits_TE)
        seen_T = jax.lax.cumsum(inputs.x_TD[:, 0])  # in bfloat16
        best_TK += 1e-3 * seen_T[:, None].astype(jnp.float32)
        return self.decide(softmax(best_TK), expert_TK, inputs, logits_TE, prob_TE)


@pytest.mark.grid
def test_a_narrow_sum_of_a_router_from_outside_is_named():
    """With its file, its function and how many terms it has, where gradients do not show it."""
    report, planned = arm(("moe.router.kind", f"{__name__}:Narrow"))
    (outcome,) = report.outcomes
    assert outcome.equal
    (found,) = {text for text in outcome.narrow if text.startswith("cumsum")}
    assert found == "cumsum of 16 in bfloat16: test_rounding.py, route"
    assert f"    a narrow sum: {found}" in table.foot(report, planned)


def test_what_is_allowed_goes_by_the_kind_of_the_parameter():
    names = ("layers/00/moe/router/kernel", "layers/00/moe/experts/w_up", "embedding", "head")
    allowed = [rounding_allowed(name) for name in (*names, "layers/00/attention/wq")]
    assert len(set(allowed)) == 5 and max(allowed) == allowed[0]
    w = np.array([3.0, 4.0])
    gradients = {"head": w, "router": np.array([1e-9, 0.0])}
    off = {"head": w * (1 + 1.1 * rounding_allowed("head")), "router": np.array([1e-3, 0.0])}
    found = compare_rounding(trial(gradients=off), trial(gradients=gradients))
    # A gradient that is nothing beside the others is rounding alone.
    assert [d.excess > 1 for d in found] == [True, False]


@pytest.mark.parametrize("length", [32, 25, 2**15])
def test_tokens_of_the_arm(length):
    small, _ = plan_sizes(length)
    many = with_tokens(small, MANY)
    assert many.batch_size % 16 == 0 and many.batch_size >= 16
    assert length > 1000 or MANY - 16 * length < many.batch_size * length <= MANY


def plan_sizes(length):
    overrides = (("data.sequence_length", length),)
    planned = plan(
        load_config(QUICKSTART, overrides, Experiment),
        jax.devices(),
        keep=("data.sequence_length",),
    )
    return planned.small, planned
