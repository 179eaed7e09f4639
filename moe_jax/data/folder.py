"""A folder of text files and .jsonl files, or one such file."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule
from moe_jax.data.store import digest
from moe_jax.data.text import TextDataset

JSONL = ".jsonl"
FEW_DOCUMENTS = 200  # with fewer, splitting by document would be a lottery


@dataclass(frozen=True, kw_only=True)
class Folder(TextDataset):
    """The files below `path` with one of the suffixes, in the order of their paths.

    A text file is one document; in a .jsonl file each line is one, its text the line's `field`.
    validation: path of a validation set of its own. Without it, the share `validation_fraction`
    of the documents validates, chosen by the hash of their text, so that copies stay together. Of
    fewer than 200 documents each is cut instead, its end validates.
    """

    kind_name: ClassVar[str] = "folder"

    path: str = ""
    suffixes: tuple[str, ...] = (".txt", JSONL)
    field: str = "text"
    validation: str | None = None
    validation_fraction: float = 0.05

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not self.path:
            yield "path", "must name a folder or a file of text"
        if not all(suffix.startswith(".") for suffix in self.suffixes) or not self.suffixes:
            yield "suffixes", "must be such as .txt"
        if not 0 < self.validation_fraction < 1:
            yield "validation_fraction", "must lie between 0 and 1"

    def told(self) -> str:
        return self.path

    def identity(self) -> dict[str, Any]:
        """Files by path, size and time of change: a changed folder is tokenised anew."""
        files = [*self._files(self.path), *self._files(self.validation or self.path)]
        stats = [(str(file.absolute()), file.stat()) for file in files]
        return {
            "files": digest([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]),
            "field": self.field,
            "validation_fraction": None if self.validation else self.validation_fraction,
        }

    def documents(self, split: str) -> Iterator[str]:
        if self.validation is not None:
            yield from self._read(self.path if split == "train" else self.validation)
            return
        few = len(list(itertools.islice(self._read(self.path), FEW_DOCUMENTS))) < FEW_DOCUMENTS
        for text in self._read(self.path):
            if few:
                cut = self._cut(text)
                yield text[:cut] if split == "train" else text[cut:]
            elif self._validates(text) == (split == "validation"):
                yield text

    def _cut(self, text: str) -> int:
        """Where the validating end of a text begins: after a line break, if one follows."""
        at = int(len(text) * (1 - self.validation_fraction))
        return text.find("\n", at) + 1 or at

    def _validates(self, text: str) -> bool:
        head = hashlib.sha256(text.encode("utf-8")).digest()[:8]
        return int.from_bytes(head) < self.validation_fraction * 2**64

    def _files(self, path: str) -> list[Path]:
        root = Path(path).expanduser()
        if root.is_file():
            return [root]
        if not root.is_dir():
            raise UserError(f"data: no file or folder {path}")
        files = (file for file in root.rglob("*") if file.suffix in self.suffixes)
        found = sorted(file for file in files if file.is_file())
        if not found:
            raise UserError(f"data: {path} holds no {' or '.join(self.suffixes)} file")
        return found

    def _read(self, path: str) -> Iterator[str]:
        for file in self._files(path):
            try:
                if file.suffix == JSONL:
                    yield from self._read_lines(file)
                else:
                    yield file.read_text("utf-8-sig")
            except UnicodeDecodeError as error:
                raise UserError(f"{file}: not UTF-8 ({error})") from error

    def _read_lines(self, file: Path) -> Iterator[str]:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield self._text_of(line, f"{file}, line {number}")

    def _text_of(self, line: str, where: str) -> str:
        try:
            content = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error})") from error
        text = content.get(self.field) if isinstance(content, dict) else None
        if not isinstance(text, str):
            keys = ", ".join(content) if isinstance(content, dict) else "no fields"
            raise UserError(f"{where}: no text {self.field!r} (data.field); it has {keys}")
        return text.encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a surrogate
