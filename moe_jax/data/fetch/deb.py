"""Files inside of a .deb, without dpkg."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from moe_jax.config.errors import UserError

MAGIC, HEADER = b"!<arch>\n", 60  # of an ar archive (deb(5)), and of each member


def members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The contents of files by their paths in the package ("usr/share/..."). UserError where one is
    not there."""
    with tarfile.open(fileobj=io.BytesIO(_data(path))) as tar:
        found = {}
        for name in names:
            try:
                file = tar.extractfile(f"./{name}")
            except KeyError:
                file = None
            if file is None:
                raise UserError(f"{path}: it has no file {name}")
            found[name] = file.read()
    return found


def listing(path: Path) -> list[str]:
    """The paths of the files of a package."""
    with tarfile.open(fileobj=io.BytesIO(_data(path))) as tar:
        return [member.name.removeprefix("./") for member in tar if member.isfile()]


def _data(path: Path) -> bytes:
    """data.tar.*, as it is packed."""
    content = path.read_bytes()
    at = len(MAGIC)
    while content.startswith(MAGIC) and at + HEADER <= len(content):
        name = content[at : at + 16].decode("ascii", "replace").strip().rstrip("/")
        size = int(content[at + 48 : at + 58])
        at += HEADER
        if name.startswith("data.tar"):
            return content[at : at + size]
        at += size + size % 2
    raise UserError(f"{path}: no Debian package")
