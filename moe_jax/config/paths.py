"""Where a run's files are: a local folder, or an object store (gs://, s3://) by etils.epath.

All paths below a workdir come from `folder_of`. Local ones are pathlib's and behave as ever. Object
stores have no append, no rename and no locks, but an object appears whole or not at all; what is
written so that it works on both goes through the functions here.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from moe_jax.config.errors import UserError

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
# A file of lines in an object store is sent as a whole: not more often, and not more than this.
SEND_EVERY, SEND_RATE = 10.0, 1e6  # seconds, bytes/s


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path of this file system, ~ and ~user as the home folder. UserError where there is no such
    user."""
    text = str(path)
    if "\0" in text:
        raise UserError(f"{text!r}: a path holds no NUL")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: there is no home folder {Path(text).parts[0]}") from error


def home_cache() -> Path:
    """~/.cache/moe_jax; of a user without a home folder, as in some containers, one among the
    temporary files."""
    try:
        return Path.home() / ".cache" / "moe_jax"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"moe_jax-{os.getuid()}"


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it is in an object store: "gs://bucket/run"."""
    return SCHEME.match(str(path)) is not None


def folder_of(path: str | os.PathLike[str]) -> Path:
    """The path, of this file system or, by its scheme, of an object store. UserError for a scheme
    that is not known, or whose package is not installed."""
    text = str(path)
    if not is_remote(text):
        return expanded(text)
    scheme = text.partition("://")[0]
    if scheme not in PACKAGES:
        known = ", ".join(f"{name}://" for name in PACKAGES)
        raise UserError(f"{text}: folders are local, or {known}")
    from etils import epath

    found = epath.Path(text)
    try:
        found.exists()
    except ImportError as error:
        message = f"{text}: {scheme}:// needs pip install {PACKAGES[scheme]}"
        raise UserError(message) from error
    except Exception as error:
        raise UserError(f"{text}: cannot be reached ({error})") from error
    return found


PATTERNS = "[*?" + ("" if os.sep == "\\" else "\\")


def require_plain(path: str | os.PathLike[str], flag: str) -> None:
    """UserError where a folder's absolute path has a character that names several files: the
    library that writes checkpoints looks for its files by patterns, and would find none, or those
    of another folder. flag: its name, such as "--workdir"."""
    text = str(path) if is_remote(path) else str(folder_of(path).absolute())
    found = [character for character in PATTERNS if character in text]
    if found:
        raise UserError(
            f"{flag}={path}: checkpoints cannot lie below a path with {' or '.join(found)} in it "
            f"({text}); take another"
        )


def resolved(path: str | os.PathLike[str]) -> Path:
    """`folder_of`, absolute and without links where it is local."""
    found = folder_of(path)
    return found if is_remote(found) else found.resolve()


def size_of(file: Path) -> int:
    """Bytes."""
    stat: Any = file.stat()
    return int(stat.length if is_remote(file) else stat.st_size)


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and the folders in it, in order."""
    if not is_remote(folder):
        return [file for file in sorted(folder.rglob("*")) if file.is_file()]
    found: list[Path] = []
    for below in sorted(folder.iterdir()):
        found += files_below(below) if below.is_dir() else [below]
    return found


def file_to_write(path: str | os.PathLike[str], flag: str) -> Path:
    """The file that a flag names, for `write_whole` at the end of a command. UserError where it
    could not be written then. flag: its name, such as "--json"."""
    file = folder_of(path)
    if is_remote(file):
        return file
    if not file.parent.is_dir():
        raise UserError(f"{flag}={path}: no such folder")
    if file.is_dir():
        raise UserError(f"{flag}={path}: is a folder; must be a file")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"{flag}={path}: that folder cannot be written to")
    return file


def write_whole(file: Path, content: str | bytes) -> None:
    """A reader finds all of it or what was there before, also after a crash."""
    content = content.encode() if isinstance(content, str) else content
    if is_remote(file):
        file.write_bytes(content)
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def remove_tree(folder: Path) -> None:
    """All of a folder that can be removed; a folder that is not there is no error."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError):
        remote: Any = folder
        remote.rmtree()


class Staged:
    """A folder for a library that writes local files only: `local` is the folder itself, or a
    temporary one whose files are sent to it where it is in an object store."""

    def __init__(self, folder: Path):
        self._goal = folder if is_remote(folder) else None
        self.local = Path(tempfile.mkdtemp(prefix=f"{folder.name}-")) if self._goal else folder

    def send(self) -> None:
        """All files are in the folder when it returns."""
        if self._goal is None:
            return
        for file in files_below(self.local):
            copy = self._goal / file.relative_to(self.local).as_posix()
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())

    def close(self) -> None:
        """Removes what was only here."""
        if self._goal is not None:
            remove_tree(self.local)


class Lines:
    """A file that grows by lines. Local: each is there at once. In an object store the file is sent
    again as a whole, seldom enough to keep below SEND_RATE, when asked, and when it is closed."""

    def __init__(self, file: Path):
        self._file, self._remote = file, is_remote(file)
        self._sent = time.monotonic()
        self._waiting = False
        if self._remote:
            self._text = file.read_text() if file.exists() else ""
        else:
            self._stream = file.open("a", encoding="utf-8")

    def add(self, line: str) -> None:
        if not self._remote:
            self._stream.write(line + "\n")
            self._stream.flush()
            return
        self._text += line + "\n"
        self._waiting = True
        if time.monotonic() - self._sent > max(SEND_EVERY, len(self._text) / SEND_RATE):
            self.send()

    def send(self) -> None:
        """All lines are there when it returns."""
        if self._waiting:
            self._file.write_text(self._text)
            self._sent, self._waiting = time.monotonic(), False

    def close(self) -> None:
        if not self._remote:
            self._stream.close()
        else:
            self.send()
