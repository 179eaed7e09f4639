"""Archives by exact version and checksum, and the card that says what a data set is."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from moe_jax.config.errors import UserError
from moe_jax.config.paths import expanded
from moe_jax.data.store import sha256_of

TIMEOUT = 1200.0  # seconds that a client may take
PACKED: dict[str, Any] = {".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file that a client fetches. file: its name; sha256: of its content. packed: a copy that was
    fetched by other means may be packed as mirrors have it (.xz, .bz2, .gz)."""

    client: ClassVar[str]
    packed: ClassVar[bool] = False

    file: str
    sha256: str

    @property
    def title(self) -> str:
        """What is asked of the client."""
        raise NotImplementedError

    @classmethod
    def bring(cls, archives: Sequence[Any], folder: Path) -> str:
        """Has the client write the files into `folder`. Returns the last that it said."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a fetched data set is, said at its preparation and kept beside it.

    source: who made it, and where that is written. license: under which it may be used. terms: what
    else its makers ask for. reading: raised when the same archives are read otherwise.
    """

    title: str
    source: str
    license: str
    archives: tuple[Archive, ...]
    terms: str = ""
    reading: int = 1

    @property
    def key(self) -> str:
        """Changes with any of the archives and with how they are read."""
        sums = [archive.sha256 for archive in self.archives]
        return hashlib.sha256(" ".join([str(self.reading), *sums]).encode()).hexdigest()

    def lines(self) -> Iterator[str]:
        yield f"{self.title}. {self.source}"
        yield f"license: {self.license}{f'. {self.terms}' if self.terms else ''}"
        for archive in self.archives:
            yield f"from {archive.title} ({archive.client}), sha256 {archive.sha256[:16]}..."


def fetched(
    archives: Sequence[Archive], given: str | None, setting: str, folder: Path
) -> dict[str, Path]:
    """The archives by their names: files of the user's, or what clients bring into `folder`.

    given: the one file, or a folder that has all. setting: the name of that, for messages.
    UserError where one is not to be had, or is not the one with the checksum.
    """
    found = (
        _given(archives, given, setting, folder) if given else _brought(archives, setting, folder)
    )
    for archive in archives:
        path = found[archive.file]
        if not path.is_file():
            raise UserError(f"{setting}: no file {path}, which is {archive.title}")
        sha256 = sha256_of(path)
        if sha256 != archive.sha256:
            raise UserError(
                f"{path}: its sha256 is {sha256[:16]}..., and that of {archive.file} is "
                f"{archive.sha256[:16]}..."
            )
    return found


def _given(archives: Sequence[Archive], given: str, setting: str, folder: Path) -> dict[str, Path]:
    path = expanded(given)
    if not path.is_dir():
        if len(archives) > 1:
            names = ", ".join(archive.file for archive in archives)
            raise UserError(f"{setting}: {path} is no folder; it names the one that has {names}")
        if not path.is_file():
            raise UserError(f"{setting}: no file {path}")
        return {archives[0].file: path}
    return {archive.file: _unpacked(path / archive.file, archive, folder) for archive in archives}


def _unpacked(path: Path, archive: Archive, folder: Path) -> Path:
    """The file, or what its packed copy unpacks to."""
    for suffix, opened in PACKED.items() if archive.packed and not path.is_file() else ():
        packed = path.with_name(path.name + suffix)
        if packed.is_file():
            target = folder / path.name
            try:
                with opened(packed) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise UserError(f"{packed}: cannot be unpacked ({error})") from error
            return target
    return path


def _brought(archives: Sequence[Archive], setting: str, folder: Path) -> dict[str, Path]:
    by_client: dict[type[Archive], list[Archive]] = {}
    for archive in archives:
        by_client.setdefault(type(archive), []).append(archive)
    for client, wanted in by_client.items():
        said = client.bring(wanted, folder)
        for archive in wanted:
            if not (folder / archive.file).is_file():
                raise UserError(_missing(archives, archive, setting, said))
    return {archive.file: folder / archive.file for archive in archives}


def _missing(archives: Sequence[Archive], archive: Archive, setting: str, said: str) -> str:
    """said: the client's last words."""
    one = len(archives) == 1
    names = ", ".join(archive.file for archive in archives)
    where = f"{setting}=PATH" if one else f"{setting}=FOLDER, with {names} in it"
    reason = said or "it wrote no such file"
    return (
        f"{archive.title} could not be fetched with {archive.client}: {reason}\n"
        f"  Fetch {archive.file} by other means, and name it: {where}"
    )


def last_words(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> str:
    """Runs a client in `folder`; the last line that it wrote, or why it did not run."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            env={**os.environ, **environment},
            cwd=folder,
            check=False,
        )
    except FileNotFoundError:
        return f"there is no {command[0]} here"
    except subprocess.TimeoutExpired:
        return f"it took more than {TIMEOUT:.0f} seconds"
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else ""
