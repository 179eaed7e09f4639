"""Checkpoints of a run: Orbax writes and reads the arrays, a sha256 manifest says what is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least

MANIFESTS = "manifests"
META = "meta.json"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Save every `every` steps (and at the end and on SIGTERM/SIGINT); keep the newest `keep_last`
    and, for ever, each whose step is a multiple of `keep_every` (0: none)."""

    every: int = 500
    keep_last: int = 3
    keep_every: int = 0
    verify: bool = True  # check the sha256 manifest on load

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "every", "keep_last")
        yield from at_least(self, 0, "keep_every")


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of itself, without its arrays."""

    step: int
    data_index: int
    config: dict[str, Any]
    fingerprint: dict[str, Any]
    shapes: dict[str, list[int]]


@dataclass(frozen=True)
class Restored:
    """A loaded checkpoint."""

    step: int
    state: Any
    data_index: int
    config: dict[str, Any]
    fingerprint: dict[str, Any]


class Checkpoints:
    """The checkpoints below a folder, one folder per step; a context manager.

    STEP/state holds the arrays by path, STEP/meta.json (data index, config, fingerprint, shapes);
    manifests/STEP.json the sha256 of every file, written once the step is committed. A step
    without a manifest was never whole. Errors of an asynchronous save surface at the next call.
    """

    def __init__(self, directory: str | os.PathLike[str], config: CheckpointConfig):
        self.directory = Path(directory).absolute()
        self._config = config
        self._saving: threading.Thread | None = None
        self._error: BaseException | None = None
        try:
            (self.directory / MANIFESTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{directory}: cannot be written ({error.strerror})") from error
        for leftover in self.directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a save that was killed

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()
        elif self._saving is not None:
            self._saving.join()  # the save may be what the run is resumed from

    # --- reading ---

    def steps(self) -> list[int]:
        """Steps that have a folder, ascending; good or bad."""
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def problem(self, step: int) -> str | None:
        """What is wrong with a step; None for a good one."""
        manifest_file = self.directory / MANIFESTS / f"{step}.json"
        if not manifest_file.exists():
            return "it was not committed whole (no manifest)"
        try:
            manifest = json.loads(manifest_file.read_text())
        except ValueError:
            return f"its manifest {manifest_file} cannot be read"
        folder = self.directory / str(step)
        for name, (size, digest) in manifest.items():
            file = folder / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, not {size}"
            if self._config.verify and sha256(file) != digest:
                return f"{name} has changed since it was written (sha256)"
        return None

    def read_metadata(self) -> Metadata | None:
        """Of the newest good step; None where there is no step. Bad ones are told on stderr.
        UserError where all are bad."""
        step = self._newest_good()
        return None if step is None else self._metadata(step)

    def _metadata(self, step: int) -> Metadata:
        meta = json.loads((self.directory / str(step) / META).read_text())
        return Metadata(step=step, **meta)

    def _newest_good(self) -> int | None:
        steps, reasons = self.steps(), []
        for step in reversed(steps):
            if (problem := self.problem(step)) is None:
                return step
            told = f"checkpoint {self.directory / str(step)} is bad: {problem}"
            reasons.append(told)
            sys.stderr.write(f"warning: {told}; trying the one before it\n")
        if not reasons:
            return None
        raise UserError("no good checkpoint is left:\n  " + "\n  ".join(reasons))

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored | None:
        """The state of `step`, or of the newest good one; None where there is none.

        abstract_state: ShapeDtypeStructs with shardings, on any mesh. UserError where the step is
        not there or bad, or where stored and wanted arrays differ.
        """
        if step is None:
            step = self._newest_good()
            if step is None:
                return None
        elif step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self.directory}: no checkpoint of step {step}; there are {known}")
        elif problem := self.problem(step):
            raise UserError(f"checkpoint {self.directory / str(step)} is bad: {problem}")
        meta = self._metadata(step)
        wanted, structure = flatten(abstract_state)
        _compare(meta.shapes, wanted, self.directory / str(step))
        try:
            loaded = ocp.load_checkpointables(self.directory / str(step), {"state": wanted})
        except Exception as error:
            cause = error.__cause__ or error
            raise UserError(
                f"checkpoint {self.directory / str(step)} cannot be loaded: {cause}"
            ) from error
        leaves = [loaded["state"][name] for name in wanted]
        state = jax.tree.unflatten(structure, leaves)
        return Restored(step, state, meta.data_index, meta.config, meta.fingerprint)

    # --- writing ---

    def save(
        self,
        step: int,
        state: Any,
        *,
        data_index: int,
        config: Mapping[str, Any],
        fingerprint: Mapping[str, Any],
    ) -> None:
        """Starts saving; returns once the arrays are copied, so that they may be donated.

        A good checkpoint of this step stays as it is; a bad one is moved to STEP.bad.
        """
        self.wait()
        folder = self.directory / str(step)
        if folder.exists():
            if self.problem(step) is None:
                return
            folder.rename(_free_name(self.directory / f"{step}.bad"))
        arrays, _ = flatten(state)
        meta = {
            "data_index": data_index,
            "config": dict(config),
            "fingerprint": dict(fingerprint),
            "shapes": {name: list(array.shape) for name, array in arrays.items()},
        }
        try:
            response = ocp.save_checkpointables_async(folder, {"state": arrays})
        except Exception as error:
            raise self._told(error) from error
        self._saving = threading.Thread(
            target=self._finish, args=(step, response, meta), name="checkpoint"
        )
        self._saving.start()

    def _finish(self, step: int, response: Any, meta: dict[str, Any]) -> None:
        """In the background: waits for the commit, then writes meta, manifest, and cleans up."""
        try:
            response.result()
            folder = self.directory / str(step)
            (folder / META).write_text(json.dumps(meta))
            manifest = {
                file.relative_to(folder).as_posix(): (file.stat().st_size, sha256(file))
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            }
            target = self.directory / MANIFESTS / f"{step}.json"
            temporary = target.with_suffix(".tmp")
            temporary.write_text(json.dumps(manifest, indent=1))
            os.replace(temporary, target)
            self._remove_old()
        except BaseException as error:
            self._error = error

    def _remove_old(self) -> None:
        good = [s for s in self.steps() if (self.directory / MANIFESTS / f"{s}.json").exists()]
        for step in good[: -self._config.keep_last]:
            if not self._config.keep_every or step % self._config.keep_every:
                (self.directory / MANIFESTS / f"{step}.json").unlink()
                shutil.rmtree(self.directory / str(step), ignore_errors=True)

    def wait(self) -> None:
        """Until the running save is done; raises what went wrong with it."""
        if self._saving is not None:
            self._saving.join()
            self._saving = None
        if self._error is not None:
            error, self._error = self._error, None
            raise self._told(error) from error

    def _told(self, error: BaseException) -> UserError:
        chain: BaseException | None = error
        while chain is not None:
            full = isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT)
            if full or "RESOURCE_EXHAUSTED" in str(chain) or "No space left" in str(chain):
                return UserError(
                    f"no space left for a checkpoint in {self.directory}; older steps are kept",
                    exit_code=1,
                )
            chain = chain.__cause__ or chain.__context__
        return UserError(f"checkpoint in {self.directory} failed: {error}", exit_code=1)


def flatten(state: Any) -> tuple[dict[str, Any], Any]:
    """Leaves by path, such as "params.layers.00.moe.experts.w_up", and the tree's structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    return named, structure


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _free_name(path: Path) -> Path:
    number, found = 1, path
    while found.exists():
        number, found = number + 1, path.with_name(f"{path.name}{number}")
    return found


