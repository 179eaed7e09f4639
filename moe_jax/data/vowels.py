"""The vowels of Peterson and Barney (1952), which the mixture of experts of 1991 was tried on."""

from __future__ import annotations

import csv
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule
from moe_jax.config.json_files import JsonObject
from moe_jax.data.fetch.archives import Archive, Card, last_words
from moe_jax.data.fetch.dataset import FetchedFolder
from moe_jax.data.order import place_of
from moe_jax.data.types import NO_LABEL, ArraySpec, require_split

# Run by a process of its own: Praat is GPL, and nothing of the package imports it.
SCRIPT = """
import sys
from parselmouth.praat import call
table = call("Create formant table (Peterson & Barney 1952)")
call(table, "Save as tab-separated file", sys.argv[1])
"""
TABLE = "peterson_barney_1952.tsv"
VOWELS = ("iy", "ih", "eh", "ae", "aa", "ao", "uh", "uw", "ah", "er")
PAPER = ("iy", "ih", "aa", "ah")  # the four of the paper: [i], [I], [a], [A]
FORMANTS = ("F0", "F1", "F2", "F3")
SPEAKERS = 76
TRAINING = 50  # speakers to learn from, as in the paper


@dataclass(frozen=True, kw_only=True)
class PraatTable(Archive):
    """A table that Praat has built in, saved as text."""

    client: ClassVar[str] = "Praat, of the extra `vowels`"

    command: str

    @property
    def title(self) -> str:
        return f'"{self.command}", saved as a tab-separated file'

    @classmethod
    def bring(cls, archives: Sequence[PraatTable], folder: Path) -> str:
        said = ""
        for archive in archives:
            said = last_words([sys.executable, "-c", SCRIPT, archive.file], {}, folder)
        if "No module named 'parselmouth'" in said:
            return 'it is not installed: pip install "moe_jax[vowels]"'
        return said


CARD = Card(
    title="1,520 vowels: 76 men, women and children, ten vowels, each twice, by their formants",
    source="Peterson and Barney, Control methods used in a study of the vowels, JASA 24 (1952), as "
    "Praat has it",
    license="the table is data of a publication; Praat is GPL, and is run, not imported",
    archives=(
        PraatTable(
            command="Create formant table (Peterson & Barney 1952)",
            file=TABLE,
            sha256="6a9cb6afeed6d512c24c36578a6cd7ccf2c7c8146100a0c19a18df6d787c240f",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Vowels(FetchedFolder):
    """Formants of spoken vowels: 50 speakers, drawn once, train and 26 validate.

    vowels: which of iy ih eh ae aa ao uh uw ah er; the default are the four of Jacobs, Jordan,
    Nowlan and Hinton (1991). formants: which of F0 F1 F2 F3. They are scaled to mean 0 and
    deviation 1 over the speakers that train.
    """

    kind_name: ClassVar[str] = "vowels"
    card: ClassVar[Card] = CARD

    vowels: tuple[str, ...] = PAPER
    formants: tuple[str, ...] = ("F1", "F2")

    def check(self) -> Iterator[Rule]:
        if len(set(self.vowels) & set(VOWELS)) < max(len(self.vowels), 2):
            yield "vowels", f"must be two or more of {', '.join(VOWELS)}"
        if not self.formants or set(self.formants) - set(FORMANTS):
            yield "formants", f"must be some of {', '.join(FORMANTS)}"

    def class_names(self) -> tuple[str, ...]:
        return self.vowels

    def columns(self) -> dict[str, ArraySpec]:
        return {
            "features": ArraySpec((len(self.formants),), "float32"),
            "label": ArraySpec(padding=NO_LABEL),
        }

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        (folder / TABLE).write_bytes(archives[TABLE].read_bytes())

    def open(self, split: str) -> VowelRows:
        require_split(split)
        return VowelRows(self, split)


class VowelRows:
    """A split. `Rows` of types.py: features float32 (formants,), label int32 (). speakers: the
    number of each row's speaker."""

    tokenizer = None
    domains = ("vowels",)

    def __init__(self, dataset: Vowels, split: str):
        with (dataset.opened_folder() / TABLE).open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        wanted = [row for row in rows if row["Vowel"] in dataset.vowels]
        speakers = np.array([int(row["Speaker"]) for row in wanted])
        if not wanted or len(set(speakers)) != SPEAKERS:
            raise UserError(
                f"{dataset.opened_folder() / TABLE}: not the table of {SPEAKERS} people"
            )
        features = np.array([[float(row[name]) for name in dataset.formants] for row in wanted])
        trains = np.isin(speakers, training_speakers())
        scaled = (features - features[trains].mean(axis=0)) / features[trains].std(axis=0)
        chosen = trains if split == "train" else ~trains
        self.classes, self._scatter = dataset.vowels, split != "train"
        self.features = scaled[chosen].astype(np.float32)
        self.hertz = features[chosen]
        self.speakers = speakers[chosen]
        labels = [dataset.vowels.index(row["Vowel"]) for row in wanted]
        self.labels = np.array(labels, np.int32)[chosen]
        content = self.features.astype("<f4").tobytes() + self.labels.astype("<i4").tobytes()
        self.fingerprint: JsonObject = {
            "kind": dataset.kind_name,
            "split": split,
            "content": {**dataset.origin(), "sha256": hashlib.sha256(content).hexdigest()},
        }

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place = place_of(index, len(self), self._scatter)
        return {"features": self.features[place], "label": np.asarray(self.labels[place])}


def training_speakers() -> list[int]:
    """Numbers, from 1, of the speakers that train, drawn by a hash."""
    order = sorted(
        range(1, SPEAKERS + 1), key=lambda n: hashlib.sha256(f"speaker {n}".encode()).digest()
    )
    return order[:TRAINING]
