"""One writer a folder: by flock, and by a lease where there is none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from moe_jax.config import lock as module
from moe_jax.config.errors import UserError
from moe_jax.config.lock import FILE, FolderLock, is_dead, this_process

HOLD = """
import sys, time
from pathlib import Path
from moe_jax.config.lock import FolderLock
with FolderLock(Path(sys.argv[1]), "train"):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def leases(monkeypatch):
    """A file system without locks, and patience for tests."""
    monkeypatch.setattr(FolderLock, "_flock", lambda self: False)
    monkeypatch.setattr(module, "RENEWED", 0.2)
    monkeypatch.setattr(module, "STALE", 1.5)


def write(folder, **changes):
    """A lease of a process elsewhere."""
    content = {**this_process(), "host": "elsewhere", "what": "train", "renewed": time.time()}
    (folder / FILE).write_text(json.dumps({**content, **changes}))


def test_the_second_is_told_who_writes(tmp_path, holder):
    holder_text = rf"{tmp_path}: process {holder.pid} on .* \(train, since 2.*\) is writing here"
    with pytest.raises(UserError, match=holder_text), FolderLock(tmp_path, "train"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with FolderLock(tmp_path, "train"):  # at once
        pass
    assert not list(tmp_path.iterdir())


def test_of_one_process_too(tmp_path):
    with FolderLock(tmp_path, "train"):
        with pytest.raises(UserError, match="is writing here"), FolderLock(tmp_path, "train"):
            pass
        with pytest.raises(UserError, match="is writing here"), FolderLock(tmp_path, "train"):
            pass  # the refused one has taken nothing away


def test_a_damaged_file_locks_nothing(tmp_path):
    (tmp_path / FILE).write_bytes(b"\xff[1")
    with FolderLock(tmp_path, "train"):
        pass


@pytest.mark.usefixtures("leases")
class TestLease:
    def test_a_living_holder_is_found(self, tmp_path):
        with FolderLock(tmp_path, "train") as first:
            with pytest.raises(UserError, match=r"process \d+ on .* is writing here"):
                FolderLock(tmp_path, "train").__enter__()
            first.check()
        assert not list(tmp_path.iterdir())

    def test_of_a_dead_process_of_this_machine_is_free(self, tmp_path):
        write(tmp_path, host=this_process()["host"], started="1")  # its number has come again
        before = time.monotonic()
        with FolderLock(tmp_path, "train"):
            assert time.monotonic() - before < module.STALE

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"renewed": "x"}', b"{}"])
    def test_a_damaged_one_is_taken_over(self, tmp_path, content):
        (tmp_path / FILE).write_bytes(content)
        with FolderLock(tmp_path, "train"):
            pass

    def test_one_that_is_not_renewed_is_taken_over(self, tmp_path, capsys):
        write(tmp_path, renewed=time.time() + 100)  # clocks differ
        with FolderLock(tmp_path, "train"):
            assert "waiting to see whether it still does" in capsys.readouterr().err

    def test_an_old_one_is_taken_over_at_once(self, tmp_path, capsys):
        write(tmp_path, renewed=time.time() - 2 * module.LONG_AGO)
        with FolderLock(tmp_path, "train"):
            assert capsys.readouterr().err == ""

    def test_who_was_away_too_long_is_told(self, tmp_path):
        with FolderLock(tmp_path, "train") as lock:
            lock.check()
            write(tmp_path, id="another")
            time.sleep(3 * module.RENEWED)
            with pytest.raises(UserError, match=r"on elsewhere .* has taken it over"):
                lock.check()
        assert json.loads((tmp_path / FILE).read_text())["id"] == "another"  # not ours to remove


def test_a_process_is_known_by_when_it_started():
    me = this_process()
    assert not is_dead(me)
    assert is_dead({**me, "started": "1"}) and is_dead({**me, "pid": 2**22 + 1})
    assert not is_dead({**me, "host": "elsewhere", "started": "1"})
