"""The engine against stand-ins for runs: failures, kills, stops, and two engines at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_jax.sweeps.engine import Job, State, is_done, last_words, run_jobs, take_lock
from moe_jax.sweeps.slots import slots
from moe_jax.training.workdir import claimed
from tests.sweeps.jobs import Recorder, job


def test_all_run_and_a_failure_stops_none(tmp_path: Path):
    jobs = [job(tmp_path, "a"), job(tmp_path, "bad", fails=True), job(tmp_path, "c")]
    recorder = Recorder()
    states = run_jobs(jobs, 2, recorder)
    assert states == {"a": State.DONE, "bad": State.FAILED, "c": State.DONE}
    assert [is_done(j.folder) for j in jobs] == [True, False, True]
    assert ("bad", State.FAILED) in recorder.changes
    assert last_words(tmp_path / "bad")[-1] == "it went wrong"


def test_what_is_done_is_not_repeated_and_what_failed_is_tried_again(tmp_path: Path):
    jobs = [job(tmp_path, "a"), job(tmp_path, "bad", fails=True)]
    run_jobs(jobs, 2, Recorder())
    states = run_jobs([jobs[0], job(tmp_path, "bad")], 2, Recorder())
    assert set(states.values()) == {State.DONE}
    assert (tmp_path / "a" / "starts").read_text() == "x"
    assert (tmp_path / "bad" / "starts").read_text() == "xx"


def test_exit_code_0_of_something_unfinished_is_a_failure(tmp_path: Path):
    lazy = Job("lazy", [sys.executable, "-c", "pass"], tmp_path / "lazy", whole=lambda: False)
    assert run_jobs([lazy], 1, Recorder()) == {"lazy": State.FAILED}


def engine_process(root: Path, names: str, count: int = 5) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from moe_jax.sweeps.engine import run_jobs\n"
        "from tests.sweeps.jobs import Recorder, job\n"
        f"run_jobs([job(Path(sys.argv[1]), n, count={count}) for n in sys.argv[2]], 2, Recorder())"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(root), names], cwd=os.getcwd())


def wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_an_engine_that_is_killed_leaves_nothing_running_and_the_next_goes_on(tmp_path: Path):
    engine = engine_process(tmp_path, "abcd", count=30)
    wait_for(lambda: (tmp_path / "a" / "state").exists() and (tmp_path / "b" / "state").exists())
    engine.kill()
    engine.wait()
    pids = [int((tmp_path / n / "log.txt").read_text().split("started ")[1]) for n in "ab"]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    for name in "ab":
        assert not is_done(tmp_path / name)
        assert int((tmp_path / name / "state").read_text()) < 30  # it was ended
    states = run_jobs([job(tmp_path, name, count=30) for name in "abcd"], 2, Recorder())
    assert set(states.values()) == {State.DONE}
    assert (tmp_path / "a" / "starts").read_text() == "xx"
    assert (tmp_path / "c" / "starts").read_text() == "x"


def test_sigterm_is_passed_on_and_the_runs_save(tmp_path: Path):
    engine = engine_process(tmp_path, "ab")
    wait_for(lambda: (tmp_path / "a" / "state").exists() and (tmp_path / "b" / "state").exists())
    engine.send_signal(signal.SIGTERM)
    assert engine.wait(timeout=30) != 0
    assert not is_done(tmp_path / "a")
    assert run_jobs([job(tmp_path, n) for n in "ab"], 2, Recorder()) == dict.fromkeys(
        "ab", State.DONE
    )


def test_two_engines_share_the_work(tmp_path: Path):
    engines = [engine_process(tmp_path, "abcdef") for _ in range(2)]
    assert [engine.wait(timeout=60) for engine in engines] == [0, 0]
    for name in "abcdef":
        assert is_done(tmp_path / name)
        assert (tmp_path / name / "starts").read_text() == "x"
        assert json.loads((tmp_path / name / "outcome.json").read_text())["seconds"] > 0


def test_a_lock_is_held_until_it_is_closed(tmp_path: Path):
    lock = take_lock(tmp_path)
    assert lock is not None and take_lock(tmp_path) is None
    lock.close()
    again = take_lock(tmp_path)
    assert again is not None
    again.close()


def test_a_run_locks_its_folder_while_the_engine_holds_the_point(tmp_path: Path):
    """Both had one file, and each point was refused: 'another process is writing here'."""
    with take_lock(tmp_path) as point, claimed(tmp_path) as (folder, _):
        assert folder == tmp_path and not point.closed


def test_a_job_says_what_its_process_finds_in_the_environment(tmp_path: Path, monkeypatch):
    program = "import os; print('group', os.environ['GROUP'])"
    command, group = [sys.executable, "-c", program], {"GROUP": "mine"}
    jobs = [Job("a", command, tmp_path / "a", lambda: True, variables=group)]
    assert run_jobs(jobs, 1, Recorder()) == {"a": State.DONE}
    assert last_words(tmp_path / "a") == ["group mine"]
    monkeypatch.setenv("GROUP", "the user's")
    (tmp_path / "a" / "outcome.json").unlink()
    run_jobs(jobs, 1, Recorder())
    assert last_words(tmp_path / "a") == ["group the user's"]


def test_slots_divide_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    found = slots(2)
    assert [slot.cores for slot in found] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [slot.gpus for slot in found] == [("0", "1"), ("2", "3")]
    assert found[1].environment({})["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert [slot.cores for slot in slots(16)] == [(n % 8,) for n in range(16)]
    assert slots(1)[0].cores == () and slots(1)[0].gpus is None
