"""Text in files: a folder of them, a file, a glob or several."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from moe_jax.config.fields import Rule
from moe_jax.config.json_files import JsonObject
from moe_jax.data.faults import EMPTY_FILE, EMPTY_TEXT, Fault, Tally
from moe_jax.data.files import as_tuple, files_of, same_file
from moe_jax.data.readers import READERS, read_file
from moe_jax.data.store import TOKENS, digest, in_share, resolve_data_dir
from moe_jax.data.text import TextDataset
from moe_jax.data.types import SPLITS

READING = 2  # raised when the same files give other documents or splits
FEW_DOCUMENTS = 200  # with fewer, splitting by document would be a lottery
LINE_END = re.compile(r"\r\n?|\n")
SPACE = re.compile(r"\s+")
# Beside the .arrow files of a data set that the library `datasets` has saved.
DESCRIPTIONS = {"dataset_info.json", "dataset_dict.json", "state.json"}


@dataclass(frozen=True, kw_only=True)
class Folder(TextDataset):
    """The text in the files below `path`, in the order of their paths.

    path, validation: a folder, a file, a glob ("shards/**/*.jsonl.zst"), or several of them.
    suffixes: of the files that are read of a folder, packed as .gz or .zst or not; each suffix has
    its reader (data/readers.py), a suffix without one is a text. A .txt is one document; elsewhere
    a line, row or object is one, and its text the `field`, a name or a dotted path.
    validation: a validation set of its own, whose files are not trained on. Without it, the share
    `validation_fraction` of the documents validates, chosen by the hash of their text, so that
    copies stay together. Of fewer than 200 documents each is cut instead, its end validates.
    on_error: what is damaged ends the reading with a message ("stop") or is passed over and counted
    ("skip").
    """

    kind_name: ClassVar[str] = "folder"

    path: str | tuple[str, ...] = ""
    suffixes: tuple[str, ...] = tuple(READERS)
    field: str = "text"
    on_error: Literal["stop", "skip"] = "stop"
    validation: str | tuple[str, ...] | None = None
    validation_fraction: float = 0.05

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not all(as_tuple(self.path)) or not self.path:
            yield "path", "must name folders or files of text"
        if self.validation is not None and not (self.validation and all(as_tuple(self.validation))):
            yield "validation", "must name folders or files of text, or be None"
        if not all(suffix.startswith(".") for suffix in self.suffixes) or not self.suffixes:
            yield "suffixes", "must be such as .txt"
        if not 0 < self.validation_fraction < 1:
            yield "validation_fraction", "must lie between 0 and 1"

    def description(self) -> str:
        return ", ".join(as_tuple(self.path))

    def remedy(self, split: str) -> str:
        if self.validation is not None:
            name = "path" if split == "train" else "validation"
            return f"data.{name} must name files with more text"
        more = f"a larger data.validation_fraction (now {self.validation_fraction:g})"
        less = f"a smaller data.validation_fraction (now {self.validation_fraction:g})"
        choice = less if split == "train" else more
        return f"it takes more text, {choice}, or data.validation=PATH, a set of its own"

    def identity(self) -> JsonObject:
        """Files by path, size and time of change: a changed folder is tokenised anew."""
        splits = []
        for split in SPLITS:
            stats = [(str(file.absolute()), file.stat()) for file in self._files(split)[0]]
            splits.append([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])
        return {
            "reading": READING,
            "files": digest(splits),
            "field": self.field,
            "on_error": self.on_error,
            "validation_fraction": None if self.validation else self.validation_fraction,
        }

    def documents(self, split: str) -> Iterator[str]:
        return self.tallied(split, Tally())

    def tallied(self, split: str, tally: Tally) -> Iterator[str]:
        files, held = self._files(split)
        for file in held:
            tally.pass_over("files of data.validation", str(file))
        if self.validation is not None:
            yield from self._read(files, tally)
            return
        some = itertools.islice(self._read(files, Tally()), FEW_DOCUMENTS)
        few = sum(1 for _ in some) < FEW_DOCUMENTS
        # Both splits are read from the same files, which are counted once.
        for text in self._read(files, tally if split == "train" else Tally()):
            if few:
                cut = cut_of(text, self.validation_fraction)
                yield text[:cut] if split == "train" else text[cut:]
            elif in_share(text, self.validation_fraction) == (split == "validation"):
                yield text

    def _files(self, split: str) -> tuple[list[Path], list[Path]]:
        """The files of a split, and those that it leaves out since the validation set has them."""
        own = None
        if self.validation is not None:
            own = self._found(self.validation, "data.validation")
            if split == "validation":
                return own, []
        files = self._found(self.path, "data.path")
        if own is None:
            return files, []
        names = set(map(same_file, own))
        kept: list[Path] = []
        held: list[Path] = []
        for file in files:
            (held if same_file(file) in names else kept).append(file)
        return kept, held

    def _found(self, paths: str | tuple[str, ...], setting: str) -> list[Path]:
        """The files that paths name, but for what was prepared of them."""
        prepared = str(resolve_data_dir(self.data_dir) / TOKENS) + os.sep
        files = files_of(paths, self.suffixes, setting)
        return [file for file in files if not str(file.absolute()).startswith(prepared)]

    def _read(self, files: list[Path], tally: Tally) -> Iterator[str]:
        for file in files:
            if file.name in DESCRIPTIONS:
                tally.pass_over("descriptions of a data set", str(file))
                continue
            tally.files += 1
            found = False
            for place, item in read_file(file, self.field):
                found = True
                if isinstance(item, Fault):
                    tally.refuse_or_pass(item, file, place, self.on_error)
                elif item:
                    tally.add(item)
                    yield item
                else:
                    tally.pass_over(EMPTY_TEXT, f"{file}, {place}" if place else str(file))
            if not found:
                tally.pass_over(EMPTY_FILE, str(file))


def cut_of(text: str, fraction: float) -> int:
    """Where the validating end of a text begins, about the share `fraction` of it: after a line
    end, else after white space, else anywhere, but never at an end of the text.

    Preferred is the first such place past the share's own beginning, then the last one before; the
    end is between a half and twice the share. A text of one character is not cut.
    """
    at, share = int(len(text) * (1 - fraction)), len(text) * fraction
    last = len(text.rstrip()) - 1  # its end is more than white space
    least, most = max(len(text) - 2 * share, 1), min(len(text) - share / 2, last)
    for separator in (LINE_END, SPACE):
        places = [match.end() for match in separator.finditer(text, max(int(least) - 1, 0))]
        places = [place for place in places if least <= place <= most]
        if after := [place for place in places if place > at]:
            return after[0]
        if places:
            return places[-1]
    return max(min(at, last), 1)
