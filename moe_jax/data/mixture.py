"""Datasets mixed by weight; each row knows which it comes from (``domain``)."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least
from moe_jax.config.json_files import JsonObject
from moe_jax.config.kinds import Kinds
from moe_jax.config.overrides import apply_overrides
from moe_jax.config.tree import settings as fields_of
from moe_jax.config.values import one_or_more, split_elements
from moe_jax.data.order import place_of
from moe_jax.data.progress import Reporter
from moe_jax.data.sources import PARTS
from moe_jax.data.types import Dataset, Rows, described, require_split

PART = re.compile(
    r"""\s* (?: (?P<label>[\w.-]+) \s*=\s* )?
        (?P<kind>[\w.:]+) \s*
        (?: \( (?P<settings>.*) \) )? \s*
        : \s* (?P<weight>[^:()]+) """,
    re.VERBOSE | re.DOTALL,
)
FORM = "must read KIND: WEIGHT, or LABEL = KIND(setting=value, ...): WEIGHT"


@dataclass(frozen=True)
class Part:
    """One dataset of a mixture. label: the name of its domain."""

    label: str
    dataset: Dataset
    weight: float


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """What mixtures share: the parts, each a text of a kind, its settings and its weight.

    parts: such as "stdlib_text: 0.7" or "poems = folder(path=texts/poems): 0.3"; the label, by
    default the kind, names the domain. Weights count rows and need not add up to 1. Parts without
    a data_dir of their own take the mixture's.
    """

    kinds: ClassVar[Mapping[str, type]]  # that a part may be of
    needs: ClassVar[tuple[str, ...]] = ()  # settings that a part has beside those that are shared
    rows_are: ClassVar[str]  # for messages: what the rows of all parts have in common

    parts: tuple[str, ...]
    data_dir: str | None = None

    def shared(self) -> dict[str, Any]:
        """The settings that the mixture gives to all of its parts."""
        raise NotImplementedError

    def check(self) -> Iterator[Rule]:
        sizes = list(at_least(self, 1, *self.shared()))
        yield from sizes
        if not sizes:
            try:
                self.parsed()
            except UserError as error:
                yield "parts", str(error)

    def parsed(self) -> tuple[Part, ...]:
        """The parts with their datasets. UserError where one of them is wrong."""
        if not self.parts:
            raise UserError("must name at least one part")
        parts = tuple(map(self._parse, self.parts))
        labels = [part.label for part in parts]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise UserError(f"two parts are named {twice[0]}; give them labels: LABEL = KIND: ...")
        return parts

    def _parse(self, text: str) -> Part:
        match = PART.fullmatch(text)
        if match is None:
            raise UserError(f"{text!r} {FORM}")
        try:
            weight = float(match["weight"])
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise UserError(f"{text!r}: the weight must be a number above 0")
        try:
            dataset = self._dataset(match["kind"], match["settings"] or "")
        except UserError as error:
            raise UserError(f"{text!r}: {error}") from error
        return Part(match["label"] or match["kind"], dataset, weight)

    def _dataset(self, kind: str, settings: str) -> Dataset:
        cls = Kinds(self.kinds, Dataset).load(kind)
        fields, own = fields_of(cls), self.shared()
        for name in (*own, *self.needs):
            if name not in fields:
                raise UserError(f"{kind} has no {name}: {self.rows_are}")
        # Where several may stand, quotes say that a comma is part of one.
        lists = [name for name, field in fields.items() if one_or_more(field.hint)]
        pairs = []
        for setting in split_elements(settings):
            path, equals, value = setting.partition("=")
            if not equals:
                raise UserError(f"{setting!r} must read setting=value")
            if path.strip() in own:
                raise UserError(f"{path.strip()} is the mixture's")
            path, value = path.strip(), value.strip()
            pairs.append((path, value if path in lists else value.strip("'\"")))
        if self.data_dir is not None and "data_dir" in fields:
            own["data_dir"] = self.data_dir
        return apply_overrides(cls(**own), pairs)

    def prepare(self, reporter: Reporter) -> None:
        """Prepares each part that needs it."""
        for part in self.parsed():
            if hasattr(part.dataset, "prepare"):
                part.dataset.prepare(reporter)

    def summary(self) -> list[str]:
        """What was read for each part that says so."""
        lines = []
        for part in self.parsed():
            lines += [f"{part.label}: {line}" for line in getattr(part.dataset, "summary", list)()]
        return lines

    def stored_in(self) -> tuple[Path, ...]:
        own = [part.dataset for part in self.parsed() if hasattr(part.dataset, "stored_in")]
        return tuple(folder for dataset in own for folder in dataset.stored_in())


@dataclass(frozen=True, kw_only=True)
class Mixture(Mixed):
    """Rows drawn from several datasets of text by weight.

    All parts have the mixture's sequence_length, and must have the same tokenizer.
    """

    kind_name: ClassVar[str] = "mixture"
    kinds: ClassVar[Mapping[str, type]] = PARTS
    rows_are: ClassVar[str] = "parts are rows of so many tokens"

    sequence_length: int = 256
    parts: tuple[str, ...] = ("stdlib_text: 1",)

    def shared(self) -> dict[str, Any]:
        return {"sequence_length": self.sequence_length}

    def open(self, split: str) -> MixedRows:
        require_split(split)
        parts = self.parsed()
        opened = [part.dataset.open(split) for part in parts]
        known = described(opened[0])
        for part, rows in zip(parts, opened, strict=True):
            if (found := described(rows)) != known or found is None:
                raise UserError(
                    f"the parts of a mixture need one tokenizer: {parts[0].label} has "
                    f"{known or 'none'}, {part.label} has {found or 'none'} (a trained one is "
                    "shared by tokenizer.kind=bpe, tokenizer.file=.../tokenizer.json)"
                )
        return MixedRows(
            opened,
            weights=[part.weight for part in parts],
            labels=[part.label for part in parts],
            scatter=split != "train",
        )

    def vocabulary(self) -> int | None:
        """That of the first part: all have one tokenizer."""
        method = getattr(self.parsed()[0].dataset, "vocabulary", None)
        return None if method is None else method()


class RowsOfParts:
    """What the rows of mixtures share: those of several datasets, one after the other, whose labels
    are the domains.

    mixture: (rows, weight) of each part, which a `Pipeline` draws by. Rows without it are
    evaluated as they are: each once.
    """

    def __init__(
        self,
        kind: str,
        parts: Sequence[Any],
        weights: Sequence[float],
        labels: Sequence[str],
        scatter: bool,
    ):
        self.parts, self.domains = tuple(parts), tuple(labels)
        self.mixture = tuple((len(part), w) for part, w in zip(parts, weights, strict=True))
        self._ends, self._scatter = list(accumulate(map(len, parts))), scatter
        self.fingerprint: JsonObject = {
            "kind": kind,
            "weights": list(weights),
            "parts": [dict(part.fingerprint) for part in parts],
        }

    def __len__(self) -> int:
        return self._ends[-1]

    def place_in(self, index: int) -> tuple[int, int]:
        """Which part the row at `index` is of, and its place there."""
        place = place_of(index, len(self), self._scatter)
        number = bisect.bisect_right(self._ends, place)
        return number, place - (self._ends[number] - len(self.parts[number]))


class MixedRows(RowsOfParts):
    """Of datasets of text. `Rows` of types.py. They keep their domain, not their ``source``, which
    not all of them have."""

    def __init__(
        self, parts: Sequence[Rows], weights: Sequence[float], labels: Sequence[str], scatter: bool
    ):
        super().__init__(Mixture.kind_name, parts, weights, labels, scatter)
        self.tokenizer = parts[0].tokenizer
        self.fingerprint |= {"tokenizer": self.tokenizer.describe()}

    @property
    def read(self) -> str:
        """What was read for each part, where that is known."""
        pairs = zip(self.domains, self.parts, strict=True)
        parts = [(name, getattr(part, "read", "")) for name, part in pairs]
        return "; ".join(f"{name} {read}" for name, read in parts if read)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        domain, place = self.place_in(index)
        row = self.parts[domain][place]
        row = {"tokens": row["tokens"], "segments": row["segments"]}
        return {**row, "domain": np.full((), domain, np.int32)}
