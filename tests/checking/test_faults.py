"""The check passes on what is right, and finds faults that were put in on purpose: it names the
factor under which the numbers change."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from moe_jax import check as cli
from moe_jax.checking.invariance import check, plan
from moe_jax.cli import run_command
from moe_jax.config.overrides import load_config
from moe_jax.nn.moe_shard import ShardBody
from moe_jax.routing import Mixtral
from moe_jax.routing.choice import router_logits
from moe_jax.routing.types import SoftPlan
from moe_jax.training.experiment import Experiment
from moe_jax.training.step import Step

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
TOKENS = ("data", "fsdp", "expert", "sequence")  # the axes that split tokens


def report_of(names, overrides=(), steps=2):
    """The report of the quickstart's check, of the variants of these names only."""
    experiment = load_config(QUICKSTART, overrides, Experiment)
    planned = plan(experiment, jax.devices(), steps=steps)
    chosen = tuple(variant for variant in planned.variants if variant.name in names)
    assert len(chosen) == len(names)
    return check(dataclasses.replace(planned, variants=chosen))


def outcomes(report):
    return {outcome.variant.name: outcome for outcome in report.outcomes}


@pytest.mark.grid
def test_quickstart_is_equal_in_all_variants(capsys, tmp_path):
    """Every mesh axis, a transport, micro-batches and recomputation, through the command."""
    file = tmp_path / "report.json"
    names = ("data=2 expert=2 sequence=2", "fsdp=2 expert=2 tensor=2", "rows/gather")
    for only in names:
        argv = [f"--config={QUICKSTART}", f"--only={only}", f"--json={file}", "--steps=2"]
        code = run_command(cli.main, usage=cli.USAGE, flags=cli.FLAGS, argv=argv)
        message = capsys.readouterr().out
        assert code == 0, message
        assert "all 1 variants equal the reference" in message
        assert "moe.group_size None -> 16" in message
        report = json.loads(file.read_text())
        (variant,) = report["variants"]
        assert report["equal"] and variant["equal"] and only in variant["name"]
        compared = {d["quantity"].split(",")[0] for d in variant["differences"]}
        assert {"loss", "gradient norm", "gradient of layers/00/moe/router/kernel"} <= compared
        assert all(step["loss"] > 0 for step in variant["steps"])


@pytest.mark.grid
def test_finds_a_balance_loss_of_local_token_counts(monkeypatch):
    """Probabilities are averaged over the tokens of the device, then over devices: the mistake of
    a balance loss that is taken inside of a shard and averaged."""
    right = ShardBody.__call__

    def wrong(self, *arguments):
        outputs = right(self, *arguments)
        report = outputs.report
        local = jnp.sum(report.sums.valid).astype(jnp.float32)
        mean = jax.lax.pmean(local, TOKENS)
        prob = report.sums.prob_E * mean / jnp.maximum(local, 1)
        sums = dataclasses.replace(report.sums, prob_E=prob)
        return dataclasses.replace(outputs, report=dataclasses.replace(report, sums=sums))

    monkeypatch.setattr(ShardBody, "__call__", wrong)
    names = {"data=8 rows": False, "tensor=4 rows": True, "1 device rows accumulation=2": True}
    report = report_of(names)
    assert {name: o.equal for name, o in outcomes(report).items()} == names
    assert report.blame == ["mesh axis data (1 of 1 variants with it differ)"]
    # Not only in what is reported: the loss and the router's gradient are wrong.
    too_far = {d.quantity for d in outcomes(report)["data=8 rows"].differences if d.excess > 1}
    assert {"loss, step 1", "gradient of layers/00/moe/router/kernel, step 1"} <= too_far


@pytest.mark.grid
def test_finds_a_noise_key_of_the_device(monkeypatch):
    right = ShardBody.__call__

    def wrong(self, a):
        group = jnp.zeros_like(a.group_BP) + jax.lax.axis_index(TOKENS)
        return right(self, dataclasses.replace(a, group_BP=group))

    monkeypatch.setattr(ShardBody, "__call__", wrong)
    names = {"data=8 rows": False, "tensor=4 rows": True}
    report = report_of(names, [("moe.router.kind", "noisy_top_k")], steps=1)
    assert {name: o.equal for name, o in outcomes(report).items()} == names
    assert report.blame == ["mesh axis data (1 of 1 variants with it differ)"]
    assert outcomes(report)["data=8 rows"].first.quantity.startswith("count of wanted_E")


