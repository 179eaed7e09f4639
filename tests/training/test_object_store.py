"""A workdir in an object store: gs:// onto a folder that behaves as one.

The stand-in takes the place of gcsfs: it refuses appending, and renaming. Orbax writes arrays to
object stores by itself (TensorStore), which only a real one can show: here it is given the folder.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from etils import epath
from fsspec.implementations.local import LocalFileSystem

from moe_jax.config import paths
from moe_jax.config.errors import UserError
from moe_jax.training import checkpoint
from tests.commands.conftest import texts, tiny  # noqa: F401 - fixtures
from tests.drawn import some

SPEED = ("tokens_per_s", "step_time_s")


class Object(io.BytesIO):
    """Whole or not at all there for readers, from when it is closed."""

    def __init__(self, file: Path, parts: Path):
        super().__init__()
        self._file, self._part = file, parts / uuid.uuid4().hex

    def close(self) -> None:
        if not self.closed:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._part.write_bytes(self.getvalue())
            self._part.replace(self._file)
        super().close()


class Bucket(LocalFileSystem):
    """gs:// as a folder of this machine."""

    protocol = ("gs", "gcs")
    root = ""
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = str(path)
        if text.startswith("gs://"):
            text = f"{cls.root}/{text.removeprefix('gs://')}"
        return super()._strip_protocol(text)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "a" in mode or "+" in mode:
            raise NotImplementedError("an object cannot be appended to")
        self.makedirs(str(Path(path).parent), exist_ok=True)
        if "w" in mode:
            return Object(Path(path), Path(f"{self.root}-parts"))
        return super()._open(path, mode, **options)

    def mv(self, *arguments: Any, **options: Any) -> None:
        raise NotImplementedError("an object cannot be renamed")

    mv_file = rename = move = mv


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where gs://bucket/ is."""
    monkeypatch.setattr(Bucket, "root", str(tmp_path / "gs"))
    fsspec.register_implementation("gcs", Bucket, clobber=True)

    def of_orbax(folder: Path) -> Path:
        return Path(str(folder).replace("gs://", f"{tmp_path}/gs/")).absolute()

    monkeypatch.setattr(checkpoint, "for_orbax", of_orbax)
    yield tmp_path / "gs" / "bucket"


def lines(folder: Path) -> list[dict]:
    found = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in SPEED} for line in found]


def test_the_stand_in_is_an_object_store(bucket: Path):
    file = epath.Path("gs://bucket/a/b.txt")
    file.write_text("x")
    assert (bucket / "a" / "b.txt").read_text() == "x" and file.read_text() == "x"
    with pytest.raises(NotImplementedError):
        file.open("a").write("y")
    with pytest.raises(NotImplementedError):
        file.rename(epath.Path("gs://bucket/c"))
    assert paths.size_of(file) == 1
    with file.open("w") as again:
        again.write("yy")
        again.flush()
        assert file.read_text() == "x"  # until all of it is there
    assert file.read_text() == "yy"


@pytest.mark.lab
def test_a_run_in_an_object_store_is_the_run(cli, tiny, bucket: Path, tmp_path: Path):  # noqa: F811
    local, remote = tmp_path / "local", "gs://bucket/run"
    assert cli("train", f"--config={tiny}", f"--workdir={local}")[0] == 0
    code, _, err = cli("train", f"--config={tiny}", f"--workdir={remote}")
    assert code == 0, err
    assert lines(bucket / "run") == lines(local)
    names = ("config.json", "environment.json")
    assert all((bucket / "run" / name).is_file() for name in names)
    assert any((bucket / "run" / "tensorboard").iterdir())
    steps = sorted(file.name for file in (bucket / "run/checkpoints/manifests").iterdir())
    assert steps == sorted(file.name for file in (local / "checkpoints/manifests").iterdir())

    # It is complete, it is read, it is reported.
    code, out, _ = cli("train", f"--config={tiny}", f"--workdir={remote}")
    assert code == 0 and "the run is complete" in out
    code, _, err = cli("report", f"--workdir={remote}", "--routing", "--batches=1")
    assert code == 0, err
    assert "Text by expert" in (bucket / "run" / "report.html").read_text("utf-8")
    code, out, err = cli("evaluate", f"--workdir={remote}")
    assert code == 0, err


@pytest.mark.grid
def test_a_run_goes_on_from_the_last_whole_step(cli, tiny, bucket: Path, tmp_path: Path):  # noqa: F811
    whole, remote = "gs://bucket/whole", "gs://bucket/run"
    code, _, err = cli("train", f"--config={tiny}", f"--workdir={whole}")
    assert code == 0, err
    shutil.copytree(bucket / "whole", bucket / "run")
    # Killed while the last step was written: its manifest, which comes last, is not there.
    (bucket / "run/checkpoints/manifests/12.json").unlink()
    code, _, err = cli("train", f"--config={tiny}", f"--workdir={remote}")
    assert code == 0, err
    assert "bad" not in err
    assert lines(bucket / "run") == lines(bucket / "whole")
    assert (bucket / "run/checkpoints/manifests/12.json").is_file()


