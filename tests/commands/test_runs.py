"""Whole runs through the commands: train, stop, kill, resume, evaluate, generate, load, report."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time

import numpy as np
import pytest

from tests.commands.runs import lines, results, start

NAMES = (  # the contract of metrics.jsonl
    "loss",
    "cross_entropy",
    "perplexity",
    "bits_per_byte",
    "accuracy",
    "learning_rate",
    "grad_norm",
    "flops_per_token",
    "moe/load_balance_loss",
    "moe/router_z_loss",
    "moe/max_violation",
    "moe/load_cv",
    "moe/router_entropy",
    "moe/dropped_fraction",
    "moe/dropped_token_fraction",
    "moe/overflow_fraction",
    "moe/dead_experts",
)


def test_files_and_names_of_a_run(trained):
    for name in ("config.json", "environment.json", "metrics.jsonl", "tensorboard", "checkpoints"):
        assert (trained / name).exists(), name
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["mesh"]["data"] == 8
    train, evaluation = lines(trained, "train"), lines(trained, "eval")
    last = {k: v for line in train for k, v in line.items()}
    for name in NAMES:
        assert name in last, name
        assert isinstance(last[name], float | int), name
    for layer in ("00", "01"):
        assert f"moe/layer_{layer}/max_violation" in last
        load = last[f"moe/layer_{layer}/load"]
        assert len(load) == 4 and abs(sum(load) - 1) < 1e-6
        assert len(last[f"moe/layer_{layer}/expert_grad_norm"]) == 4
    assert {"moe/probe/churn", "moe/probe/overlap", "moe/probe/margin"} <= set(last)
    assert [line["step"] for line in evaluation] == [6, 12]
    assert "bits_per_byte" in evaluation[-1] and "moe/max_violation" in evaluation[-1]
    assert evaluation[-1]["cross_entropy"] < evaluation[0]["cross_entropy"] < np.log(264)


def test_finished_run_says_so(cli, tiny, trained):
    before = (trained / "metrics.jsonl").read_bytes()
    code, out, _ = cli("train", f"--config={tiny}", f"--workdir={trained}")
    assert code == 0 and "complete" in out
    assert (trained / "metrics.jsonl").read_bytes() == before


@pytest.mark.lab
@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.lab)])
def test_killed_again_and_again_ends_as_if_it_was_not(kills, tiny, trained, tmp_path):
    """kill -9 at random moments, then to the end: every metric bit for bit."""
    workdir = tmp_path / "run"
    rng = random.Random(0)
    for _ in range(kills):
        process = start(tiny, workdir)
        seen = len(lines(workdir)) if (workdir / "metrics.jsonl").exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            # From the moment that the run moves on, any moment may be the last.
            time.sleep(0.05)
            moved = (workdir / "metrics.jsonl").exists() and len(
                (workdir / "metrics.jsonl").read_text().splitlines()
            ) > seen
            if moved and rng.random() < 0.3:
                break
        process.kill()
        process.communicate()
    process = start(tiny, workdir)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert results(workdir) == results(trained)


def test_sigterm_saves_and_the_run_goes_on(tiny, trained, tmp_path):
    workdir = tmp_path / "run"
    process = start(tiny, workdir)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (workdir / "metrics.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    if "complete" not in out and "SIGTERM" in out:
        assert "resumes" in out
        steps = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
        assert max(steps) < 12
    process = start(tiny, workdir)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert results(workdir) == results(trained)


@pytest.mark.lab
def test_other_mesh_goes_on_with_the_same_losses(cli, tiny, trained, tmp_path):
    """A checkpoint of 8 devices along data continues on data x expert = 2 x 4."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    flags = ["--config.mesh.data=2", "--config.mesh.expert=4"]
    code, _, err = cli("train", f"--config={tiny}", f"--workdir={workdir}", *flags)
    assert code == 0, err
    for here, there in zip(lines(workdir), lines(trained), strict=True):
        for name in ("loss", "cross_entropy"):
            if name in here:
                np.testing.assert_allclose(here[name], there[name], rtol=1e-5)


def test_evaluate_repeats_the_run_and_takes_other_capacities(cli, trained, tmp_path):
    file = tmp_path / "evaluation.json"
    argv = [f"--workdir={trained}", "--capacity_factor=none,0.5", "--batches=2", f"--json={file}"]
    code, out, err = cli("evaluate", *argv)
    assert code == 0, err
    dropless, tight = (result["metrics"] for result in json.loads(file.read_text()))
    last = lines(trained, "eval")[-1]
    np.testing.assert_allclose(dropless["cross_entropy"], last["cross_entropy"], rtol=1e-5)
    assert dropless["moe/dropped_fraction"] == 0 < tight["moe/dropped_fraction"]
    assert tight["moe/capacity_factor"] == 0.5
    assert "dropped_fraction" in out


