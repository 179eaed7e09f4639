"""Data sets that are prepared into a folder before their first use."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json, JsonObject
from moe_jax.config.tree import leaves, to_json_dict
from moe_jax.config.values import written
from moe_jax.data.progress import ConsoleReporter, Reporter, Silent
from moe_jax.data.store import resolve_data_dir


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """data_dir: folder of prepared data; None: $MOE_JAX_DATA_DIR, else ~/.cache/moe_jax/data.
    auto_prepare: prepare on first use; else a set that is not prepared is an error.
    """

    kind_name: ClassVar[str]  # its row in DATASETS

    data_dir: str | None = None
    auto_prepare: bool = True

    # What a subclass says

    def prepare(self, reporter: Reporter) -> None:
        """Fills its folders, unless that is done."""
        raise NotImplementedError

    def stored_in(self) -> tuple[Path, ...]:
        """The folders that `prepare` fills."""
        raise NotImplementedError

    def summary(self) -> list[str]:
        """What is prepared, in a line or two."""
        return []

    def description(self) -> str:
        """The data set in messages."""
        return self.kind_name

    # What all have

    def prepare_or_refuse(self) -> None:
        """At the first use: prepares it, or raises UserError."""
        data_dir = resolve_data_dir(self.data_dir)
        if not self.auto_prepare:
            raise UserError(
                f"{self.description()} is not prepared in {data_dir}; prepare it:\n"
                f"  {prepare_command(self)}"
            )
        from moe_jax.parallel.hosts import is_first  # here: other uses do without JAX

        with contextlib.ExitStack() as stack:
            reporter: Reporter = Silent()
            if is_first():
                reporter = stack.enter_context(ConsoleReporter(lines=False))
            reporter.message(f"Preparing {self.description()} in {data_dir} ...")
            self.prepare(reporter)
            for line in self.summary():
                reporter.message(f"  {line}")


def prepare_command(dataset: Prepared) -> str:
    """The command line that prepares a dataset with these settings."""
    usual = _flat(to_json_dict(type(dataset)()))
    settings = {
        path: value
        for path, value in _flat(to_json_dict(dataset)).items()
        if value != usual.get(path) and path not in ("sequence_length", "auto_prepare")
    }
    hints: dict[str, Any] = {path: setting.hint for path, setting, _ in leaves(dataset)}
    flags = [f"--dataset={dataset.kind_name}"]
    for path, value in settings.items():
        flags.append(f"--dataset.{path}={written(value, hints.get(path, str))}")
    return shlex.join(["python", "-m", "moe_jax.data.prepare", *flags])


def _flat(tree: Mapping[str, Json], prefix: str = "") -> JsonObject:
    """{"a.b": value}"""
    flat: JsonObject = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
