"""A careless week: folders of odd names, kills at any moment, two at once, a full disk, other data
and settings between save and resume. Each run ends bit for bit as an undisturbed one, or says what
is wrong and loses nothing. Drawn anew each time; the seed is printed."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_jax.training.checkpoint import CheckpointConfig, Checkpoints
from tests.commands.runs import results, start

SEED = int(os.environ.get("MOE_JAX_FUZZ_SEED") or random.SystemRandom().getrandbits(32))
NAMES = (
    *("a b", "it's", 'say "x"', "naïve-模型-Ω", "-dash", "--workdir=x", "x" * 200, "a,b", "$HOME"),
    *("~tilde", "%20", "a#b&c=1", "tab\there", "line\nbreak", "{brace}", "semi;colon", ".hidden"),
    *("trailing ", "100", "step.saving"),
)
REFUSED = ("br[1]", "back\\slash", "all*", "which?")
pytestmark = pytest.mark.lab


@pytest.fixture
def rng(request) -> random.Random:
    print(f"MOE_JAX_FUZZ_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


def until_killed(config: str, workdir: Path, rng: random.Random) -> None:
    """Starts the run and kills it with -9 between its first words and its end."""
    process = start(config, workdir)
    deadline = time.monotonic() + rng.uniform(2, 25)
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.communicate()


def to_the_end(config: str, workdir: Path, *flags: str) -> None:
    _, err = (process := start(config, workdir, *flags)).communicate(timeout=300)
    assert process.returncode == 0, err


@pytest.mark.parametrize("place", range(3))
def test_odd_names_and_kills(place, rng, tiny, trained, tmp_path):
    name = rng.choice(NAMES[place::3])
    print(repr(name))
    workdir = tmp_path / name
    for _ in range(rng.randint(1, 3)):
        until_killed(tiny, workdir, rng)
    to_the_end(tiny, workdir)
    assert results(workdir) == results(trained)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing lies beside it
    with Checkpoints(workdir / "checkpoints", CheckpointConfig(), read_only=True) as saved:
        assert all(saved.problem(step) is None for step in saved.steps())


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_cannot_be(name, tiny, tmp_path):
    _, err = (process := start(tiny, tmp_path / name)).communicate(timeout=120)
    assert process.returncode == 2 and name in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_dash_and_a_relative_path(tiny, trained, tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "moe_jax.train", f"--config={tiny}", "--workdir=-run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert results(tmp_path / "-run") == results(trained)


def test_several_at_once(rng, tiny, trained, tmp_path):
    """One of them trains, whoever comes first; the others say so; none breaks it."""
    workdir = tmp_path / "run"
    processes = [start(tiny, workdir) for _ in range(3)]
    ended = [(process.communicate(timeout=600)[1], process.returncode) for process in processes]
    codes = sorted(code for _, code in ended)
    assert codes[0] == 0 and set(codes) <= {0, 2}, ended
    refused = [err for err, code in ended if code == 2]
    assert all("is writing here" in err and "Traceback" not in err for err in refused), refused
    assert results(workdir) == results(trained)


def test_reports_and_evaluations_beside_a_run(tiny, trained, tmp_path):
    """They read whole files and replace whole files: none waits, none is disturbed."""
    workdir = tmp_path / "run"
    training = start(tiny, workdir)
    with Checkpoints(workdir / "checkpoints", CheckpointConfig(), read_only=True) as saved:
        while training.poll() is None and not saved.steps():
            time.sleep(0.05)
    command = [sys.executable, "-m"]
    others = [
        subprocess.Popen([*command, *words, f"--workdir={workdir}"], stderr=subprocess.PIPE)
        for words in (["moe_jax.report"], ["moe_jax.report"], ["moe_jax.evaluate", "--batches=1"])
    ]
    for process in others:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    _, err = training.communicate(timeout=300)
    assert training.returncode == 0, err
    assert results(workdir) == results(trained)
    page = (workdir / "report.html").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")


@pytest.mark.parametrize("place", range(2))
def test_a_full_disk(place, rng, tiny, trained, tmp_path):
    """No file may grow beyond a drawn size: a message, and with room the run goes on."""
    workdir, most = tmp_path / "run", rng.choice([20_000, 60_000, 120_000, 250_000])

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    process = subprocess.run(
        [sys.executable, "-m", "moe_jax.train", f"--config={tiny}", f"--workdir={workdir}"],
        preexec_fn=bounded,
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(most, process.returncode, process.stderr[-500:])
    assert process.returncode == 0 or "Traceback" not in process.stderr
    to_the_end(tiny, workdir)
    assert results(workdir) == results(trained)


def test_what_changes_between_save_and_resume(rng, tiny, trained, tmp_path):
    """One thing after the other, in a drawn order: refused with its name, and nothing is lost."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    for step in (8, 12):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    changes = ["seed=1", "batch_size=16", "moe.router.k=1", "optimizer.learning_rate=0.5",
               "data.sequence_length=16", "steps=20", "moe.num_experts=8"]  # fmt: skip
    rng.shuffle(changes)
    for change in changes:
        _, err = (process := start(tiny, workdir, f"--config.{change}")).communicate(timeout=120)
        assert process.returncode == 2 and change.partition("=")[0] in err, err
    to_the_end(tiny, workdir)
    assert results(workdir) == results(trained)
