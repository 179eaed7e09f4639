"""The files of the running Python's standard library, cut into training and validation."""

from __future__ import annotations

import hashlib
import platform
import sys
import sysconfig
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_jax.config.errors import UserError

# Names of the TFDS data set; each Python version has its own.
NAME, CONFIG, VERSION = "stdlib_text", f"python_{platform.python_version()}", "1.0.0"

# encodings: some 70 near-copies of one file; pydoc_data: one generated file of escaped text.
LEFT_OUT = ("encodings", "pydoc_data")
TESTS = {"test", "tests", "idle_test", "__pycache__"}

# Validation: about this share of the text, from packages that are small (so that they are many)
# and that share hardly any run of lines with another package (tokenize.py lives on in lib2to3).
VALIDATION_SHARE = 0.06
LARGEST_SHARE = 0.0075
COPIED_SHARE = 0.02
RUN_OF_LINES = 5


@dataclass(frozen=True)
class Document:
    """A file of the standard library. path: below its root. package: the top-level module."""

    path: str
    package: str
    text: str

    @property
    def size(self) -> int:
        return len(self.text.encode("utf-8"))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


def documents_of_stdlib(root: Path | None = None) -> list[Document]:
    """The .py files of the standard library's own modules, by path; no tests, nothing installed.

    root: by default the running Python's. UserError where there are no source files.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for top in sorted(root.iterdir()) if root.is_dir() else ():
        package = top.stem if top.suffix == ".py" else top.name
        if package not in sys.stdlib_module_names or package in LEFT_OUT:
            continue
        for file in [top] if top.is_file() else sorted(top.rglob("*.py")):
            path = file.relative_to(root)
            if file.suffix != ".py" or TESTS & set(path.parts):
                continue
            try:
                text = file.read_text("utf-8")
            except UnicodeDecodeError:
                continue  # in another encoding on purpose
            if text.strip():
                documents.append(Document(path.as_posix(), package, text))
    if not documents:
        raise UserError(f"stdlib_text: this Python has no source files in {root}")
    return documents


def split_by_package(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """{"train", "validation"}: no package is in both, see the constants above.

    Which package comes next is decided by the sha256 of its name, so that another Python version
    chooses nearly the same ones.
    """
    packages: dict[str, list[Document]] = {}
    for document in documents:
        packages.setdefault(document.package, []).append(document)
    sizes = {name: sum(file.size for file in files) for name, files in packages.items()}
    copied, total = copied_shares(packages), sum(sizes.values())
    validation: set[str] = set()
    for name in sorted(packages, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if sum(sizes[chosen] for chosen in validation) >= VALIDATION_SHARE * total:
            break
        if sizes[name] <= LARGEST_SHARE * total and copied[name] <= COPIED_SHARE:
            validation.add(name)
    return {
        "train": [document for document in documents if document.package not in validation],
        "validation": [document for document in documents if document.package in validation],
    }


def copied_shares(packages: Mapping[str, Sequence[Document]]) -> dict[str, float]:
    """For each package, the share of its runs of lines that another package has too."""
    runs = {name: set().union(*map(_runs, files)) for name, files in packages.items()}
    owners = Counter(run for of_package in runs.values() for run in of_package)
    return {
        name: sum(owners[run] > 1 for run in of_package) / max(len(of_package), 1)
        for name, of_package in runs.items()
    }


def _runs(document: Document) -> set[tuple[str, ...]]:
    """Every run of consecutive lines, without indents and empty lines."""
    lines = [line for line in map(str.strip, document.text.splitlines()) if line]
    return {tuple(lines[i : i + RUN_OF_LINES]) for i in range(len(lines) - RUN_OF_LINES + 1)}
