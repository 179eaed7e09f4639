"""What evaluate says beside metrics: counterfactuals, traces and replays, domains, the leak."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

import moe_jax
from moe_jax import evaluate
from moe_jax.analysis.leak import replace_later
from moe_jax.analysis.preferences import load
from moe_jax.analysis.trace import Trace
from moe_jax.config.errors import UserError


def evaluated(cli, tmp_path, workdir, *argv):
    file = tmp_path / "evaluation.json"
    code, out, err = cli("evaluate", f"--workdir={workdir}", f"--json={file}", *argv)
    assert code == 0, err
    return {result["told"]: result["metrics"] for result in json.loads(file.read_text())}, out


@pytest.mark.grid
def test_other_routes_are_worse_and_told(cli, trained, tmp_path):
    argv = ("--mask_best=1", "--route_by=round_robin", "--batches=2", "--k=2")
    results, out = evaluated(cli, tmp_path, trained, *argv)
    assert set(results) == {"moe.router.k=2", "mask_best=1", "route_by=round_robin"}
    own = results["moe.router.k=2"]
    for message in ("mask_best=1", "route_by=round_robin"):
        assert results[message]["cross_entropy"] != own["cross_entropy"]
        assert message in out
    # 2 of 4 experts in turn: an even load.
    assert results["route_by=round_robin"]["moe/max_violation"] == pytest.approx(0, abs=1e-6)


@pytest.mark.grid
def test_drop_orders_differ_where_capacity_is_short(cli, trained, tmp_path):
    argv = ("--capacity_factor=0.5", "--drop_order=token_major,choice_major", "--batches=2")
    results, _ = evaluated(cli, tmp_path, trained, *argv)
    by_order = list(results.values())
    assert len(by_order) == 2
    ranks = [metrics["moe/layer_00/dropped_by_rank"] for metrics in by_order]
    # Choice-major serves all first choices before any second one.
    assert ranks[1][0] < ranks[0][0] and ranks[1][1] > ranks[0][1]
    places = by_order[0]["moe/layer_00/dropped_by_position"]
    assert places[0] == 0 < places[-1]  # token-major: the last tokens of a row lose
    for metrics in by_order:
        assert sum(metrics["moe/layer_00/experts_histogram"]) == pytest.approx(1)
        assert sum(metrics["moe/layer_00/gate_mass"]) == pytest.approx(1)
        assert metrics["moe/largest_logit"] > 0
        assert metrics["moe/experts_per_token"] == pytest.approx(2)


def test_a_replay_of_a_trace_is_the_run(cli, trained, tmp_path):
    file = tmp_path / "routes.npz"
    argv = (f"--trace={file}", "--batches=2", "--domains")
    results, out = evaluated(cli, tmp_path, trained, *argv)
    assert f"wrote 16 rows to {file}" in out and "specialisation" in next(iter(results.values()))
    trace, run = Trace.read(file), moe_jax.load(trained)
    batch = next(run.batches(1))
    routes = run.route(batch)
    for row, layer in enumerate(trace.layers_L):
        np.testing.assert_array_equal(trace.expert_LNSK[row, :8], routes[int(layer)].expert_BSK)
    results, _ = evaluated(cli, tmp_path, trained, f"--replay={file}")
    (replayed,) = results.values()
    direct = run.evaluate(2)
    assert replayed["cross_entropy"] == pytest.approx(direct["cross_entropy"], rel=1e-5)
    targets = trace.nats_NS != 0
    assert trace.nats_NS[targets].mean() == pytest.approx(direct["cross_entropy"], rel=1e-5)
    np.testing.assert_allclose(replayed["moe/layer_00/load"], direct["moe/layer_00/load"])


@pytest.mark.grid
@pytest.mark.parametrize(
    ("size", "batches"),
    list(itertools.product((3, 5, 500), (None, 2))),
)
def test_a_replay_counts_every_row_of_the_trace_in_batches_of_any_size(trained, size, batches):
    run = moe_jax.load(trained)
    trace, direct = run.trace(batches), run.evaluate(batches)
    other = moe_jax.load(trained, overrides={"evaluation.batch_size": size})
    assert trace.rows % size
    replayed = other.replay(trace)
    assert replayed["cross_entropy"] == pytest.approx(direct["cross_entropy"], rel=1e-5)
    for name in ("load", "experts_histogram"):
        np.testing.assert_array_equal(
            replayed[f"moe/layer_01/{name}"], direct[f"moe/layer_01/{name}"]
        )


def test_a_trace_with_more_rows_than_the_data_is_refused(trained):
    run = moe_jax.load(trained)
    trace = run.trace(-1)
    longer = {
        field.name: np.concatenate([value, value], axis=int(field.name.endswith("LNSK")))
        for field in dataclasses.fields(trace)
        if field.name.split("_")[-1] in ("N", "NS", "LNSK")
        and (value := getattr(trace, field.name)) is not None
    }
    with pytest.raises(UserError, match=r"the trace has more rows \(\d+\) than the data"):
        run.replay(dataclasses.replace(trace, **longer))


@pytest.mark.grid
def test_utilisation_does_not_depend_on_the_rows_that_fill_the_last_batch(trained):
    """The slots of rows of padding are nobody's."""
    factor = {"evaluation.capacity_factor": 0.75}
    trace = moe_jax.load(trained, overrides=factor).trace(-1)
    rows = len(moe_jax.load(trained).rows)
    slots = rows * 4 * 12  # ceil(0.75 * 2 * 32 / 4) of each of four experts
    assert trace.rows == rows and rows % 8  # no row of padding is in a trace
    accepted = np.sum(trace.kept_LNSK & (trace.expert_LNSK < 4), axis=(1, 2, 3))
    for size in (8, 13, 500):
        run = moe_jax.load(trained, overrides={**factor, "evaluation.batch_size": size})
        metrics = run.evaluate(-1)
        found = [metrics[f"moe/layer_0{n}/capacity_utilization"] for n in range(2)]
        np.testing.assert_allclose(found, accepted / slots, rtol=1e-6)