def _compare(stored: Mapping[str, list[int]], wanted: Mapping[str, Any], where: Path) -> None:
    """UserError with every array that is missing, left over or of another shape."""
    lines = []
    for name in sorted(set(stored) | set(wanted)):
        if name not in wanted:
            lines.append(f"{name}: stored with shape {tuple(stored[name])}, not in the model")
        elif name not in stored:
            lines.append(f"{name}: wanted with shape {tuple(wanted[name].shape)}, not stored")
        elif tuple(stored[name]) != tuple(wanted[name].shape):
            shapes = f"{tuple(stored[name])}, wanted {tuple(wanted[name].shape)}"
            lines.append(f"{name}: stored with shape {shapes}")
    if lines:
        shown = "\n  ".join(
            lines[:12] + ([f"... and {len(lines) - 12} more"] if lines[12:] else [])
        )
        raise UserError(f"checkpoint {where} does not fit the model:\n  {shown}")


# --- warm start ---


@dataclass
class WarmStartReport:
    """What became of every tensor."""

    used: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        titles = {
            "used": "used as they are",
            "adapted": "copied cyclically to another number of experts",
            "new": "newly initialised",
            "unused": "of the old run, unused",
        }
        lines = ["warm start:"]
        for name, title in titles.items():
            paths = getattr(self, name)
            lines.append(f"  {len(paths)} tensors {title}" + (":" if paths else ""))
            lines += [f"    {path}" for path in paths]
        return "\n".join(lines)


def warm_start(new: Any, old: Any) -> tuple[Any, WarmStartReport]:
    """Parameters `new` with the values of `old` where paths and shapes agree.

    Where only the number of experts differs (experts' first axis behind the stack of layers, the
    last axis of a router's kernel), expert i takes the old expert i modulo their number. The rest
    keeps its new initialisation.
    """
    report = WarmStartReport()
    new_flat, structure = flatten(new)
    old_flat, _ = flatten(old)
    values = []
    for name, value in new_flat.items():
        before = old_flat.get(name)
        parts = name.split(".")
        axis = 1 if "experts" in parts else -1 if "router" in parts else None
        if before is not None and before.shape == value.shape:
            report.used.append(name)
            values.append(jnp.asarray(before, value.dtype))
        elif before is not None and axis is not None and _same_but(axis, before, value):
            index = np.arange(value.shape[axis]) % before.shape[axis]
            report.adapted.append(f"{name} {before.shape} -> {value.shape}")
            values.append(jnp.asarray(np.take(np.asarray(before), index, axis), value.dtype))
        else:
            report.new.append(name)
            values.append(value)
    report.unused = [name for name in old_flat if name not in new_flat]
    return jax.tree.unflatten(structure, values), report


def _same_but(axis: int, old: Any, new: Any) -> bool:
    def rest(array: Any) -> tuple[int, ...]:
        return tuple(np.delete(np.asarray(array.shape), axis))

    return old.ndim == new.ndim and rest(old) == rest(new)
