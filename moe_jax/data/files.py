"""Which files a path, a glob or several of them name."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from moe_jax.config.errors import UserError
from moe_jax.config.paths import expanded
from moe_jax.data.readers import suffix_of


def as_tuple(paths: str | Iterable[str] | None) -> tuple[str, ...]:
    """One path or several as several."""
    if paths is None:
        return ()
    return (paths,) if isinstance(paths, str) else tuple(paths)


def files_of(paths: str | Iterable[str], suffixes: Collection[str], setting: str) -> list[Path]:
    """The files of each path in turn, those of a folder or a glob in their order, each file once.

    A name that exists is that file or folder. Of a folder and of a glob that names no suffix, such
    as "shards/*", the files with one of the suffixes. setting: in messages. UserError where a path
    leads to no file.
    """
    found: dict[str, Path] = {}
    for path in as_tuple(paths):
        try:
            files = _files_of_one(path, suffixes, setting)
        except (OSError, ValueError) as error:  # a name too long, say
            raise UserError(f"{setting}: {path}: cannot be read ({error})") from error
        found |= {str(file.absolute()): file for file in files}
    return list(found.values())


def same_file(file: Path) -> str:
    """A name that all links to the file have in common."""
    return os.path.realpath(file)


def _files_of_one(path: str, suffixes: Collection[str], setting: str) -> list[Path]:
    root = expanded(path)
    if root.is_file():
        return [root]
    if root.is_dir():
        return _below(root, suffixes) or _none(path, suffixes, setting)
    if not glob.has_magic(path):
        raise UserError(f"{setting}: no file or folder {path}")
    matches = [Path(match) for match in sorted(glob.glob(str(root), recursive=True))]
    if not matches:
        raise UserError(f"{setting}: nothing matches {path}")
    names_suffix = bool(root.suffix) and not glob.has_magic(root.suffix)
    files: list[Path] = []
    for match in matches:
        if match.is_dir():
            files += _below(match, suffixes)
        elif match.is_file() and (names_suffix or is_one_of(match, suffixes)):
            files.append(match)
    return files or _none(path, suffixes, setting)


def _below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    files = (file for file in folder.rglob("*") if is_one_of(file, suffixes))
    return sorted(file for file in files if file.is_file())


def is_one_of(file: Path, suffixes: Collection[str]) -> bool:
    """Whether the name ends in one of the suffixes, upper or lower case, packed or not."""
    name, format_suffix = file.name.lower(), suffix_of(file.name)
    return any(
        suffix == format_suffix or (name.endswith(suffix) and name != suffix)
        for suffix in map(str.lower, suffixes)
    )


def _none(path: str, suffixes: Collection[str], setting: str) -> list[Path]:
    raise UserError(f"{setting}: {path} holds no {' or '.join(suffixes)} file")
