"""The command: plans, refusals, tables; and, marked `lab`, whole sweeps that are killed."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_jax.config.overrides import load_config
from moe_jax.sweeps import space as h
from moe_jax.sweeps.definition import read_sweep
from moe_jax.sweeps.folder import SweepFolder
from moe_jax.sweeps.matching import Matching
from moe_jax.sweeps.points import resolve
from moe_jax.sweeps.statistics import student
from moe_jax.sweeps.table import arms_of, default_metric
from moe_jax.training.experiment import Experiment
from tests.sweeps.tiny import TINY

CONFIG = "configs/quickstart.py"
GRID = "moe.router.k=1,2,4; optimizer.learning_rate=0.001,0.01,0.1; seed=0..1"


def arguments(out: Path, *more: str, sweep: str = GRID) -> list[str]:
    return [f"--config={CONFIG}", f"--out={out}", f"--sweep={sweep}", *TINY, *more]


def test_a_dry_run_shows_the_plan_and_writes_nothing(cli, tmp_path: Path):
    code, out, err = cli("sweep", *arguments(tmp_path / "s", "--dry_run", "--match=flops"))
    assert code == 0, err
    assert "18 runs" in out and "k=4,learning_rate=0.1" in out
    assert not (tmp_path / "s").exists()


def test_commands_for_a_cluster_train_the_points(cli, tmp_path: Path):
    file = tmp_path / "commands.txt"
    given = arguments(tmp_path / "s", f"--commands={file}", sweep="moe.router.k=1,2")
    code, _, err = cli("sweep", *given)
    assert code == 0, err
    lines = file.read_text().splitlines()
    assert len(lines) == 2 and all("-m moe_jax.train --config=" in line for line in lines)
    config = lines[1].split("--config=")[1].split()[0]
    experiment = load_config(config, {}, Experiment)
    assert experiment.moe.router.k == 2 and experiment.model.model_dim == 16


@pytest.mark.parametrize(
    ("sweep", "more", "message"),
    [
        ("moe.router.k=1,99", [], "k=99: config.moe.router.k = 99"),
        ("moe.rooter.k=1", [], "did you mean config.moe.router.k?"),
        ("missing.py", [], "no file missing.py"),
        ("moe.router.k", [], "is not PATH=VALUE,VALUE"),
        ("configs/dense_quickstart.py", [], "has no function get_sweep(h)"),
        ("moe.router.k=1", ["--match_width=moe.expert_dim"], "needs --match"),
        ("moe.router.k=1,2", ["--baseline=k=3"], "the arms are k=1, k=2"),
        ("moe.router.k=1,2", ["--metric=bits_per_bite"], "did you mean bits_per_byte?"),
        ("moe.every=0", ["--metric=moe/max_violation"], "no evaluation has it"),
        ("seed=0..300000000", [], "more than 10,000 points"),
        (
            "model.mlp_dim=8,16",
            ["--match=active", "--match_width=model.mlp_dim"],
            "which the sweep sets",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(cli, tmp_path: Path, sweep, more, message: str):
    code, _, err = cli("sweep", *arguments(tmp_path / "s", *more, sweep=sweep))
    assert code == 2
    assert message in err
    assert not (tmp_path / "s").exists()


def test_a_function_beside_the_config_gives_the_sweep(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def get_sweep(h):\n"
        "    return h.product(h.zip(h.sweep('a', [1, 2]), h.sweep('b', [3, 4])), h.seeds(2))\n"
    )
    expected = h.product(({"a": 1, "b": 3}, {"a": 2, "b": 4}), h.seeds(2))
    assert read_sweep(None, f"{file}:arg") == read_sweep(str(file), CONFIG) == expected


def test_the_shipped_config_has_a_sweep():
    points = resolve(CONFIG, {}, read_sweep(None, CONFIG), Matching())
    assert len({point.arm for point in points}) > 1


def finished(folder: SweepFolder, points, values: dict[str, float]) -> None:
    """The files of runs that ended with these values."""
    for point in points:
        workdir = folder.point_folder(point)
        lines = [
            {"step": 3, "split": "train", "moe/dropped_fraction": 0.25, "loss": 1.0},
            {"step": 6, "split": "train", "moe/dropped_fraction": 0.75, "tokens_per_s": 5.0},
            {"step": 6, "split": "eval", "bits_per_byte": values[point.name], "step_time_s": 1.0},
        ]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        (workdir / "outcome.json").write_text('{"seconds": 1.0}\n')


def test_the_tables_pair_arms_by_seed(tmp_path: Path):
    overrides = dict(argument.removeprefix("--config.").split("=") for argument in TINY)
    points = resolve(CONFIG, overrides, h.parse("moe.router.k=1,2; seed=0..2"), Matching())
    folder = SweepFolder(tmp_path)
    folder.prepare(points)
    base, gaps = [2.0, 3.0, 4.0], [-0.1, -0.2, -0.3]
    values = {f"k=1,seed={n}": base[n] for n in range(3)}
    values |= {f"k=2,seed={n}": base[n] + gaps[n] for n in range(3)}
    finished(folder, points, values)
    rows = folder.write_results(points, None, None)
    assert default_metric(rows) == "bits_per_byte"
    first, second = arms_of(rows, "bits_per_byte")
    assert first.difference is None and second.difference is not None
    expected = student(gaps)
    assert second.difference.high == pytest.approx(expected.high)
    assert second.value is not None and second.value.mean == pytest.approx(2.8)
    # Half of the assignments were dropped over the run, and k = 2 costs what k = 1 does then.
    used = [row.costs["used_flops"] / row.costs["training_flops"] for row in rows]
    assert used[0] < 1 and used[3] < used[0]
    table = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [float(row["bits_per_byte"]) for row in table] == list(values.values())
    assert "tokens_per_s" not in table[0] and "step_time_s" not in table[0]
    assert [row["moe.router.k"] for row in table] == ["1"] * 3 + ["2"] * 3
    arms = list(csv.DictReader((tmp_path / "arms.csv").open()))
    assert float(arms[1]["difference_mean"]) == pytest.approx(-0.2)


def test_points_of_another_config_under_the_same_name_are_refused(cli, tmp_path: Path):
    def prepare(sweep: str, *more: str) -> tuple[int, str, str]:
        return cli("sweep", *arguments(tmp_path, "--commands=/dev/null", *more, sweep=sweep))

    assert prepare("moe.router.k=1,2")[0] == 0
    assert prepare("moe.router.k=1,2,4")[0] == 0  # the sweep grows
    code, _, err = prepare("moe.router.k=1,2", "--config.steps=7")
    assert code == 2
    assert "k=1.steps: 6 -> 7" in err


def test_a_run_that_has_begun_knows_what_its_point_left_to_the_data(tmp_path: Path):
    """The tasks of a router, which only opened data say: the sweep goes on with them, and with no
    other number."""
    common = {"moe.router.kind": "task_level", "task.kind": "detection", "model.kind": "detector"}
    common |= {"data.kind": "digit_scenes", "moe.losses.load_balance.coefficient": 0.0}
    (point,) = resolve(CONFIG, common, h.parse("seed=0"), Matching())
    folder = SweepFolder(tmp_path)
    folder.write_config(point)
    assert point.experiment.moe.router.tasks == 0 and folder.changes(point) == []
    begun = folder.point_folder(point)
    (begun / "data.json").write_text(json.dumps({"domains": ["a", "b"]}))
    assert folder.changes(point) == []  # it has not written its own config yet
    config = json.loads((begun / "config.json").read_text())
    for tasks, changed in ((2, []), (3, ["seed=0.moe.router.tasks: 3 -> 2"])):
        config["moe"]["router"]["tasks"] = tasks
        (begun / "config.json").write_text(json.dumps(config))
        assert folder.changes(point) == changed


def ended(cli, out: Path, sweep: str, *more: str) -> tuple[int, str, str]:
    """The sweep's command on a folder whose points have all ended: nothing is trained."""
    code, _, err = cli("sweep", *arguments(out, "--commands=/dev/null", *more, sweep=sweep))
    assert code == 0, err
    points = SweepFolder(out).read()
    finished(SweepFolder(out), points, {p.name: 2.0 + 0.1 * n for n, p in enumerate(points)})
    return cli("sweep", *arguments(out, *more, sweep=sweep))


