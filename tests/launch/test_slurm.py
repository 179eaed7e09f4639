"""SLURM: the script, what sbatch is really given, and a run that is preempted and goes on."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_jax.cli import run_command
from tests.launch.conftest import ROOT

# Its set-up of logging closes what pytest has set up.
os.environ["SUBMITIT_LOG_LEVEL"] = "NOCONFIG"
slurm = importlib.import_module("launch.slurm")
RUN = ["--config=configs/olmoe_1b_7b.py", "--workdir=/shared/a b"]


def cli(capsys, *argv: str, run=RUN) -> tuple[int, str, str]:
    code = run_command(
        lambda arguments: slurm.main(arguments, run),
        usage=slurm.USAGE,
        flags=slurm.FLAGS,
        argv=list(argv),
    )
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def options(script: str) -> dict[str, str]:
    """The #SBATCH lines."""
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH --")]
    pairs = (shlex.split(line.removeprefix("#SBATCH --"))[0].partition("=") for line in lines)
    return {name: value for name, _, value in pairs}


EIGHT_NODES = [
    *("--nodes=8", "--tasks_per_node=8", "--gpus_per_node=8", "--minutes=1440", "--grace=180"),
    *("--partition=gpu", "--account=me", "--memory=900G", "--setup=module load cuda"),
    "--cpus_per_task=12",
]


def test_the_script_is_bash_and_asks_for_eight_nodes_of_eight(capsys, tmp_path):
    code, out, err = cli(capsys, f"--logs={tmp_path}", "--dry_run", *EIGHT_NODES)
    assert code == 0, err
    assert subprocess.run(["bash", "-n"], input=out, text=True).returncode == 0
    found = options(out)
    assert (found["nodes"], found["ntasks-per-node"], found["gpus-per-node"]) == ("8", "8", "8")
    assert found["signal"] == "USR2@180" and found["time"] == "1440" and "requeue" in found
    assert found["partition"] == "gpu" and found["account"] == "me" and found["mem"] == "900G"
    assert found["wckey"] == "submitit"
    assert "module load cuda" in out and "--kill-on-bad-exit=1" in out
    # srun of SLURM 22.05 asks for it again.
    assert found["cpus-per-task"] == "12" and "srun" in out and out.count("--cpus-per-task=12") == 2
    last = shlex.split(out.splitlines()[-1].removeprefix("# "))
    assert last[1:] == ["-m", "moe_jax.train", *RUN, "--stopped_exit_code=75"]


def test_a_sweep_is_an_array_of_single_processes(capsys, tmp_path):
    commands = tmp_path / "commands.txt"
    commands.write_text("python -m moe_jax.train --workdir='a b'\npython -m moe_jax.train\n\n")
    given = [f"--logs={tmp_path}", f"--commands={commands}", "--parallel=8", "--nowckey"]
    code, out, err = cli(capsys, *given, "--dry_run", run=[])
    assert code == 0, err
    found = options(out)
    assert found["array"] == "0-1%2" and found["nodes"] == "1" and "wckey" not in found
    runs = slurm.planned(str(commands), "moe_jax.train", [])
    train = ["python", "-m", "moe_jax.train"]
    assert runs[0].command == [*train, "--workdir=a b", "--stopped_exit_code=75"]
    assert runs[0].environment["MOE_JAX_PROCESSES"] == "1"


@pytest.mark.parametrize(
    ("more", "run", "message"),
    [
        ([], [], "give either --commands=FILE, or --"),
        (["--commands=x"], RUN, "give either"),
        (["--commands=/no/such"], [], "no such file"),
        ([], ["--config=a"], "no --workdir"),
        (["--cluster=local", "--tasks_per_node=2"], RUN, "--cluster=local: one process"),
    ],
)
def test_mistakes_are_told(capsys, tmp_path, more, run, message):
    code, _, err = cli(capsys, f"--logs={tmp_path}", *more, run=run)
    assert code == 2 and message in err


def test_without_slurm_it_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = cli(capsys, f"--logs={tmp_path}")
    assert code == 2 and "--dry_run prints the script" in err


@pytest.mark.parametrize("tasks", [None, 1, 3])
def test_sbatch_is_given_what_the_dry_run_showed(capsys, tmp_path, monkeypatch, tasks):
    programs, logs = tmp_path / "bin", tmp_path / "logs"
    programs.mkdir()
    for name, body in (
        ("srun", "exit 0"),
        ("sbatch", f"cp $1 {tmp_path}/sent; echo Submitted batch job 12"),
    ):
        file = programs / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    given, run = [f"--logs={logs}", *EIGHT_NODES], RUN
    if tasks is not None:
        commands = tmp_path / "commands.txt"
        commands.write_text("python -m moe_jax.train\n" * tasks)
        given += [f"--commands={commands}", "--nodes=1", "--tasks_per_node=1"]
        run = []
    code, shown, _ = cli(capsys, *given, "--dry_run", run=run)
    code, out, err = cli(capsys, *given, run=run)
    jobs = ["12"] if tasks in (None, 1) else [f"12_{i}" for i in range(tasks)]
    assert code == 0 and out.split() == jobs, err
    script = shown.partition("# Each task runs:")[0]
    assert (tmp_path / "sent").read_text().strip() == script.strip()


STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("left").touch(), sys.exit(75)))
pathlib.Path("pid").write_text(str(os.getpid()))
if pathlib.Path("left").exists():
    sys.exit(0)
time.sleep(600)
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A job here, whose program ends by itself only after it was stopped once; its task, and the
    program's process."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    job = start([sys.executable, "-c", STUBBORN], tmp_path / "logs")
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), job)
    yield job, task_of(job), int((tmp_path / "pid").read_text())
    job.cancel()


def start(command: list[str], logs: Path):
    parameters = {"time": 60, "nodes": 1, "ntasks_per_node": 1, "signal_delay_s": 30}
    slurm.FLAGS(["", f"--logs={logs}"])
    return slurm.start_here(slurm.Run(command, {}), parameters, str(logs))


def task_of(job) -> int:
    """What SLURM signals, together with what it starts: not what watches over it."""
    controller = int(job.job_id)
    [task] = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    return int(task)


def wait_until(condition, job=None, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and not (job and job.done())
        time.sleep(0.05)


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


def test_who_was_stopped_waits_to_be_queued_again(started, tmp_path):
    """SLURM's preemption: SIGTERM to all processes, then the signal that submitit waits for."""
    job, task, process = started
    for number in (task, process):
        os.kill(number, signal.SIGTERM)
    wait_until(lambda: gone(process), job)
    time.sleep(0.5)
    assert not job.done()
    os.kill(task, signal.SIGUSR2)
    assert "-c" in job.result() and (tmp_path / "left").exists()


def test_no_process_outlives_its_task(started):
    _, task, process = started
    os.kill(task, signal.SIGKILL)
    wait_until(lambda: gone(process), seconds=30)


@pytest.mark.parametrize("end", ["sys.exit(75)", "os.kill(os.getpid(), signal.SIGUSR2)"])
def test_a_stopped_run_that_is_not_queued_again_has_failed(monkeypatch, end):
    monkeypatch.setattr(slurm, "PATIENCE", 0.1)
    program = f"import os, signal, sys; {end}"
    with pytest.raises(RuntimeError, match="was stopped before its end"):
        slurm.Run([sys.executable, "-c", program], {})()


def metrics(workdir: Path) -> list[dict]:
    """The lines of a run without what depends on the machine's speed, the last of each step."""
    found = {}
    for text in (workdir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for name in ("tokens_per_s", "step_time_s"):
            line.pop(name, None)
        found[line["step"], line["split"]] = line
    return [found[key] for key in sorted(found)]


@pytest.mark.lab
def test_a_preempted_run_is_queued_again_and_ends_as_if_it_had_not_been(
    config, tmp_path, monkeypatch
):
    """For real, by submitit's local executor, which queues a job again as SLURM does."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    common = [f"--config={config}", "--config.checkpoint.every=2", "--config.steps=40"]
    train = [sys.executable, "-m", "moe_jax.train", *common]
    subprocess.run([*train, f"--workdir={whole}"], check=True, capture_output=True)
    command = [*train, f"--workdir={stopped}", "--stopped_exit_code=75"]
    job = start(command, tmp_path / "logs")
    wait_until(lambda: list(stopped.glob("checkpoints/manifests/*")), job)
    os.kill(task_of(job), signal.SIGUSR2)
    assert job.result() == shlex.join(command)
    logs = "".join(file.read_text() for file in (tmp_path / "logs").glob("*_log.*"))
    assert "resuming at step" in logs
    assert metrics(stopped) == metrics(whole)


def test_a_run_that_fails_fails_its_job(tmp_path):
    with pytest.raises(RuntimeError, match="exit code 3"):
        slurm.Run([sys.executable, "-c", "import sys; sys.exit(3)"], {})()
    assert "-c" in slurm.Run([sys.executable, "-c", "pass"], {})()


def test_a_local_job_that_fails_says_why(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = ["--config=configs/quickstrat.py", f"--workdir={tmp_path / 'run'}"]
    code, _, err = cli(capsys, f"--logs={tmp_path}", "--cluster=local", run=run)
    assert code == 1 and "did you mean configs/quickstart.py?" in err


def test_runs_of_a_file_come_one_after_the_other_here(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    program = "import os, time; open('mine', 'x'); time.sleep(0.5); os.remove('mine')"
    commands = tmp_path / "commands.txt"
    commands.write_text(f"{shlex.join([sys.executable, '-c', program])}\n" * 2)
    given = [f"--logs={tmp_path / 'logs'}", f"--commands={commands}", "--cluster=local"]
    code, out, err = cli(capsys, *given, run=[])
    assert code == 0 and len(out.split()) == 2, err