@pytest.mark.grid
def test_a_killed_first_save_is_no_step(cli, tiny, bucket: Path):  # noqa: F811
    whole, remote = "gs://bucket/whole", "gs://bucket/run"
    code, _, err = cli("train", f"--config={tiny}", f"--workdir={whole}")
    assert code == 0, err
    shutil.copytree(bucket / "whole", bucket / "run")
    manifests = bucket / "run/checkpoints/manifests"
    for manifest in manifests.iterdir():
        manifest.unlink()
    checkpoints = checkpoint.Checkpoints(
        f"{remote}/checkpoints", checkpoint.CheckpointConfig(), read_only=True
    )
    assert checkpoints.steps() == [] and checkpoints.read_metadata() is None
    assert (bucket / "run/checkpoints/4").is_dir()  # a reader removes nothing
    code, _, err = cli("train", f"--config={tiny}", f"--workdir={remote}")
    assert code == 0, err
    assert lines(bucket / "run") == lines(bucket / "whole")
    assert len(list(manifests.iterdir())) == 3


@pytest.mark.lab
def test_a_save_in_progress_does_not_disturb_a_reader(cli, tiny, bucket: Path):  # noqa: F811
    remote = "gs://bucket/run"
    code, _, err = cli("train", f"--config={tiny}", f"--workdir={remote}")
    assert code == 0, err
    folder = bucket / "run/checkpoints"
    (folder / "manifests/12.json").unlink()
    (folder / "12/meta.json").unlink()
    code, out, err = cli("evaluate", f"--workdir={remote}")
    assert code == 0 and "bad" not in err, err
    assert "step 8" in out and (folder / "12").is_dir()


@pytest.mark.grid
def test_a_checkpoint_is_never_ahead_of_the_metrics(
    cli,
    tiny,  # noqa: F811
    bucket: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(paths, "SEND_EVERY", 1e9)
    seen: dict[int, list[int]] = {}
    publish = checkpoint.Checkpoints._publish

    def watched(self: Any, step: int, meta: dict) -> None:
        seen[step] = [line["step"] for line in lines(bucket / "run")]
        assert sum(f.stat().st_size for f in (bucket / "run/tensorboard").iterdir()) > 0
        publish(self, step, meta)

    monkeypatch.setattr(checkpoint.Checkpoints, "_publish", watched)
    code, _, err = cli("train", f"--config={tiny}", "--workdir=gs://bucket/run")
    assert code == 0, err
    assert list(seen) == [4, 8, 12]
    # Reading a checkpoint back takes time, in which the metrics may go on.
    assert all(max(found) >= step for step, found in seen.items())


@pytest.mark.grid
@pytest.mark.parametrize("scheme", some(["gs://bucket", "local"], ["gs://bucket"]))
def test_a_profile_lies_in_the_workdir(cli, tiny, bucket: Path, tmp_path: Path, scheme):  # noqa: F811
    workdir = f"{scheme}/run" if "://" in scheme else str(tmp_path / "run")
    found = bucket / "run" if "://" in scheme else tmp_path / "run"
    code, _, err = cli(
        "train",
        f"--config={tiny}",
        f"--workdir={workdir}",
        "--config.logging.profile_steps=(2,3)",
        "--config.steps=4",
    )
    assert code == 0, err
    assert list((found / "profile").rglob("*.xplane.pb"))


def test_lines_are_sent_seldom_and_all_of_them_at_the_end(bucket: Path, monkeypatch):
    file = epath.Path("gs://bucket/lines.jsonl")
    out = paths.Lines(file)
    for n in range(1000):
        out.add(str(n))
    assert not file.exists()
    monkeypatch.setattr(paths, "SEND_EVERY", 0.0)
    monkeypatch.setattr(paths, "SEND_RATE", 1e12)
    out.add("now")
    assert len(file.read_text().splitlines()) == 1001
    monkeypatch.setattr(paths, "SEND_EVERY", 1e9)
    out.add("last")
    out.close()
    assert file.read_text().splitlines()[-1] == "last"
    again = paths.Lines(file)
    again.add("more")
    again.close()
    assert len(file.read_text().splitlines()) == 1003


def test_what_cannot_be_reached_is_told(cli, tiny, monkeypatch):  # noqa: F811
    with pytest.raises(UserError, match="folders are local, or gs://, s3://"):
        paths.folder_of("hdfs://cluster/run")
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it was not installed
    code, _, err = cli("train", f"--config={tiny}", "--workdir=s3://bucket/run")
    assert code == 2 and "needs pip install s3fs" in err
    code, _, err = cli(
        "sweep", f"--config={tiny}", "--out=gs://bucket/sweep", "--sweep=moe.router.k=1,2"
    )
    assert code == 2


def test_local_files_are_written_whole(tmp_path: Path):
    file = tmp_path / "file"
    paths.write_whole(file, "old")
    paths.write_whole(file, "new")
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(OSError):
        paths.write_whole(tmp_path / "no" / "file", "x")
    paths.remove_tree(tmp_path / "not_there")
