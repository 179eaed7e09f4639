"""Searches with stand-ins for training runs: spaces, pruning, kills, two searches at once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from moe_jax.config.errors import UserError
from moe_jax.sweeps.engine import Job, State, take_lock
from moe_jax.sweeps.folder import SweepFolder
from moe_jax.sweeps.points import SweepPoint, build_point
from moe_jax.sweeps.search import FEWEST, Search, best_trials, importances, open_study
from moe_jax.sweeps.search_space import Choice, Range, distributions, parse_space
from moe_jax.sweeps.slots import slots
from moe_jax.sweeps.table import evaluated
from moe_jax.sweeps.view import trials_table

CONFIG = "configs/quickstart.py"
SPACE = "optimizer.learning_rate = log(1e-4, 1e-1); moe.router.k = 1, 2"
STEPS = 5
# Bits per byte fall over 5 evaluations to 1 + (log10(lr) + 2.5)^2 + 0.1 k; goes on where it was.
STAND_IN = textwrap.dedent(
    """
    import json, math, pathlib, signal, sys, time
    folder = pathlib.Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text())
    rate, k = config["optimizer"]["learning_rate"], config["moe"]["router"]["k"]
    value = 1 + (math.log10(rate) + 2.5) ** 2 + 0.1 * k
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    metrics = folder / "metrics.jsonl"
    (folder / "starts").open("a").write("x")
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    if rate > 0.05:
        sys.exit("diverged")
    for step in range(done + 1, 6):
        time.sleep(float(sys.argv[2]))
        if stop:
            sys.exit(0)
        line = {"step": step, "split": "eval", "bits_per_byte": value + 5 - step}
        with metrics.open("a") as file:
            file.write(json.dumps(line) + "\\n")
    """
)


class Quiet:
    def changed(self, job: Job, state: State) -> None: ...

    def tick(self, states: dict[str, State]) -> None: ...


def search(out: Path, *, seconds: float = 0.02, pruner: str = "none", seed: int = 0) -> Search:
    folder = SweepFolder(out)
    # Some values of the space fit no config.
    space = parse_space(SPACE + "; moe.num_experts = 8, 1")

    def job_of(point: SweepPoint) -> Job:
        workdir = folder.point_folder(point)
        return Job(
            name=point.name,
            command=[sys.executable, "-c", STAND_IN, str(workdir), str(seconds)],
            folder=workdir,
            whole=lambda: evaluated(workdir, STEPS),
        )

    return Search(
        study=open_study(out, None, sampler="tpe", pruner=pruner, maximize=False, seed=seed),
        folder=folder,
        distributions=distributions(space),
        build=lambda values, name: build_point(CONFIG, values, arm=name, name=name),
        job_of=job_of,
        metric="bits_per_byte",
        prunes=pruner != "none",
    )


def states(found: Search) -> dict[str, int]:
    names = [trial.state.name for trial in found.study.get_trials(deepcopy=False)]
    return {name: names.count(name) for name in set(names)}


def test_a_space_is_read():
    assert parse_space(
        "a.b = log(1e-3, 0.1); config.c = int(64, 512, 64); d = uniform(0, 2); e = x, (1, 2); f=1,2"
    ) == {
        "a.b": Range(1e-3, 0.1, log=True),
        "c": Range(64, 512, step=64),
        "d": Range(0, 2),
        "e": Choice(("x", "(1, 2)")),
        "f": Choice(("1", "2")),
    }


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "a=", "a=1", "a=1,1", "a=1,2;a=3,4", "a=log(0,1)", "a=log(2,1)", "a=log(x,1)"),
        *("a=uniform(1)", "a=int(1.5,3)", "a=int(1,10,4)", "a=log(1,2,3)", "a b=1,2"),
    ],
)
def test_what_is_no_space_is_told(text: str):
    with pytest.raises(UserError, match="--space"):
        parse_space(text)


def test_the_search_finds_the_valley_and_counts_what_fails(tmp_path: Path):
    found = search(tmp_path)
    found.run(24, 2, Quiet(), [])
    counted = states(found)
    assert sum(counted.values()) == 24 and set(counted) <= {"COMPLETE", "FAIL"}
    best = best_trials(found.study)[0]
    assert 10**-3.2 < best.params["optimizer.learning_rate"] < 10**-1.8
    assert best.value == pytest.approx(best_trials(found.study)[0].value)
    told = [t.user_attrs["problem"] for t in found.study.trials if t.state.name == "FAIL"]
    assert any("config.moe.router.k = 2" in text or "k" in text for text in told)
    # What the stand-in depends on most is told, by short names.
    shares = importances(found.study)
    assert max(shares, key=lambda path: shares[path]) == "optimizer.learning_rate"
    assert sum(shares.values()) == pytest.approx(1)
    table = trials_table(found.study, "loss", shares)
    footers = {column.header: column.footer for column in table.columns}
    assert footers["learning_rate"] == f"{shares['optimizer.learning_rate']:.0%}"
    # The same again does nothing, a larger number goes on.
    found.run(24, 2, Quiet(), [])
    assert sum(states(found).values()) == 24
    found.run(26, 2, Quiet(), [])
    assert sum(states(found).values()) == 26


def test_few_trials_say_nothing_of_importance(tmp_path: Path):
    found = search(tmp_path)
    found.run(FEWEST - 1, 2, Quiet(), [])
    assert importances(found.study) == {}
    assert not trials_table(found.study, "bits_per_byte", {}).show_footer


def test_bad_trials_are_ended_early(tmp_path: Path):
    found = search(tmp_path, seconds=0.5, pruner="halving")
    found.run(8, 2, Quiet(), [])
    counted = states(found)
    assert counted.get("PRUNED", 0) > 0 and counted.get("COMPLETE", 0) > 0
    for trial in found.study.get_trials(deepcopy=False):
        if trial.state.name == "PRUNED":
            assert max(trial.intermediate_values) < STEPS
    worst = max(t.value for t in best_trials(found.study))
    pruned = [t for t in found.study.trials if t.state.name == "PRUNED"]
    at_first = min(t.intermediate_values[1] for t in pruned)
    assert at_first > min(t.intermediate_values[1] for t in best_trials(found.study))
    assert worst < 10


def process(out: Path, trials: int, seconds: float) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from tests.sweeps.test_search import *\n"
        f"search(Path(sys.argv[1]), seconds={seconds}).run({trials}, 2, Quiet(), [])"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=os.getcwd())


@pytest.mark.skipif(sys.platform != "linux", reason="runs end with the search on Linux alone")
def test_a_killed_search_goes_on_with_the_trials_it_had(tmp_path: Path):
    killed = process(tmp_path, 8, seconds=0.4)
    deadline = time.monotonic() + 60
    while not any(file.read_text() for file in tmp_path.glob("points/*/metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    found = search(tmp_path)
    assert states(found).get("RUNNING", 0) > 0
    found.run(8, 2, Quiet(), [])
    counted = states(found)
    assert "RUNNING" not in counted and sum(counted.values()) == 8
    starts = [file.read_text() for file in tmp_path.glob("points/*/starts")]
    assert "xx" in starts and max(map(len, starts)) == 2
    for file in tmp_path.glob("points/*/metrics.jsonl"):  # gone on with, not begun again
        assert len(file.read_text().splitlines()) == STEPS


def test_two_searches_share_a_study(tmp_path: Path):
    both = [process(tmp_path, 8, seconds=0.1) for _ in range(2)]
    assert [one.wait(timeout=120) for one in both] == [0, 0]
    counted = states(search(tmp_path))
    assert "RUNNING" not in counted
    assert sum(counted.values()) == 8
    assert {file.read_text() for file in tmp_path.glob("points/*/starts")} == {"x"}


def test_a_search_asks_for_no_trial_while_another_asks(tmp_path: Path):
    found = search(tmp_path)
    slot = slots(1)[0]
    asking = take_lock(tmp_path)
    assert asking is not None
    with asking:
        assert found._next(1, slot, Quiet(), []) is None
    assert found.study.get_trials() == []
    found.run(1, 1, Quiet(), [])
    assert len(found.study.get_trials()) == 1


def test_mistakes_are_told_before_anything_runs(door, tmp_path: Path):
    def call(*more: str) -> tuple[int, str, str]:
        return door("search", f"--config={CONFIG}", f"--out={tmp_path / 's'}", *more)

    for more, told in (
        (["--space=moe.rooter.k=1,2"], "did you mean config.moe.router.k?"),
        (["--space=moe.router.k=1,2", "--config.moe.router.k=1"], "both --space and --config"),
        (
            ["--space=moe.router.k=1,2", "--pruner=halving", "--config.evaluation.every=0"],
            "needs evaluations on the way",
        ),
    ):
        code, _, err = call(*more)
        assert code == 2 and told in err
    assert not (tmp_path / "s").exists()


@pytest.mark.lab
def test_a_search_of_real_runs(one_device, door, tmp_path: Path):
    from tests.sweeps.test_sweep_door import TINY

    code, out, err = door(
        "search",
        *(f"--config={CONFIG}", f"--out={tmp_path}", "--trials=4", "--workers=2"),
        *("--space=optimizer.learning_rate=log(1e-3,1e-1); moe.router.k=1,2", *TINY),
    )
    assert code == 0, err
    assert "the best again: python -m moe_jax.train" in out
    assert (tmp_path / "report.html").is_file()
    assert len(list(tmp_path.glob("points/*/outcome.json"))) == 4