BIASED = [("moe.router.kind", "tests.checking.routers:Biased")]


@pytest.mark.grid
def test_finds_a_bias_updated_per_micro_batch(monkeypatch):
    """And a router from outside the package, without the fault, is equal."""
    names = ("1 device rows accumulation=2", "data=2 expert=4 rows/all_to_all")
    report = report_of(names, BIASED)
    assert report.equal
    biases = report.references[0].trial.steps[-1].router_state
    assert abs(biases["00/bias_E"]).max() == pytest.approx(0.02)

    right = Step._update_routers

    def wrong(self, state, sums, router):
        for _ in range(self.accumulation):
            state = right(self, state, sums, router)
        return state

    monkeypatch.setattr(Step, "_update_routers", wrong)
    report = report_of(names, BIASED)
    assert {name: o.equal for name, o in outcomes(report).items()} == dict.fromkeys(
        names[:1], False
    ) | {names[1]: True}
    assert report.blame == ["accumulation (1 of 1 variants with it differ)"]
    assert outcomes(report)[names[0]].first.quantity == "router state 00/bias_E, step 1"


@pytest.mark.grid
def test_says_that_a_micro_batch_scope_is_not_compared(capsys):
    """The loss of that scope is left out, everything else is compared."""
    scope = "--config.moe.losses.load_balance.scope=micro_batch"
    argv = [f"--config={QUICKSTART}", scope, "--steps=1", "--only=rows accumulation=4"]
    code = run_command(cli.main, usage=cli.USAGE, flags=cli.FLAGS, argv=argv)
    message = capsys.readouterr().out
    assert code == 0, message
    assert "equal [1]" in message and "1 device dense (reference [1])" in message
    rows = [line.split() for line in message.splitlines() if line.startswith("1 device")]
    loss, loss_without, loss_of_variant = (float(next(c for c in r if "." in c)) for r in rows)
    assert loss_of_variant == pytest.approx(loss_without, rel=1e-5) != pytest.approx(loss, rel=1e-4)
    assert "[1] not compared: moe.losses.load_balance, of scope micro_batch" in message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soft(Mixtral):
    """Every expert has two slots, a softmax over the group's tokens each."""

    soft = True

    def route(self, params, state, inputs):
        _, sums = super().route(params, state, inputs)
        logits_TE = router_logits(params, inputs)
        logits_TEC = jnp.stack([logits_TE, -logits_TE], axis=2)
        valid_T11 = inputs.valid_T[:, None, None]
        share_TEC = jax.nn.softmax(jnp.where(valid_T11, logits_TEC, -1e9), axis=0)
        weight_TEC = jax.nn.softmax(logits_TEC, axis=(1, 2))
        plan = SoftPlan(
            dispatch_TEC=jnp.where(valid_T11, share_TEC, 0),
            combine_TEC=jnp.where(valid_T11, weight_TEC, 0),
        )
        return plan, sums


@pytest.mark.grid
def test_a_soft_router_and_its_layout(capsys):
    argv = [f"--config={QUICKSTART}", f"--config.moe.router.kind={__name__}:Soft", "--steps=1"]
    options = dict(usage=cli.USAGE, flags=cli.FLAGS)
    assert run_command(cli.main, **options, argv=argv) == 2
    assert "moe.layout = 'rows': this router mixes tokens" in capsys.readouterr().err
    argv += ["--config.moe.layout=slots_einsum", "--only=expert=4 slots_einsum/gather"]
    assert run_command(cli.main, **options, argv=argv) == 0, capsys.readouterr().out


def test_an_error_in_a_variant_is_told_and_counts_as_a_difference(monkeypatch, capsys):
    right = ShardBody.__call__

    def wrong(self, *arguments):
        if jax.lax.axis_size(self.axes.tensor) > 1:
            raise NotImplementedError("no tensor axis here")
        return right(self, *arguments)

    monkeypatch.setattr(ShardBody, "__call__", wrong)
    argv = [f"--config={QUICKSTART}", "--steps=1", "--only=tensor=4", "--debug"]
    code = run_command(cli.main, usage=cli.USAGE, flags=cli.FLAGS, argv=argv)
    message, error = capsys.readouterr()
    assert code == 1
    assert "Traceback" in error and "in wrong" in error
    assert "FAILED: NotImplementedError: no tensor axis here" in message
    assert "1 of 1 variants differ; to blame: layout rows (1 of 1" in message
