"""Texts in pairs, a source and its translation: a row is one pair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json, JsonObject, read_object
from moe_jax.config.paths import write_whole
from moe_jax.data.faults import Tally
from moe_jax.data.order import place_of
from moe_jax.data.packing import require_ids
from moe_jax.data.progress import Reporter
from moe_jax.data.store import TokenFolder
from moe_jax.data.text import TextDataset
from moe_jax.data.tokenizer import WithLanguages
from moe_jax.data.types import SPLITS, ArraySpec

NAMES = "pairs.json"  # of the pairs of languages, in a folder of tokens


@dataclass(frozen=True)
class Pair:
    """A text, its translation, and the languages of both."""

    source: str
    target: str
    languages: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class PairedText(TextDataset):
    """What data sets of translated texts share. A subclass says its `pairs` and `all_languages`.

    Rows: source int32 (S,), the id of the target's language, then the text, then EOS;
    target int32 (S + 1,), BOS, the text, EOS; source_segments, target_segments int32, 1 where a
    text is and 0 in the padding; domain int32 (), the pair of languages. S = sequence_length.
    Pairs of which either text is longer are left out and counted.
    """

    sequence_length: int = 64

    def pairs(self, split: str, tally: Tally) -> Iterator[Pair]:
        """The pairs of a split, always in the same order; counted."""
        raise NotImplementedError

    def all_languages(self) -> tuple[str, ...]:
        """Of all texts, as the settings say them."""
        raise NotImplementedError

    def documents(self, split: str) -> Iterator[str]:
        return self.tallied(split, Tally())

    def tallied(self, split: str, tally: Tally) -> Iterator[str]:
        """Source and target in turn."""
        for pair in self.pairs(split, tally):
            yield pair.source
            yield pair.target

    def vocabulary(self) -> int | None:
        own = super().vocabulary()
        return None if own is None else own + len(self.all_languages())

    def columns(self) -> dict[str, ArraySpec]:
        S = self.sequence_length
        return {
            "source": ArraySpec((S,)),
            "source_segments": ArraySpec((S,)),
            "target": ArraySpec((S + 1,)),
            "target_segments": ArraySpec((S + 1,)),
            "domain": ArraySpec(),
        }

    def write(self, folder: Path, identity: Mapping[str, Json], reporter: Reporter) -> None:
        found: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}

        def tallied(split: str, tally: Tally) -> Iterator[str]:
            for pair in self.pairs(split, tally):
                found[split].append(pair.languages)
                yield pair.source
                yield pair.target

        self.write_documents(folder, identity, tallied, reporter)
        names = sorted({languages for pairs in found.values() for languages in pairs})
        number = {languages: n for n, languages in enumerate(names)}
        for split, pairs in found.items():
            domains = np.asarray([number[languages] for languages in pairs], np.int32)
            np.save(folder / f"{split}.pairs.npy", domains)
        write_whole(folder / NAMES, json.dumps({"pairs": names}) + "\n")

    def open(self, split: str) -> PairRows:
        return PairRows(self, self.opened(split), split)

    def summary(self) -> list[str]:
        """What is prepared: what was read, the splits, and the pairs of each two languages."""
        lines = super().summary()
        for split in SPLITS:
            rows = self.open(split)
            each = ", ".join(
                f"{name} {count:,}"
                for name, count in zip(rows.domains, rows.rows_by_domain, strict=True)
            )
            left = f"; {rows.left_out:,} longer than a row" if rows.left_out else ""
            lines.append(f"pairs of {split}: {each}{left}")
        return lines


class PairRows:
    """A split of pairs. `Rows` of types.py; domains are named "de-en", from German to English."""

    def __init__(self, dataset: PairedText, tokens: TokenFolder, split: str):
        self._dataset, self._scatter = dataset, split != "train"
        self._stream = tokens.stream(split)
        self.read = tokens.read.in_short()
        languages = dataset.all_languages()
        self.tokenizer = WithLanguages(tokens.tokenizer, languages)
        self.pairs = [tuple(pair) for pair in read_object(tokens.folder / NAMES)["pairs"]]
        self.domains = tuple("-".join(pair) for pair in self.pairs)
        path = tokens.folder / f"{split}.pairs.npy"
        domains = np.load(path)
        ends = np.flatnonzero(self._stream == tokens.tokenizer.eos_id) + 1
        if len(ends) != 2 * len(domains):
            raise UserError(
                f"{path}: {len(domains)} pairs of {len(ends)} texts; remove the folder and "
                "prepare the data again"
            )
        self._starts = np.concatenate([[0], ends])
        lengths = np.diff(self._starts).reshape(-1, 2)
        # A source has a language's id in the place of BOS; a target's BOS is only read.
        fits = (lengths <= [dataset.sequence_length, dataset.sequence_length + 1]).all(axis=1)
        self._kept = np.flatnonzero(fits)
        self.left_out = len(domains) - len(self._kept)
        self.domain_of_row = domains[self._kept]
        digest = hashlib.sha256(domains.astype("<i4").tobytes()).hexdigest()
        self.fingerprint: JsonObject = {
            "kind": dataset.kind_name,
            "split": split,
            "packing": "a pair a row",
            "sequence_length": dataset.sequence_length,
            "tokenizer": self.tokenizer.describe(),
            "content": {
                **tokens.splits[split].describe(),
                "pairs": digest,
                "domains": list(self.domains),
            },
        }

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def rows_by_domain(self) -> tuple[int, ...]:
        counts = np.bincount(self.domain_of_row, minlength=len(self.domains))
        return tuple(map(int, counts))

    def place_of(self, index: int) -> int:
        """Which pair that fits stands at row `index`."""
        return place_of(index, len(self), self._scatter)

    def texts(self, index: int) -> tuple[str, str]:
        """Source and target of a row."""
        source, target = self._ids(self.place_of(index))
        return self.tokenizer.decode(source), self.tokenizer.decode(target)

    def _ids(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """With BOS and EOS."""
        first = 2 * self._kept[place]
        a, b, c = self._starts[first : first + 3]
        return self._stream[a:b], self._stream[b:c]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place, S = self.place_of(index), self._dataset.sequence_length
        source, target = (ids.astype(np.int32) for ids in self._ids(place))
        domain = int(self.domain_of_row[place])
        source[0] = self.tokenizer.language_id(str(self.pairs[domain][1]))
        for ids in (source, target):
            require_ids(ids, self.tokenizer.vocab_size, self._dataset.description())
        row = {"domain": np.asarray(domain, np.int32)}
        for name, ids, length in (("source", source, S), ("target", target, S + 1)):
            filled = np.full(length, self.tokenizer.pad_id, np.int32)
            filled[: len(ids)] = ids
            row[name] = filled
            row[f"{name}_segments"] = (np.arange(length) < len(ids)).astype(np.int32)
        return row
