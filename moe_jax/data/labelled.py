"""Texts with a label each: a row is one text, cut or filled up to the length of a row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json, read_object
from moe_jax.config.paths import write_whole
from moe_jax.data.faults import Tally
from moe_jax.data.order import place_of
from moe_jax.data.packing import require_ids
from moe_jax.data.progress import Reporter
from moe_jax.data.store import TokenFolder
from moe_jax.data.text import TextDataset
from moe_jax.data.types import NO_LABEL, SPLITS, ArraySpec, Tokenizer

NAMES = "names.json"  # of classes and domains, in a folder of tokens


BETWEEN = ","  # the labels of an example that has several


def several(examples: Sequence[Example], classes: Sequence[str], width: int) -> np.ndarray:
    """int32 (rows, width): 1 where the example has the label; others are passed over."""
    number = {name: n for n, name in enumerate(classes)}
    labels = np.zeros((len(examples), width), np.int32)
    for row, example in enumerate(examples):
        for name in example.label.split(BETWEEN):
            if name.strip() in number:
                labels[row, number[name.strip()]] = 1
    return labels


@dataclass(frozen=True)
class Example:
    """A text with the names of its class and its domain, and further numbers."""

    text: str
    label: str
    domain: str
    values: Mapping[str, float]


class LabelledText(TextDataset):
    """What data sets of labelled texts share. A subclass says its `examples`.

    Rows: tokens and segments int32 (S,), one text behind BOS, cut off after S = sequence_length
    ids; label and domain int32 (); numbers float32 () by name.
    """

    numbers: ClassVar[tuple[str, ...]] = ()  # names of `Example.values`

    def examples(self, split: str, tally: Tally) -> Iterator[Example]:
        """The examples of a split, always in the same order; counted."""
        raise NotImplementedError

    def class_names(self) -> tuple[str, ...]:
        """The classes as the settings say them; (): those that the data have, in order."""
        return ()

    def several_labels(self) -> int:
        """Of how many labels a text may have several, which `Example.label` then has with BETWEEN
        between; 0: it has one. The column is `labels`, int32 (number,), in the place of `label`."""
        return 0

    def documents(self, split: str) -> Iterator[str]:
        return (example.text for example in self.examples(split, Tally()))

    def tallied(self, split: str, tally: Tally) -> Iterator[str]:
        return (example.text for example in self.examples(split, tally))

    def columns(self) -> dict[str, ArraySpec]:
        S = self.sequence_length
        label = {"label": ArraySpec(padding=NO_LABEL)}
        if width := self.several_labels():
            label = {"labels": ArraySpec((width,), padding=NO_LABEL, below=2)}
        return {
            "tokens": ArraySpec((S,)),
            "segments": ArraySpec((S,)),
            **label,
            "domain": ArraySpec(),
            **{name: ArraySpec(dtype="float32") for name in self.numbers},
        }

    def write(self, folder: Path, identity: Mapping[str, Json], reporter: Reporter) -> None:
        self.write_examples(folder, identity, reporter, self.class_names())

    def write_examples(
        self,
        folder: Path,
        identity: Mapping[str, Json],
        reporter: Reporter,
        classes: tuple[str, ...],
    ) -> None:
        """classes: (): those that the examples have."""
        found: dict[str, list[Example]] = {split: [] for split in SPLITS}

        def tallied(split: str, tally: Tally) -> Iterator[str]:
            for example in self.examples(split, tally):
                found[split].append(Example("", example.label, example.domain, example.values))
                yield example.text

        self.write_documents(folder, identity, tallied, reporter)
        every = [example for examples in found.values() for example in examples]
        names = {"classes": classes or _in_order({example.label for example in every})}
        names |= {"domains": _in_order({example.domain for example in every})}
        for split, examples in found.items():
            domains = [names["domains"].index(e.domain) for e in examples]
            arrays: dict[str, Any] = {
                **self.label_arrays(examples, tuple(names["classes"])),
                "domain": np.asarray(domains, np.int32),
            }
            for name in self.numbers:
                arrays[name] = np.asarray([e.values[name] for e in examples], np.float32)
            np.savez(_labels_path(folder, split), **arrays)
        write_whole(folder / NAMES, json.dumps(names, indent=1) + "\n")

    def label_arrays(
        self, examples: Sequence[Example], classes: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        """The column of labels: numbers of the classes, or 0 and 1 of each."""
        if width := self.several_labels():
            return {"labels": several(examples, classes, width)}
        number = {name: n for n, name in enumerate(classes)}
        return {"label": np.asarray([number[e.label] for e in examples], np.int32)}

    def counts(self, labels: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
        """How many rows have each class."""
        if "labels" in labels:
            return np.asarray(labels["labels"].sum(axis=0))
        return np.bincount(labels["label"], minlength=classes)

    def open(self, split: str) -> LabelledRows:
        return LabelledRows(self, self.opened(split), split)

    def summary(self) -> list[str]:
        """What is prepared: what was read, the splits, and the share of each class."""
        lines = super().summary()
        for split in SPLITS:
            rows = self.open(split)
            counts = self.counts(rows.labels, len(rows.classes))
            each = ", ".join(
                f"{name} {count:,}" for name, count in zip(rows.classes, counts, strict=True)
            )
            lines.append(f"classes of {split}: {each}")
        return lines


class LabelledRows:
    """A split of labelled texts. `Rows` of types.py."""

    def __init__(self, dataset: LabelledText, tokens: TokenFolder, split: str):
        self._dataset, self._scatter = dataset, split != "train"
        self._stream = tokens.stream(split)
        self.tokenizer: Tokenizer = tokens.tokenizer
        self.read = tokens.read.in_short()
        names = read_object(tokens.folder / NAMES)
        self.classes, self.domains = tuple(names["classes"]), tuple(names["domains"])
        path = _labels_path(tokens.folder, split)
        with np.load(path) as arrays:
            self.labels = {name: arrays[name] for name in arrays.files}
        self._ends = np.flatnonzero(self._stream == self.tokenizer.eos_id) + 1
        if len(self._ends) != len(self.labels["domain"]):
            raise UserError(
                f"{path}: {len(self.labels['domain'])} labels of {len(self._ends)} texts; remove "
                "the folder and prepare the data again"
            )
        self.fingerprint = {
            "kind": dataset.kind_name,
            "split": split,
            "packing": "a text a row",
            "sequence_length": dataset.sequence_length,
            "tokenizer": self.tokenizer.describe(),
            "content": {
                **tokens.splits[split].describe(),
                "labels": _digest(self.labels),
                "classes": list(self.classes),
                "domains": list(self.domains),
            },
        }

    def __len__(self) -> int:
        return len(self._ends)

    def text_ids(self, row: int) -> np.ndarray:
        """All ids of a text, BOS and EOS included."""
        start = self._ends[row - 1] if row else 0
        return self._stream[start : self._ends[row]]

    def place_of(self, index: int) -> int:
        """Which text stands at row `index`."""
        return place_of(index, len(self), self._scatter)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place, S = self.place_of(index), self._dataset.sequence_length
        ids = self.text_ids(place)[:S]
        require_ids(ids, self.tokenizer.vocab_size, self._dataset.description())
        tokens = np.full(S, self.tokenizer.pad_id, np.int32)
        tokens[: len(ids)] = ids
        segments = (np.arange(S) < len(ids)).astype(np.int32)
        labels = {name: values[place] for name, values in self.labels.items()}
        return {"tokens": tokens, "segments": segments, **labels}


def _labels_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.labels.npz"


def _in_order(names: set[str]) -> list[str]:
    """Numbers by their size, before other names."""
    return sorted(
        names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
    )


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        sha256.update(
            name.encode() + arrays[name].astype(arrays[name].dtype.newbyteorder("<")).tobytes()
        )
    return sha256.hexdigest()
