"""Checkpoints of a run: Orbax writes and reads the arrays, a sha256 manifest says what is whole."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from moe_jax.config.errors import NO_SPACE, UserError
from moe_jax.config.fields import Rule, at_least, one_of
from moe_jax.config.json_files import Json, JsonObject, parsed
from moe_jax.config.paths import (
    files_below,
    folder_of,
    is_remote,
    remove_tree,
    size_of,
    write_whole,
)
from moe_jax.models.network import flat
from moe_jax.parallel.agreement import from_primary, together
from moe_jax.parallel.hosts import is_primary
from moe_jax.training import read_back
from moe_jax.training.restack import Restacking

Leaf = TypeVar("Leaf", jax.Array, jax.ShapeDtypeStruct)
MANIFESTS = "manifests"
META = "meta.json"
UNFINISHED = ("*.saving*", "*.deleted")  # left by a save or a removal that was killed


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Save every `every` steps (and at the end and on SIGTERM/SIGINT); keep the newest `keep_last`
    and, for ever, each whose step is a multiple of `keep_every` (0: none).

    read_back: what is read back from the files before a step counts as saved. "index": every
    array is there, of its shape and dtype; "sample": and some of them, others at each step, hold
    the values that were saved; "values": all of them do. verify: the files' sha256 on load.
    """

    every: int = 500
    keep_last: int = 3
    keep_every: int = 0
    read_back: str = "sample"
    verify: bool = True

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "every", "keep_last")
        yield from at_least(self, 0, "keep_every")
        yield from one_of(self, read_back.MODES, "read_back")


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of itself, without its arrays."""

    step: int
    data_index: int
    config: JsonObject
    fingerprint: JsonObject
    shapes: dict[str, list[int]]
    dtypes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Restored:
    """A loaded checkpoint."""

    step: int
    state: PyTree[jax.Array]
    data_index: int
    config: JsonObject
    fingerprint: JsonObject


class Unreadable(Exception):
    """A step whose arrays cannot be read, though nothing was wrong with its manifest."""


class Checkpoints:
    """The checkpoints below a folder, one folder per step; a context manager.

    STEP/state holds the arrays by path, STEP/meta.json (data index, config, fingerprint, shapes,
    dtypes); manifests/STEP.json the sha256 of every file. All of it is written beside the place,
    as STEP.saving, and renamed to STEP last: a process killed at any moment leaves no half step,
    and a step without a manifest is not whole. Errors of an asynchronous save surface at the next
    call.

    With several processes all call the same methods in the same order, on a folder that all of
    them see. Process 0 writes what is not an array, and it alone decides which steps are there and
    good, so that all restore the same one; what one of them fails at is an error of all.

    In an object store nothing can be renamed: a step is written in its place, and is one from when
    its manifest, which comes last, is there.

    read_only: nothing below the folder is created or cleaned up, so that the run that it belongs
    to may go on saving meanwhile.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: CheckpointConfig,
        *,
        read_only: bool = False,
    ):
        folder = folder_of(directory)
        self._remote = is_remote(folder)
        self.directory = folder if self._remote else folder.absolute()
        self._config = config
        self._saving: threading.Thread | None = None
        self._error: BaseException | None = None
        self._good: set[int] = set()  # checked already
        self._bad: dict[int, str] = {}  # step -> why; each is reported on stderr
        logging.getLogger("absl").addFilter(_is_news)
        self._read_only = read_only
        if not read_only:
            self._prepare()

    def _prepare(self) -> None:
        """Creates the folder and removes what a killed process has left half done."""

        def prepare() -> None:
            try:
                (self.directory / MANIFESTS).mkdir(parents=True, exist_ok=True)
                self._try_folder()
            except OSError as error:
                message = f"{self.directory}: cannot be written ({error.strerror})"
                raise UserError(message, exit_code=1 if error.errno in NO_SPACE else 2) from error
            for pattern in UNFINISHED:
                for leftover in self.directory.glob(pattern):
                    remove_tree(leftover)
            if self._remote:
                for step in set(self._folders()) - set(self.steps()):
                    remove_tree(self.directory / str(step))

        from_primary(prepare)

    def _try_folder(self) -> None:
        """OSError where no folder can be made. Orbax must not be the one to find out: its threads
        wait five minutes for a folder that it failed to make, and the process waits for them."""
        folder = self.directory / f"process{jax.process_index()}.saving"
        folder.mkdir(exist_ok=True)
        try:
            (folder / "state").mkdir(exist_ok=True)
        finally:
            remove_tree(folder)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends a running save in any case: it may be what the run is resumed from. A folder in
        which nothing was saved goes again."""
        if error is None:
            self.close()
            return
        if self._saving is not None:
            self._saving.join()
        if self._error is not None:
            sys.stderr.write(f"warning: {self._as_user_error(self._error)}\n")
        if not self._read_only and not self._remote and is_primary():
            with contextlib.suppress(OSError):  # not empty
                (self.directory / MANIFESTS).rmdir()
                self.directory.rmdir()

    # --- reading ---

    def steps(self) -> list[int]:
        """Good and bad ones, ascending: folders; in an object store, those with a manifest."""
        found = self._folders()
        return [step for step in found if self._manifest(step).exists()] if self._remote else found

    def _folders(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        folders = (p.name for p in self.directory.iterdir() if p.is_dir())
        return sorted(int(name) for name in folders if re.fullmatch("0|[1-9][0-9]*", name))

    def problem(self, step: int) -> str | None:
        """What is wrong with a step; None for a good one."""
        manifest_file = self._manifest(step)
        try:
            manifest = {name: (size, digest) for name, (size, digest) in _read(manifest_file)}
        except FileNotFoundError:
            return "it was not committed whole (no manifest)"
        except (OSError, ValueError, TypeError, AttributeError):
            return f"its manifest {manifest_file} cannot be read"
        folder = self.directory / str(step)
        for name in (META, *manifest):
            file = folder / name
            if not file.is_file() or name not in manifest:
                return f"{name} is missing"
            size, digest = manifest[name]
            if size_of(file) != size:
                return f"{name} has {size_of(file)} bytes, not {size}"
            if self._config.verify and sha256(file) != digest:
                return f"{name} has changed since it was written (sha256)"
        try:
            self._metadata(step)
        except (OSError, ValueError, TypeError, AttributeError):
            return f"{META} cannot be read"
        return None

    def read_metadata(self) -> Metadata | None:
        """Of the newest good step; None where there is no step. Bad ones are reported on stderr.
        UserError where all are bad."""
        self.wait()
        step = next(self._good_steps(), None)
        return None if step is None else self._metadata(step)

    def _metadata(self, step: int) -> Metadata:
        """OSError, ValueError or TypeError where it cannot be read or is none."""
        found = Metadata(step=step, **dict(_read(self.directory / str(step) / META)))
        objects = (found.config, found.fingerprint, found.shapes, found.dtypes)
        if not isinstance(found.data_index, int) or not all(isinstance(o, dict) for o in objects):
            raise ValueError(f"{META} says nothing of a checkpoint")
        return found

    def _good_steps(self) -> Iterator[int]:
        """Newest first. Bad steps are reported on stderr; UserError where all are bad."""
        found = False
        for step in reversed(from_primary(self.steps)):
            if step not in self._good and step not in self._bad:
                problem = from_primary(functools.partial(self.problem, step))
                if problem is None:
                    self._good.add(step)
                else:
                    self._set_bad(step, problem)
            if step in self._good:
                yield step
                found = found or step in self._good  # not found to be unreadable meanwhile
        if self._bad and not found:
            message = "\n  ".join(self._names(step) for step in sorted(self._bad, reverse=True))
            raise UserError(
                f"no good checkpoint is left:\n  {message}\n"
                "To train from the beginning take another --workdir."
            )

    def _set_bad(self, step: int, problem: str) -> None:
        self._good.discard(step)
        self._bad[step] = problem
        if is_primary():
            sys.stderr.write(f"warning: {self._names(step)}; trying the one before it\n")

    def _names(self, step: int) -> str:
        return f"checkpoint {self.directory / str(step)} is bad: {self._bad[step]}"

    def restore(
        self,
        abstract_state: PyTree[jax.ShapeDtypeStruct],
        step: int | None = None,
        *,
        partial: bool = False,
        without: Sequence[str] = (),
    ) -> Restored | None:
        """The state of `step`, or of the newest good one; None where there is none.

        abstract_state: ShapeDtypeStructs with shardings, on any mesh. partial: arrays that it does
        not name are left in the file; without: these alone are. Layers that are stacked in another
        way in the file are brought to the wanted one. UserError where the step is not
        there or bad, or where stored and wanted arrays differ.
        """
        self.wait()
        if step is not None:
            from_primary(functools.partial(self._require, step))
            try:
                return self._load(step, abstract_state, partial, without)
            except Unreadable as error:
                raise UserError(str(error)) from error
        for good in self._good_steps():
            try:
                return self._load(good, abstract_state, partial, without)
            except Unreadable as error:
                self._set_bad(good, str(error))
        return None

    def _require(self, step: int) -> None:
        """UserError where the step is not there or bad."""
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self.directory}: no checkpoint of step {step}; there are {known}")
        if problem := self.problem(step):
            raise UserError(f"checkpoint {self.directory / str(step)} is bad: {problem}")

    def _load(
        self,
        step: int,
        abstract_state: PyTree[jax.ShapeDtypeStruct],
        partial: bool,
        without: Sequence[str],
    ) -> Restored:
        # Imported here: whoever only reads a config need not wait for it.
        from orbax.checkpoint import v1 as ocp

        folder, meta = self.directory / str(step), self._metadata(step)
        wanted, structure = flatten(abstract_state)
        form = Restacking.of(wanted, meta.shapes)
        _compare(meta, form.asked, folder, partial, without)
        context = ocp.Context()
        context.pytree.loading.partial_load = partial or bool(without)
        try:
            with context:
                loaded = together(
                    lambda: ocp.load_checkpointables(
                        for_orbax(folder), {"state": _not_empty(form.asked)}
                    )["state"]
                )
        except Exception as error:
            message = f"checkpoint {folder} cannot be loaded: {error.__cause__ or error}"
            if self._config.verify or _is_out_of_memory(error):
                raise UserError(
                    message, exit_code=1
                ) from error  # the files are as they were written
            raise Unreadable(message) from error
        read = {
            name: loaded[name]
            if name in loaded
            else jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
            for name, leaf in form.asked.items()
        }
        arrays = form.restacked(wanted, read)
        state = jax.tree.unflatten(structure, [arrays[name] for name in wanted])
        return Restored(step, state, meta.data_index, meta.config, meta.fingerprint)

    # --- writing ---

    def save(
        self,
        step: int,
        state: PyTree[jax.Array],
        *,
        data_index: int,
        config: Mapping[str, Json],
        fingerprint: Mapping[str, Json],
    ) -> None:
        """Starts saving; returns once the arrays are copied, so that they may be donated.

        A good checkpoint of this step stays as it is; a bad one is moved to STEP.bad.
        """
        self.wait()
        if from_primary(functools.partial(self._is_kept, step)):
            return
        self._good.discard(step)
        self._bad.pop(step, None)
        arrays, _ = flatten(state)
        meta = {
            "data_index": data_index,
            "config": dict(config),
            "fingerprint": dict(fingerprint),
            "shapes": {name: list(array.shape) for name, array in arrays.items()},
            "dtypes": {name: str(array.dtype) for name, array in arrays.items()},
        }
        # Copy the arrays now: they may be donated as soon as this returns.
        names = read_back.drawn(arrays, self._config.read_back, step)
        checksums = {name: read_back.checksum(arrays[name]) for name in names}
        response = self._start(step, arrays)
        self._saving = threading.Thread(
            target=self._finish, args=(step, response, meta, checksums), name="checkpoint"
        )
        self._saving.start()

    def _start(self, step: int, arrays: Mapping[str, jax.Array]) -> Any:  # Orbax's response
        """Starts writing the arrays. UserError at all processes where one of them cannot."""
        from orbax.checkpoint import v1 as ocp

        try:
            together(self._try_folder)  # before Orbax, in which the processes wait for each other
            folder = for_orbax(self._unpublished(step))
            return ocp.save_checkpointables_async(folder, {"state": _not_empty(arrays)})
        except Exception as error:
            self._discard(step)
            raise self._as_user_error(error) from error

    def _is_kept(self, step: int) -> bool:
        """Whether there is a good checkpoint of this step. A bad one is moved to STEP.bad, with its
        manifest; in an object store, where moving is copying, it is removed."""
        folder = self.directory / str(step)
        if not folder.exists():
            return False
        if self.problem(step) is None:
            return True
        if self._remote:
            self._manifest(step).unlink(missing_ok=True)  # first: without it there is no step
            remove_tree(folder)
            return False
        aside = _free_name(self.directory / f"{step}.bad")
        folder.rename(aside)
        if self._manifest(step).exists():
            self._manifest(step).rename(self.directory / MANIFESTS / f"{aside.name}.json")
        return False

    def _finish(
        self, step: int, response: Any, meta: JsonObject, checksums: Mapping[str, int]
    ) -> None:
        """In the background: waits for the arrays, reads them back, publishes the step, and cleans
        up."""
        try:
            response.result()
            if is_primary():
                self._read_back(step, meta, checksums)
                self._publish(step, meta)
                self._remove_old(step)
        except BaseException as error:
            self._error = error
            self._discard(step)

    def _read_back(self, step: int, meta: JsonObject, checksums: Mapping[str, int]) -> None:
        """ValueError where the files do not hold what was saved."""
        folder = for_orbax(self._unpublished(step)) / "state"
        found = list(itertools.islice(read_back.problems(folder, meta, checksums), 4))
        if found:
            more = ", ..." if found[3:] else ""
            message = "; ".join(found[:3]) + more
            raise ValueError(f"what was written cannot be read back: {message}")

    def _unpublished(self, step: int) -> Path:
        """Where a step is written. In an object store that is its place."""
        return self.directory / (str(step) if self._remote else f"{step}.saving")

    def _discard(self, step: int) -> None:
        """Removes what a failed save has written: it may be what fills the disk."""
        if is_primary():
            pattern = f"{step}.saving*"
            leftovers = [self._unpublished(step)] if self._remote else self.directory.glob(pattern)
            for leftover in leftovers:
                remove_tree(leftover)

    def _publish(self, step: int, meta: JsonObject) -> None:
        """Writes meta.json and the manifest; then the step appears, whole, under its name."""
        folder = self._unpublished(step)
        _write(folder / META, meta)
        manifest = {
            file.relative_to(folder).as_posix(): (size_of(file), sha256(file))
            for file in files_below(folder)
        }
        _write(self._manifest(step), manifest)
        if not self._remote:
            folder.rename(self.directory / str(step))

    def _remove_old(self, step: int) -> None:
        """Retention, of steps up to the one just saved. Later ones (an earlier step was resumed)
        and those known to be bad are no substitute for a good one, and stay."""
        good = [
            s
            for s in self.steps()
            if s <= step and s not in self._bad and self._manifest(s).exists()
        ]
        for old in good[: -self._config.keep_last]:
            if not self._config.keep_every or old % self._config.keep_every:
                folder = self.directory / str(old)
                if not self._remote:
                    folder = folder.rename(self.directory / f"{old}.deleted")
                self._manifest(old).unlink()
                remove_tree(folder)

    def _manifest(self, step: int) -> Path:
        return self.directory / MANIFESTS / f"{step}.json"

    def wait(self) -> None:
        """Until the running save is done; raises what went wrong with it."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        saving.join()
        together(self._raise_error)  # once all are here process 0 has written the manifest

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise self._as_user_error(error) from error

    def close(self) -> None:
        """Waits for the running save."""
        self.wait()

    def _as_user_error(self, error: BaseException) -> UserError:
        chain: BaseException | None = error
        while chain is not None:
            full = isinstance(chain, OSError) and chain.errno in NO_SPACE
            if full or "RESOURCE_EXHAUSTED" in str(chain) or "No space left" in str(chain):
                return UserError(
                    f"no space left for a checkpoint in {self.directory}; older steps are kept",
                    exit_code=1,
                )
            chain = chain.__cause__ or chain.__context__
        return UserError(f"checkpoint in {self.directory} failed: {error}", exit_code=1)


