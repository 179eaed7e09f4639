"""Searches with stand-ins for training runs: spaces, pruning, kills, two searches at once."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from optuna.storages import RDBStorage

from moe_jax.config.errors import UserError
from moe_jax.config.overrides import load_config
from moe_jax.sweeps.engine import Job, State, take_lock
from moe_jax.sweeps.folder import SweepFolder
from moe_jax.sweeps.points import SweepPoint, build_point
from moe_jax.sweeps.search import (
    MIN_TRIALS,
    Search,
    best_trials,
    command_of,
    hold_to,
    importances,
    open_study,
)
from moe_jax.sweeps.search_space import Choice, Range, distributions, parse_space
from moe_jax.sweeps.slots import slots
from moe_jax.sweeps.table import evaluated
from moe_jax.sweeps.view import trials_table
from moe_jax.training.experiment import Experiment

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
        *("a=uniform(0,inf)", "a=log(1,inf)", "a=int(1,inf)", "a=uniform(nan,1)"),
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
    message = [t.user_attrs["problem"] for t in found.study.trials if t.state.name == "FAIL"]
    assert any("config.moe.router.k = 2" in text or "k" in text for text in message)
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
    found.run(MIN_TRIALS - 1, 2, Quiet(), [])
    assert importances(found.study) == {}
    assert not trials_table(found.study, "bits_per_byte", {}).show_footer


@pytest.mark.lab
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


@pytest.mark.lab
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


def test_mistakes_are_told_before_anything_runs(cli, tmp_path: Path):
    def call(*more: str) -> tuple[int, str, str]:
        return cli("search", f"--config={CONFIG}", f"--out={tmp_path / 's'}", *more)

    for more, message in (
        (["--space=moe.rooter.k=1,2"], "did you mean config.moe.router.k?"),
        (["--space=moe.router.k=1,2", "--config.moe.router.k=1"], "both --space and --config"),
        (
            ["--space=moe.router.k=1,2", "--pruner=halving", "--config.evaluation.every=0"],
            "needs evaluations on the way",
        ),
    ):
        code, _, err = call(*more)
        assert code == 2 and message in err
    assert not (tmp_path / "s").exists()


ASKED = [
    f"--config={CONFIG}",
    "--space=optimizer.learning_rate=log(1e-3,1e-1); moe.router.k=1,2",
    "--config.steps=60",
    "--config.moe.router.kind=top_k",
]


@pytest.fixture
def asks(cli, monkeypatch: pytest.MonkeyPatch):
    """The search's command without the runs."""
    monkeypatch.setattr(Search, "run", lambda *arguments: None)

    def call(out: Path, *given: str) -> tuple[int, str, str]:
        return cli("search", f"--out={out}", *given)

    return call


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([*ASKED, "--metric=accuracy"], "metric: 'bits_per_byte' -> 'accuracy'"),
        ([*ASKED, "--config.batch_size=8"], "config.batch_size: 16 -> 8"),
        ([*ASKED, "--config.evaluation.batches=1"], "config.evaluation.batches: 12 -> 1"),
        ([*ASKED, "--config.seed=7"], "seed: 0 -> 7"),
        (
            [ASKED[0], "--space=optimizer.learning_rate=log(1e-3,1e-2)", *ASKED[2:]],
            "space.optimizer.learning_rate.high: 0.1 -> 0.01",
        ),
        ([*ASKED, "--storage=sqlite:///x.db"], "storage: 'journal'"),
    ],
)
def test_a_folder_is_held_to_its_question(asks, tmp_path: Path, given: list[str], message: str):
    assert asks(tmp_path, *ASKED)[0] == 1  # no trial yet
    code, _, err = asks(tmp_path, *given)
    assert code == 2 and message in err
    assert (
        asks(tmp_path, *ASKED, "--trials=50", "--pruner=none", "--config.logging.every=3")[0] == 1
    )


def test_a_sweeps_folder_is_no_searchs(asks, cli, tmp_path: Path):
    sweep = [f"--config={CONFIG}", f"--out={tmp_path}", "--sweep=moe.router.k=1,2"]
    assert cli("sweep", *sweep, "--commands=/dev/null")[0] == 0
    code, _, err = asks(tmp_path, *ASKED)
    assert code == 2 and "kind: 'sweep' -> 'search'" in err


def test_one_database_and_two_folders_are_two_studies(tmp_path: Path, request):
    storage = RDBStorage(f"sqlite:///{tmp_path / 'all.db'}")
    request.addfinalizer(storage.engine.dispose)

    def study(folder: str):
        out = tmp_path / folder / "search"
        return open_study(out, storage, sampler="tpe", pruner="none", maximize=False, seed=0)

    first = study("a")
    first.tell(first.ask(distributions(parse_space(SPACE))), 1.0)
    assert len(study("b").get_trials()) == 0
    assert len(study("a").get_trials()) == 1