def table_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "results.csv").open()))


@pytest.mark.parametrize(
    ("sweep", "other"),
    [
        ("moe.router.k=1,2; seed=0..1", "--config.evaluation.capacity_factor=0.5"),
        ("moe.router.k=1,2; seed=2..3", "--config.evaluation.batches=2"),
        ("moe.router.k=1,2; seed=2", "--match=flops"),
    ],
)
def test_figures_of_another_question_are_never_mixed(cli, tmp_path: Path, sweep: str, other: str):
    assert ended(cli, tmp_path, "moe.router.k=1,2; seed=0..1")[0] == 0
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    code, _, err = cli("sweep", *arguments(tmp_path, other, sweep=sweep))
    assert code == 2
    assert "holds runs of another question" in err and other.split(".")[-1].split("=")[0][2:] in err
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    # What changes no figure may be another, and finished points keep the config they had.
    again = "moe.router.k=1,2; seed=0..1"
    code, _, err = cli("sweep", *arguments(tmp_path, "--config.logging.every=7", sweep=again))
    assert code == 0, err
    config = json.loads((tmp_path / "points" / "k=1,seed=0" / "config.json").read_text())
    assert config["logging"]["every"] != 7


def test_a_smaller_sweep_keeps_the_other_points(cli, tmp_path: Path):
    assert ended(cli, tmp_path, "moe.router.k=1,2,4; seed=0..1")[0] == 0
    whole = table_of(tmp_path)
    code, out, err = cli("sweep", *arguments(tmp_path, sweep="moe.router.k=2; seed=0..1"))
    assert code == 0, err
    assert table_of(tmp_path) == whole and len(whole) == 6
    assert "hold 4 points of earlier sweeps" in out
    assert "k=4" in (tmp_path / "report.html").read_text()


