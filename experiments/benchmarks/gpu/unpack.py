"""Unpacks the carried wheels of what this Python lacks, without a network and without pip.

python experiments/benchmarks/gpu/unpack.py WHEELS SITE
"""

from __future__ import annotations

import sys
import zipfile
from importlib import metadata
from pathlib import Path, PurePosixPath


def installed(name: str) -> bool:
    """Whether this Python has the distribution, of any version: what it has wins."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def unpack(wheel: Path, site: Path) -> None:
    """What a wheel holds, with its purelib and platlib parts in their place."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            parts = PurePosixPath(entry.filename).parts
            if parts[0].endswith(".data"):
                if parts[1] not in ("purelib", "platlib"):
                    continue
                parts = parts[2:]
            target = site.joinpath(*parts)
            if entry.is_dir() or not parts or ".." in parts:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(entry))


def main(wheels: str, site: str) -> None:
    taken = []
    for wheel in sorted(Path(wheels).glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        if not installed(name):
            unpack(wheel, Path(site))
            taken.append(f"{name} {version}")
    print("unpacked: " + (", ".join(taken) or "nothing"), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