@pytest.mark.lab
def test_evaluate_takes_other_numbers_of_experts(cli, trained, tmp_path):
    """Of a run with k=2; its optimizer and its probe are not read."""
    file = tmp_path / "evaluation.json"
    argv = [f"--workdir={trained}", "--k=1,2,4", "--batches=2", f"--json={file}"]
    code, out, err = cli("evaluate", *argv)
    assert code == 0, err
    one, two, four = (result["metrics"] for result in json.loads(file.read_text()))
    last = lines(trained, "eval")[-1]
    np.testing.assert_allclose(two["cross_entropy"], last["cross_entropy"], rtol=1e-5)
    assert two["cross_entropy"] != one["cross_entropy"] != four["cross_entropy"]
    assert "moe.router.k=4" in out
    code, _, err = cli("evaluate", f"--workdir={trained}", "--k=5")
    assert code == 2 and "5" in err and "4" in err


@pytest.mark.lab
def test_generate_is_seeded_and_shows_routing(cli, trained):
    argv = [f"--workdir={trained}", "--prompt=def ", "--max_tokens=12"]
    first, again = cli("generate", *argv), cli("generate", *argv)
    assert first[0] == 0 and first[1] == again[1]
    assert first[1].startswith("def ")
    assert cli("generate", *argv, "--seed=1")[1] != first[1]
    code, out, _ = cli("generate", *argv, "--show_routing")
    assert code == 0
    text, _, table = out.partition("\n\n")
    assert text + "\n" == first[1]
    table = table.splitlines()
    assert "layer 00" in table[0] and "layer 01" in table[0]
    weights = [float(cell.split(":")[1]) for cell in table[1].split() if ":" in cell]
    np.testing.assert_allclose(sum(weights), 2.0, atol=0.03)  # 2 layers, each sums to 1


def test_load_for_notebooks(trained):
    import moe_jax

    run = moe_jax.load(trained)
    assert run.step == 12 and run.config.moe.num_experts == 4
    batch = next(run.batches())
    routes = run.route(batch)
    assert set(routes) == {0, 1}
    B, S = batch["tokens"].shape
    assert routes[0].expert_BSK.shape == (B, S - 1, 2)
    assert routes[0].prob_BSE.shape == (B, S - 1, 4)
    valid = batch["segments"][:, :-1] > 0
    np.testing.assert_allclose(routes[1].prob_BSE[valid].sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(routes[1].weight_BSK[valid].sum(-1), 1, rtol=1e-5)
    chosen = np.argsort(-routes[1].prob_BSE, axis=-1, kind="stable")[..., :2]
    assert np.array_equal(chosen[valid], routes[1].expert_BSK[valid])
    assert run.metrics[-1]["split"] == "eval"


def test_a_loaded_run_shows_itself_in_a_line(trained):
    """A notebook printed all weights of it."""
    import moe_jax

    assert re.fullmatch(
        r"LoadedRun\('.*trained', step 12, 16,848 parameters, 13,776 active per token\)",
        repr(moe_jax.load(trained)),
    )


def test_a_prompt_is_the_start_of_a_document(trained):
    """Its tokens are routed as in a row of the data that begins with them."""
    import moe_jax

    run = moe_jax.load(trained)
    tokenizer = run.rows.tokenizer
    ids = list(tokenizer.encode("def f"))
    batch = next(run.batches())
    tokens, segments = np.zeros_like(batch["tokens"]), np.zeros_like(batch["segments"])
    tokens[:, : len(ids) + 1], segments[:, : len(ids) + 1] = [tokenizer.bos_id, *ids], 1
    routes = run.route({"tokens": tokens, "segments": segments})
    message = list(run.generate("def f", 0, show_routing=True))
    assert [token.id for token in message] == ids
    for place, token in enumerate(message):
        for layer in (0, 1):
            expected = routes[layer].expert_BSK[0, place + 1]
            np.testing.assert_array_equal(token.expert_LK[layer], expected)


def test_report(cli, trained):
    code, _, err = cli("report", f"--workdir={trained}")
    assert code == 0, err
    html = (trained / "report.html").read_text()
    assert "max violation" in html.lower() and "http" + "://" not in html.replace(
        "http://www.w3.org", ""
    )


@pytest.mark.lab
def test_dense_model_trains_and_is_evaluated(cli, tiny, tmp_path):
    argv = [f"--config={tiny}", f"--workdir={tmp_path / 'run'}", "--config.moe.every=0"]
    code, _, err = cli("train", *argv, "--config.steps=6")
    assert code == 0, err
    names = {name for line in lines(tmp_path / "run") for name in line}
    assert "cross_entropy" in names and not any(name.startswith("moe/") for name in names)
    assert cli("evaluate", f"--workdir={tmp_path / 'run'}")[0] == 0
    code, out, _ = cli("train", *argv, "--config.steps=6")
    assert code == 0 and "complete" in out


@pytest.mark.lab
def test_warm_start_with_other_experts(cli, tiny, trained, tmp_path):
    argv = [f"--config={tiny}", f"--workdir={tmp_path / 'run'}", f"--warm_start={trained}"]
    code, out, err = cli("train", *argv, "--config.moe.num_experts=8", "--config.steps=2")
    assert code == 0, err
    assert "w_up" in out and "router" in out
    first = lines(tmp_path / "run", "eval")[-1]["cross_entropy"]
    assert first < lines(trained, "eval")[0]["cross_entropy"]