def test_a_finished_point_without_figures_does_not_take_the_table(cli, tmp_path: Path):
    sweep = "moe.router.k=1,2; seed=0..1"
    assert ended(cli, tmp_path, sweep)[0] == 0
    (tmp_path / "points" / "k=2,seed=1" / "metrics.jsonl").unlink()
    code, out, err = cli("sweep", *arguments(tmp_path, sweep=sweep))
    assert code == 0, err
    assert "k=2,seed=1: it ended, but its figures cannot be read" in out
    assert [row["done"] for row in table_of(tmp_path)] == ["True", "True", "True", "False"]
    assert "1 of 2" in out
    assert "its figures cannot be read" in (tmp_path / "report.html").read_text()


def test_differences_name_the_baseline(cli, tmp_path: Path):
    sweep = "moe.router.k=1,2; seed=0..1"
    code, out, err = ended(cli, tmp_path, sweep, "--baseline=k=2")
    assert code == 0, err
    assert "difference to k=2" in out
    report = (tmp_path / "report.html").read_text()
    assert "difference to k=2" in report and "to the first" not in report


def test_a_run_that_skipped_its_updates_is_not_the_best(cli, tmp_path: Path):
    sweep = "moe.router.k=1,2; seed=0..1"
    assert ended(cli, tmp_path, sweep)[0] == 0
    for seed in (0, 1):  # the better ones by their last evaluation
        file = tmp_path / "points" / f"k=1,seed={seed}" / "metrics.jsonl"
        bad = [{"step": step, "split": "train", "loss": None} for step in range(1, 5)]
        good = {"step": 5, "split": "train", "loss": 1.0}
        last = {"step": 6, "split": "eval", "bits_per_byte": 1.0}
        file.write_text("".join(json.dumps(line) + "\n" for line in (*bad, good, last)))
    code, out, err = cli("sweep", *arguments(tmp_path, sweep=sweep))
    assert code == 0, err
    assert "80% of its updates were skipped" in out
    report = (tmp_path / "report.html").read_text()
    assert "80% of its updates were skipped" in report and "The best arm is k=2." in report
    assert [row["skipped"] for row in table_of(tmp_path)] == ["0.8", "0.8", "0.0", "0.0"]


@pytest.mark.parametrize("name", ["x[/red]", "y[bold]:smile:"])
def test_brackets_in_names_are_no_markup(cli, tmp_path: Path, name: str):
    out = tmp_path / name
    code, message, err = ended(cli, out, "moe.router.k=1,2")
    assert code == 0, err
    assert f"wrote {out}/report.html" in message