def _is_news(record: logging.LogRecord) -> bool:
    """Not the tracebacks that Orbax logs of what it raises as well."""
    return not (record.exc_info and "orbax" in record.pathname)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in f"{error} {error.__cause__}"


def _not_empty(arrays: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Orbax refuses arrays without elements; their shape and dtype, in meta.json, say it all."""
    return {name: array for name, array in arrays.items() if array.size}


def _read(file: Path) -> Iterable[tuple[str, Json]]:
    """The items of a JSON object. OSError, ValueError, AttributeError where it is none."""
    found: Iterable[tuple[str, Json]] = parsed(file.read_bytes()).items()
    return found


def _write(file: Path, content: Mapping[str, Json]) -> None:
    """JSON, atomically: a reader finds all of it or nothing."""
    write_whole(file, json.dumps(content, indent=1))


def for_orbax(folder: Path) -> Path:
    """The folder as Orbax takes it, which reads and writes object stores by itself."""
    return folder


def flatten(state: PyTree) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """Leaves by path, such as "params.layers.00.moe.experts.w_up", and the tree's structure."""
    return flat(state, "."), jax.tree.structure(state)


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _free_name(path: Path) -> Path:
    number, found = 1, path
    while found.exists():
        number, found = number + 1, path.with_name(f"{path.name}{number}")
    return found


def _compare(
    stored: Metadata,
    wanted: Mapping[str, jax.ShapeDtypeStruct],
    where: Path,
    partial: bool = False,
    without: Sequence[str] = (),
) -> None:
    """UserError with every array that is missing, left over (but for `partial`), of another shape
    or another dtype (Orbax would cast silently)."""
    lines = []
    left = set() if partial else set(stored.shapes) - set(without)
    for name in sorted(left | set(wanted)):
        if name not in wanted:
            shape = tuple(stored.shapes[name])
            lines.append(f"{name}: stored with shape {shape}, not in the model")
            continue
        shape, dtype = tuple(wanted[name].shape), str(wanted[name].dtype)
        if name not in stored.shapes:
            lines.append(f"{name}: wanted with shape {shape}, not stored")
        elif (before := tuple(stored.shapes[name])) != shape:
            lines.append(f"{name}: stored with shape {before}, wanted {shape}")
        elif (old := stored.dtypes.get(name, dtype)) != dtype:
            lines.append(f"{name}: stored as {old}, wanted as {dtype}")
    if lines:
        more = [f"... and {len(lines) - 12} more"] if lines[12:] else []
        message = "\n  ".join(lines[:12] + more)
        raise UserError(f"checkpoint {where} does not fit the model:\n  {message}")
