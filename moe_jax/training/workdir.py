"""A run's folder: held by one process, and what it says of the run besides its metrics."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from moe_jax.config.environment import environment
from moe_jax.config.errors import UserError
from moe_jax.config.json_files import last_step, read_object
from moe_jax.config.lock import FILE, FolderLock
from moe_jax.config.paths import (
    Lines,
    files_below,
    folder_of,
    is_remote,
    remove_tree,
    require_plain,
    write_whole,
)
from moe_jax.config.tree import to_json_dict
from moe_jax.data.tokenizer import carried_tokenizer, carry_tokenizer
from moe_jax.data.types import DataInfo
from moe_jax.models.counts import summary
from moe_jax.parallel.agreement import from_primary, say, together
from moe_jax.parallel.hosts import is_primary
from moe_jax.training.build import Program
from moe_jax.training.experiment import Experiment

HISTORY = "history.jsonl"
METRICS = "metrics.jsonl"
TOKENIZER = "tokenizer"
DATA = "data.json"


@contextlib.contextmanager
def claimed(workdir: str | os.PathLike[str]) -> Iterator[tuple[Path, FolderLock]]:
    """The run's folder, made and held against other writers. A folder that was made for a run that
    is then refused goes again.

    UserError where it cannot be written, where another process writes it, or where the processes
    of the run do not all see the same one.
    """
    require_plain(workdir, "--workdir")
    path = folder_of(workdir)
    lock = FolderLock(path, "train")
    made: list[Path] = []

    def claim() -> str:
        made.extend(make_folders(path, f"--workdir={workdir}"))
        lock.__enter__()
        probe = path / f".writable.{os.getpid()}"
        probe.touch()
        return probe.name

    def find() -> None:
        if not (path / probe).exists():
            message = f"--workdir={workdir}: is not the same folder at all processes; share one"
            raise UserError(message)

    try:
        probe = from_primary(claim)
        together(find)
        if is_primary():
            (path / probe).unlink()
        yield path, lock
    finally:
        if is_primary():
            lock.__exit__()
            if made and is_bare(path):
                remove_tree(path)
                with contextlib.suppress(OSError):  # others have put something there
                    for folder in made[1:]:
                        folder.rmdir()


def make_folders(path: Path, flag: str) -> list[Path]:
    """Makes a folder and those above it; which of them were not there, the innermost first."""
    try:
        if is_remote(path):
            path.mkdir(parents=True, exist_ok=True)
            return []
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        return missing
    except OSError as error:
        raise UserError(f"{flag}: cannot be written ({error.strerror})") from error


def is_bare(path: Path) -> bool:
    """Whether no run has written anything there: empty folders, and the lock."""
    return all(file == path / FILE for file in files_below(path))


def write_facts(program: Program, workdir: Path, info: DataInfo) -> None:
    """config.json, environment.json, data.json and tokenizer/."""
    facts = {
        DATA: {
            "classes": info.classes,
            "domains": info.domains,
            "rows_by_domain": dict(zip(info.domains, info.rows_by_domain, strict=False)),
        },
        "config.json": to_json_dict(program.experiment),
        "environment.json": {**environment(program.mesh), "model": summary(program.counts)},
    }
    for name, content in facts.items():
        write_whole(workdir / name, json.dumps(content, indent=2) + "\n")
    if info.tokenizer is not None:
        carry_tokenizer(info.tokenizer, workdir / TOKENIZER)


def info_of(workdir: Path, experiment: Experiment) -> DataInfo:
    """What the run knows of its data: what it carries, else (an older run, or a tokenizer from
    outside) what its data say."""
    carried = carried_tokenizer(workdir / TOKENIZER)
    if carried is None and "tokens" in experiment.columns:
        return DataInfo.of(experiment.data.open(experiment.evaluation.split))
    return replace(names_of(workdir), tokenizer=carried)


def names_of(workdir: Path) -> DataInfo:
    """The classes and domains that the run's data had; none of a run that has not begun."""
    known = read_object(workdir / DATA) if (workdir / DATA).exists() else {}
    classes, domains = (tuple(map(str, known.get(name, ()))) for name in ("classes", "domains"))
    return DataInfo(classes=classes, domains=domains)


def add_history(workdir: Path, step: int, data_index: int, changes: Sequence[str]) -> None:
    """A line of history.jsonl: a start of the run, from which step and position of the data on, by
    which command, and what it changed of the config or the data (--allow_changes)."""
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": step,
        "data_index": data_index,
        "command": sys.argv,
        "changes": list(changes),
    }
    history = Lines(workdir / HISTORY)
    history.add(json.dumps(line))
    history.close()


def set_aside(workdir: Path, every: int) -> None:
    """Keeps the metrics of a run whose checkpoints are gone, which begins anew: it went beyond its
    first checkpoint (one `every` so many steps), so that they are more than a false start."""
    file = workdir / METRICS
    last = last_step(file)
    if last < every:
        return
    kept = next(
        name
        for number in itertools.count(1)
        if not (name := workdir / f"metrics.before{number}.jsonl").exists()
    )
    write_whole(kept, file.read_text("utf-8"))  # an object cannot be renamed
    file.unlink()
    say(
        f"  warning: {workdir} has metrics up to step {last:,} and no checkpoint: the run begins "
        f"anew, and they are kept in {kept.name}"
    )