def test_foreign_names_are_escaped_in_the_report(cli, tmp_path: Path):
    metric = "moe/router/<script>alert(1)</script>"
    out = tmp_path / "<b>"
    given = [f"--config={CONFIG}", f"--out={out}", f"--metric={metric}", "--config.steps=6"]
    given += ["--config.data.kind=folder", "--config.data.path=somewhere"]
    given += ["--sweep=data.validation='<i>','<u>'; seed=0..1"]
    assert cli("sweep", *given, "--commands=/dev/null")[0] == 0
    points = SweepFolder(out).read()
    finished(SweepFolder(out), points, dict.fromkeys((p.name for p in points), 2.0))
    code, _, err = cli("sweep", *given)
    assert code == 0, err
    report = (out / "report.html").read_text()
    assert "<script>alert" not in report and "&lt;script&gt;alert" in report
    for tag in ("<b>/", "<i>,", "<u>,", "=<i>", "=<u>", ">&lt;b&gt;<script"):
        assert tag not in report


@pytest.mark.parametrize("torn", ["sweep.json", "question.json", "points/k=1/config.json"])
def test_torn_files_are_named(cli, tmp_path: Path, torn: str):
    assert ended(cli, tmp_path, "moe.router.k=1,2")[0] == 0
    file = tmp_path / torn
    file.write_text(file.read_text()[:-20])
    code, _, err = cli("sweep", *arguments(tmp_path, sweep="moe.router.k=1,2"))
    assert code == 2 and f"{file}: is torn" in err


def test_commands_that_cannot_be_written_are_told(cli, tmp_path: Path):
    given = arguments(tmp_path / "s", f"--commands={tmp_path}", sweep="moe.router.k=1,2")
    code, _, err = cli("sweep", *given)
    assert code == 2 and f"--commands={tmp_path}: cannot be written" in err


@pytest.mark.parametrize("name", ["results.csv", "arms.csv", "report.html"])
def test_a_folder_in_a_tables_place_is_told_before_anything_runs(cli, tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    code, _, err = cli("sweep", *arguments(tmp_path, sweep="moe.router.k=1,2"))
    assert code == 2 and f"{tmp_path / name}: is a folder" in err
    assert not (tmp_path / "points").exists()


def start(*given: str, **options) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "moe_jax.sweep", *given]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.lab
def test_a_sweep_that_is_killed_ends_with_the_same_table(one_device, tmp_path: Path):
    """3 x 3 x 2 runs, kill -9 in the middle, and one point that cannot succeed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = start(*arguments(whole, "--workers=2"))
    assert first.wait() == 0
    process = start(*arguments(killed, "--workers=2"))
    while len(list(killed.glob("points/*/outcome.json"))) < 7:
        assert process.poll() is None
        time.sleep(0.1)
    # In the middle of a run, which has saved something.
    while not any(
        not (folder / "outcome.json").exists() and any(folder.glob("checkpoints/manifests/*"))
        for folder in killed.glob("points/*")
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done_before = {p.parent.name for p in killed.glob("points/*/outcome.json")}
    assert len(done_before) < 18
    outcomes = [killed / "points" / name / "outcome.json" for name in done_before]
    stamps = [file.stat().st_mtime for file in outcomes]
    again = start(*arguments(killed, "--workers=2"))
    assert again.wait() == 0
    for name in ("results.csv", "results.json", "arms.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert [file.stat().st_mtime for file in outcomes] == stamps  # not repeated
    assert (killed / "report.html").is_file()


@pytest.mark.lab
def test_a_point_that_fails_is_told_and_the_others_end(one_device, tmp_path: Path):
    sweep = "optimizer.learning_rate=0.01,1e30; seed=0..1"
    given = arguments(tmp_path, "--workers=2", "--config.max_bad_steps=1", sweep=sweep)
    process = start(*given)
    message = process.communicate()[0]
    assert process.returncode == 1
    assert "2 of 4 runs are not done" in message
    assert "NaN or inf" in message  # the end of its log
    table = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["done"] for row in table] == ["True", "True", "False", "False"]
    assert table[0]["bits_per_byte"] and not table[2]["bits_per_byte"]