def test_a_study_that_goes_the_other_way_is_refused(tmp_path: Path):
    options = {"sampler": "tpe", "pruner": "none", "seed": 0}
    open_study(tmp_path, None, maximize=False, **options)
    with pytest.raises(UserError, match="its study is to minimize a metric"):
        open_study(tmp_path, None, maximize=True, **options)


def test_a_study_shared_by_folders_that_know_nothing_of_each_other_is_held_to_it(tmp_path: Path):
    study = open_study(tmp_path, None, sampler="tpe", pruner="none", maximize=False, seed=0)
    hold_to(study, {"metric": "loss", "space": {"a": ["1", "2"]}})
    hold_to(study, {"metric": "loss", "space": {"a": ["1", "2"]}})
    with pytest.raises(UserError, match="metric: 'loss' -> 'accuracy'"):
        hold_to(study, {"metric": "accuracy", "space": {"a": ["1", "2"]}})


@pytest.mark.parametrize("torn", ['{"op_code": 4, "wor', '{"op_code":6}', "\0\0\0"])
def test_a_torn_last_line_is_taken_away(tmp_path: Path, capsys, torn: str):
    def study():
        return open_study(tmp_path, None, sampler="tpe", pruner="none", maximize=False, seed=0)

    first = study()
    first.tell(first.ask(distributions(parse_space(SPACE))), 1.0)
    with (tmp_path / "journal.log").open("a") as file:
        file.write(torn)
    second = study()
    assert f"a torn last line of {len(torn)} bytes was taken away" in capsys.readouterr().out
    second.tell(second.ask(distributions(parse_space(SPACE))), 2.0)
    assert [trial.value for trial in study().get_trials()] == [1.0, 2.0]
    assert capsys.readouterr().out == ""


def test_the_best_again_is_the_very_model(cli, asks, tmp_path: Path, monkeypatch):
    common = [("steps", "60"), ("moe.router.kind", "switch"), ("data.auto_prepare", False)]
    common += [("data.kind", "folder"), ("data.path", "a b, c"), ("seed", "3")]
    parameters = {"optimizer.learning_rate": 0.0123456789, "moe.capacity_factor": "none"}
    trained = build_point(CONFIG, parameters, arm="t", name="t", common=dict(common))
    command = shlex.split(command_of(CONFIG, common, parameters))
    assert command[:5] == ["python", "-m", "moe_jax.train", f"--config={CONFIG}", "--workdir=DIR"]
    given = [one.removeprefix("--config.").split("=", 1) for one in command[5:]]
    again = load_config(CONFIG, dict(given), Experiment)
    assert dataclasses.replace(again, name="t") == trained.experiment
    # The command prints that of the best trial.
    monkeypatch.setattr(Search, "run", reported_once)
    code, out, err = asks(tmp_path, *ASKED)
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("the best again: "))
    for argument in (*ASKED[2:], "--config.optimizer.learning_rate=", "--config.moe.router.k="):
        assert argument in line


def reported_once(search: Search, *arguments: object) -> None:
    """In place of runs: one trial that ended, and one that was better but skipped its updates."""
    for value, skipped in ((2.0, 0.0), (1.0, 0.8)):
        trial = search.study.ask(dict(search.distributions))
        trial.set_user_attr("skipped", skipped)
        search.study.tell(trial, value)


def test_a_trial_that_skipped_its_updates_is_not_the_best(asks, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Search, "run", reported_once)
    code, out, err = asks(tmp_path, *ASKED)
    assert code == 0, err
    assert "1 skipped many" in out and "2.0000" in out and "1.0000" not in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metric=bits_per_bite"], "did you mean bits_per_byte?"),
        (["--storage=nonsense://x"], "--storage: cannot be opened"),
        (["--storage=sqlite:////nowhere/at/all.db"], "--storage: cannot be opened"),
        (["--seed=-1"], "--seed"),
        (["--seed=4294967296"], "--seed"),
    ],
)
def test_what_no_search_can_be_is_told_at_once(asks, tmp_path: Path, more: list[str], message: str):
    code, _, err = asks(tmp_path / "s", *ASKED, *more)
    assert code == 2 and message in err
    assert "Traceback" not in err


def test_trials_of_another_study_are_not_gone_on_with(tmp_path: Path):
    found = search(tmp_path)
    found.run(1, 1, Quiet(), [])
    (tmp_path / "journal.log").unlink()
    again = search(tmp_path, seed=1)
    with pytest.raises(UserError, match="holds trials of another study"):
        again.run(1, 1, Quiet(), [])


@pytest.mark.lab
def test_a_search_of_real_runs(one_device, cli, tmp_path: Path):
    from tests.sweeps.tiny import TINY

    code, out, err = cli(
        "search",
        *(f"--config={CONFIG}", f"--out={tmp_path}", "--trials=4", "--workers=2"),
        *("--space=optimizer.learning_rate=log(1e-3,1e-1); moe.router.k=1,2", *TINY),
    )
    assert code == 0, err
    assert "the best again: python -m moe_jax.train" in out
    assert (tmp_path / "report.html").is_file()
    assert len(list(tmp_path.glob("points/*/outcome.json"))) == 4
