"""Packages and indices of a Debian release, fetched by apt with a configuration of its own: no
root, nothing installed, the system's lists stay as they are."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moe_jax.data.fetch.archives import Archive, last_words

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
HELPER = "/usr/lib/apt/apt-helper"
ARCHITECTURE = "amd64"  # whose index of packages it is, whatever the machine's own is
# Read behind the system's own files: images of containers say there that no language is wanted.
CONFIGURATION = """
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}/cache";
APT::Architecture "{architecture}";
#clear APT::Architectures;
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root";
Acquire::Retries "3";
#clear Acquire::Languages;
Acquire::Languages {{ {languages} }};
"""


@dataclass(frozen=True, kw_only=True)
class DebianPackage(Archive):
    """A .deb by its package and version."""

    client: ClassVar[str] = "apt-get"

    name: str
    version: str
    suite: str = "bookworm"

    @property
    def title(self) -> str:
        return f"Debian package {self.name} {self.version} ({self.suite})"

    @classmethod
    def bring(cls, archives: Sequence[DebianPackage], folder: Path) -> str:
        apt = Apt(folder / "apt", archives[0].suite)
        said = apt.update()
        for archive in archives:
            wanted = f"{archive.name}={archive.version}"
            if apt.mirror:
                said = apt.call("apt-get", "--quiet", "download", wanted, into=folder) or said
            for path in folder.glob(f"{archive.name}_*.deb"):
                path.rename(folder / archive.file)  # apt writes : as %3a
        apt.remove()
        return said


@dataclass(frozen=True, kw_only=True)
class DebianIndex(Archive):
    """An index of a release, unpacked: "Packages", or "Translation-de" of descriptions. sha256: as
    the release's own InRelease file has it."""

    client: ClassVar[str] = "apt-get"
    packed: ClassVar[bool] = True

    suite: str = "bookworm"

    @property
    def title(self) -> str:
        return f"index {self.file} of Debian {self.suite}"

    @classmethod
    def bring(cls, archives: Sequence[DebianIndex], folder: Path) -> str:
        prefix = "Translation-"
        files = [archive.file for archive in archives]
        languages = [name.removeprefix(prefix) for name in files if name.startswith(prefix)]
        apt = Apt(folder / "apt", archives[0].suite, languages)
        said = apt.update()
        for name in files:
            for path in apt.lists(name):
                with (folder / name).open("wb") as sink:
                    subprocess.run([HELPER, "cat-file", str(path)], stdout=sink, check=False)
        apt.remove()
        return said


class Apt:
    """apt with its lists, cache and source in `folder`."""

    def __init__(self, folder: Path, suite: str, languages: Sequence[str] = ()):
        self.folder, self.mirror = folder, mirror()
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        quoted = " ".join(f'"{language}";' for language in languages or ("none",))
        text = CONFIGURATION.format(folder=folder, architecture=ARCHITECTURE, languages=quoted)
        (folder / "apt.conf").write_text(text)
        signed = f" signed-by={KEYRING}" if KEYRING.is_file() else ""
        source = f"deb [arch={ARCHITECTURE}{signed}] {self.mirror} {suite} main\n"
        (folder / "sources.list").write_text(source)

    def call(self, *command: str, into: Path | None = None) -> str:
        name, *rest = command
        configured = [name, "-c", str(self.folder / "apt.conf"), *rest]
        return last_words(configured, {}, into or self.folder)

    def update(self) -> str:
        if not self.mirror:
            return "apt has no source of Debian's packages here"
        return self.call("apt-get", "--quiet", "update")

    def lists(self, name: str) -> list[Path]:
        """The file of an index, packed as apt keeps it."""
        escaped = re.escape(name.replace("_", "%5f"))
        known = re.compile(rf".*_{escaped}(\.\w+)?")
        return [path for path in (self.folder / "lists").iterdir() if known.fullmatch(path.name)]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def mirror() -> str | None:
    """Where this machine's apt gets Debian from."""
    command = ["apt-get", "update", "--print-uris"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"^'(\S+/debian/?)dists/[^/]+/InRelease'", done.stdout, re.MULTILINE)
    return found[1] if found else None
