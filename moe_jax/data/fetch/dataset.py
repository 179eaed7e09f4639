"""What data sets that are fetched share: a card, a folder of what was read from the archives."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import JsonObject, read_object
from moe_jax.data.fetch.archives import Card, fetched
from moe_jax.data.prepared import Prepared
from moe_jax.data.progress import Reporter
from moe_jax.data.store import build_once, is_unchanged, resolve_data_dir, sha256_of

SOURCE = "SOURCE.txt"  # the card, beside the data
SUMS = "sha256.json"  # of each file of the folder


@dataclass(frozen=True, kw_only=True)
class Fetched(Prepared):
    """archive: the archive on disk, or a folder with all of them; None: they are fetched with pip
    or apt. A subclass says its `card` and reads the archives in `extract`."""

    card: ClassVar[Card]
    source_name: ClassVar[str] = ""  # of the folder; kinds that read one in common have the same

    archive: str | None = None

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        """Writes what the data set needs of the archives, by their names, into `folder`."""
        raise NotImplementedError

    def source_folder(self) -> Path:
        """What `extract` has written. The same for all settings."""
        name = f"{self.source_name or self.kind_name}-{self.card.key[:12]}"
        return resolve_data_dir(self.data_dir) / "sources" / name

    def origin(self) -> JsonObject:
        """JSON that changes with the archives or how they are read."""
        return {"archives": self.card.key}

    def prepare_source(self, reporter: Reporter) -> None:
        for line in self.card.lines():
            reporter.message(line)
        build_once(self.source_folder(), self._write)
        self.require_unchanged()

    def require_unchanged(self) -> None:
        """UserError where a file of the folder is not what was written."""
        folder = self.source_folder()
        try:
            sums = read_object(folder / SUMS)
        except FileNotFoundError as error:
            raise UserError(
                f"{folder}: has no {SUMS}, so it is not what was written; remove the folder and "
                "prepare the data again"
            ) from error
        for name, sha256 in sums.items():
            if not is_unchanged(folder / name, str(sha256)):
                raise UserError(
                    f"{folder / name}: has changed since it was written; remove the folder and "
                    "prepare the data again"
                )

    def _write(self, folder: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            setting = "data.archive"
            found = fetched(self.card.archives, self.archive, setting, Path(temporary))
            self.extract(found, folder)
        (folder / SOURCE).write_text("\n".join(self.card.lines()) + "\n", "utf-8")
        sums = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
        (folder / SUMS).write_text(json.dumps(sums, indent=1) + "\n", "utf-8")


@dataclass(frozen=True, kw_only=True)
class FetchedFolder(Fetched):
    """A set that needs nothing but that folder; texts have one of tokens besides."""

    def prepare(self, reporter: Reporter) -> None:
        self.prepare_source(reporter)

    def stored_in(self) -> tuple[Path, ...]:
        return (self.source_folder(),)

    def opened_folder(self) -> Path:
        """The prepared folder; UserError where it is not there and not to be prepared, or where a
        file of it has changed."""
        if self.source_folder().exists():
            self.require_unchanged()
        else:
            self.prepare_or_refuse()
        return self.source_folder()
