from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from moe_jax.config.errors import UserError
from moe_jax.data.folder import Folder
from moe_jax.data.store import build_once, resolve_data_dir


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_the_folder_of_data(monkeypatch, tmp_path):
    monkeypatch.setenv("MOE_JAX_DATA_DIR", str(tmp_path))
    assert resolve_data_dir(None) == tmp_path
    assert resolve_data_dir("elsewhere") == Path("elsewhere").absolute()
    monkeypatch.delenv("MOE_JAX_DATA_DIR")
    assert resolve_data_dir(None) == Path.home() / ".cache/moe_jax/data"


def test_a_folder_appears_whole_and_once(tmp_path):
    target = tmp_path / "a" / "made"

    def write(folder):
        assert not target.exists()
        (folder / "file").write_text("content")

    build_once(target, write)
    build_once(target, pytest.fail)
    assert (target / "file").read_text() == "content"
    assert names(target.parent) == ["made"]


def test_a_failure_leaves_nothing(tmp_path):
    def write(folder):
        (folder / "file").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        build_once(tmp_path / "made", write)
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".made.tmp-0123").mkdir()
    (tmp_path / ".made.tmp-0123" / "half").touch()
    (tmp_path / ".other.tmp-0123").mkdir()  # of another folder, perhaps being written
    build_once(tmp_path / "made", lambda folder: None)
    assert names(tmp_path) == [".other.tmp-0123", "made"]


def test_without_locks_the_first_to_end_wins(monkeypatch, tmp_path):
    def no_lock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_lock)
    (tmp_path / ".made.tmp-0123").mkdir()  # without a lock it may be in use

    def write(folder):
        (folder / "file").write_text("second")
        build_once(tmp_path / "made", lambda other: (other / "file").write_text("first"))

    build_once(tmp_path / "made", write)
    assert (tmp_path / "made" / "file").read_text() == "first"
    assert names(tmp_path) == [".made.tmp-0123", "made"]


def test_two_processes_prepare_at_once(texts, tmp_path):
    program = f"""
from moe_jax.data.folder import Folder
print(Folder(path={str(texts)!r}, data_dir={str(tmp_path)!r}, sequence_length=16).open("train")
      .fingerprint["content"]["sha256"])
"""
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    message = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert message[0] == message[1] != ""
    assert len(names(tmp_path / "tokens")) == 1


@pytest.mark.parametrize("damage", ["truncated", "no stream", "no meta", "empty meta", "list"])
def test_damaged_data_is_told(damage, texts, tmp_path):
    dataset = Folder(path=str(texts), data_dir=str(tmp_path), sequence_length=16)
    dataset.open("train")
    (folder,) = dataset.stored_in()
    stream, meta = folder / "train.bin", folder / "meta.json"
    if damage == "truncated":
        stream.write_bytes(stream.read_bytes()[:-1])
    elif damage == "no stream":
        stream.unlink()
    elif damage == "no meta":
        meta.unlink()
    else:
        meta.write_text("[]" if damage == "list" else "")
    with pytest.raises(UserError, match="remove the folder"):
        dataset.open("train")