@pytest.mark.grid
def test_load_of_a_trace_is_the_evaluations_before_drops(trained):
    run = moe_jax.load(trained, overrides={"evaluation.capacity_factor": 0.5})
    trace, metrics = run.trace(2), run.evaluate(2)
    assert metrics["moe/dropped_fraction"] > 0.2
    for row, layer in zip(load(trace), trace.layers_L, strict=True):
        np.testing.assert_allclose(row, metrics[f"moe/layer_{layer:02d}/load"], rtol=1e-6)


@pytest.mark.lab
def test_leak_of_a_sure_model_is_a_mean_over_all_targets(trained):
    """Logits so large that most targets have exactly 0 nats: they count nonetheless."""
    tight = {"evaluation.capacity_factor": 0.5, "moe.router.drop_order": "choice_major"}
    run = moe_jax.load(trained, overrides=tight)
    sure = {**run.params, "head": 300 * run.params["head"]}
    run = dataclasses.replace(run, state=dataclasses.replace(run.state, params=sure))
    raw = next(run.batches(1))

    def nats(tokens):
        put = run.program.put({**raw, "tokens": tokens})
        scalars = run.program.scalars(run.step)
        observe = run.program.observe_step
        return np.asarray(observe(sure, run.state.router_state, put, scalars).loss_BS, np.float64)

    before, segment = nats(raw["tokens"]), raw["segments"]
    counts = (segment[:, 1:] > 0) & (segment[:, 1:] == segment[:, :-1])
    total = targets = 0.0
    for i, part in enumerate((0.25, 0.5, 0.75)):
        cut = int(32 * part)
        after = nats(replace_later(raw["tokens"], segment, cut, i))
        total += (after - before)[:, : cut - 1].sum()
        targets += counts[:, : cut - 1].sum()
        assert np.any(before[:, : cut - 1][counts[:, : cut - 1]] == 0)
    assert abs(total / targets) > 1e-3
    assert run.leak(1)["nats"] == pytest.approx(total / targets, rel=1e-5)


@pytest.mark.grid
def test_a_token_choice_model_without_capacity_does_not_leak(cli, trained, tmp_path):
    results, _ = evaluated(cli, tmp_path, trained, "--leak", "--batches=1")
    assert len(results) == 2
    for metrics in results.values():
        assert metrics["leak/routes_changed"] == 0
        assert metrics["leak/absolute_nats"] < 1e-4
        assert metrics["leak/tokens"] > 100


@pytest.mark.grid
def test_choice_major_capacity_leaks(trained):
    """With capacity and choice-major drops, later tokens displace earlier ones."""
    tight = {"evaluation.capacity_factor": 0.5, "moe.router.drop_order": "choice_major"}
    run = moe_jax.load(trained, overrides=tight)
    assert run.leak(1)["routes_changed"] > 0.01
    causal = {"evaluation.capacity_factor": 0.5, "moe.router.drop_order": "token_major"}
    assert moe_jax.load(trained, overrides=causal).leak(1)["routes_changed"] == 0


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--mask_best=4", "from 1 to 3"),
        ("--route_by=mixtral", "without parameters"),
        ("--route_by=hahs", "hash"),
        ("--replay=nowhere.npz", "no such trace"),
        ("--json=/nowhere/at/all.json", "--json=/nowhere/at/all.json: no such folder"),
        ("--trace=/nowhere/at/all.npz", "--trace=/nowhere/at/all.npz: no such folder"),
        ("--json=/", "--json=/: is a folder"),
        ("--drop_order=sideways", "drop_order"),
    ],
)
def test_bad_flags(cli, trained, flag, message):
    code, out, err = cli("evaluate", f"--workdir={trained}", flag)
    assert code == 2 and message in err and "Traceback" not in err
    assert "cross_entropy" not in out  # before it evaluates


def test_without_flags_it_repeats_the_runs_own_evaluation(cli, trained, tmp_path):
    """The same batches, capacity and mesh: every number to the last digit."""
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["split"] == "eval"
    file = tmp_path / "result.json"
    code, out, err = cli("evaluate", f"--workdir={trained}", f"--json={file}")
    assert code == 0, err
    (result,) = json.loads(file.read_text())
    assert {k: v for k, v in last.items() if k not in ("step", "split")} == result["metrics"]
    number = len(moe_jax.load(trained).rows)
    assert f"as the run evaluates itself (dropless), on the first 16 of {number} rows" in out
    code, out, err = cli("evaluate", f"--workdir={trained}", f"--json={file}", "--all")
    assert code == 0, err
    assert f"on all {number} rows of the validation split" in out
    (whole,) = json.loads(file.read_text())
    assert whole["metrics"]["cross_entropy"] != last["cross_entropy"]


def test_an_evaluation_says_that_training_had_another_capacity(cli, trained):
    flags = ("--capacity_factor=1.0", "--all")
    _, out, _ = cli("evaluate", f"--workdir={trained}", *flags)
    assert f"evaluation.capacity_factor=1.0, on all {len(moe_jax.load(trained).rows)} rows" in out
    config = moe_jax.load(trained, overrides={"moe.capacity_factor": 1.25}).config
    assert evaluate.routing_of(config) == "dropless; training: capacity factor 1.25"
