"""Histories of items: what somebody had in which order, the last ones held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least
from moe_jax.config.json_files import JsonObject
from moe_jax.data.order import place_of
from moe_jax.data.table_file import read_table
from moe_jax.data.tokenizer import IdTokenizer
from moe_jax.data.types import ArraySpec, require_split

SPLITS = ("train", "validation", "test")
HELD = 2  # of each history, the last ones: one validates, one tests
EVERY_PLACE = -1  # of `held`: each next item of the row is a target


def history_columns(S: int, items: int) -> dict[str, ArraySpec]:
    """What `HistoryRows` has."""
    return {
        "tokens": ArraySpec((S + 1,), below=items + 1),
        "segments": ArraySpec((S + 1,), below=2),
        "held": ArraySpec(padding=EVERY_PLACE, below=S),
        "seen": ArraySpec((items + 1,), below=2),
    }


def histories(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> list[np.ndarray]:
    """The items of each user by time; those of one time by their numbers."""
    order = np.lexsort((item, time, user))
    cuts = np.flatnonzero(np.diff(user[order])) + 1
    return np.split(item[order].astype(np.int32), cuts)


class HistoryRows:
    """A split. `Rows` of types.py: tokens int32 (S+1,), items from 1 on and 0 behind them; segments
    int32 (S+1,), 1 where one is; held int32 (), the place whose next item is the only target, -1
    where all are; seen int32 (items + 1,), 1 of what somebody had before that one.

    Leave one out by time: of each history the last item is `test`, the one before it `validation`,
    the rest trains. A longer history than S items trains in rows one after the other; what is held
    out comes behind the S items before it. names: of the items, by their ids, for people; that of
    0 is empty.
    """

    def __init__(
        self,
        kind: str,
        items_of: Sequence[np.ndarray],
        names: Sequence[str],
        S: int,
        split: str,
        origin: JsonObject,
    ):
        require_split(split, SPLITS)
        self.names, items = tuple(names), len(names) - 1
        self._S, self._items, self._scatter = S, items, split != "train"
        # (items of the row, items before its target)
        self._rows: list[tuple[np.ndarray, np.ndarray | None]] = []
        for history in items_of:
            if split == "train":
                kept = history[:-HELD]
                starts = range(0, max(len(kept) - 1, 0), S)
                self._rows += [(kept[start : start + S + 1], None) for start in starts]
            elif len(history) > HELD:
                end = len(history) - (1 if split == "validation" else 0)
                row = history[max(end - S - 1, 0) : end]
                self._rows.append((row, history[: end - 1]))
        if not self._rows:
            raise UserError(f"{kind}: the {split} split is empty: histories have {HELD + 1} items")
        self.tokenizer, self.domains = IdTokenizer(items + 1), (kind,)
        content = np.concatenate([row for row, _ in self._rows]).astype("<i4")
        self.fingerprint: JsonObject = {
            "kind": kind,
            "split": split,
            "sequence_length": S,
            "tokenizer": self.tokenizer.describe(),
            "content": {
                **origin,
                "rows": len(self),
                "sha256": hashlib.sha256(content.tobytes()).hexdigest(),
            },
        }

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        items, before = self._rows[place_of(index, len(self), self._scatter)]
        tokens, seen = np.zeros(self._S + 1, np.int32), np.zeros(self._items + 1, np.int32)
        tokens[: len(items)] = items
        if before is not None:
            seen[before] = 1
        held = EVERY_PLACE if before is None else len(items) - 2
        return {
            "tokens": tokens,
            "segments": (np.arange(self._S + 1) < len(items)).astype(np.int32),
            "held": np.asarray(held, np.int32),
            "seen": seen,
        }


@dataclass(frozen=True, kw_only=True)
class HistoryFile:
    """Histories in a .csv or .tsv file of the user's, a row for each time that somebody had
    something.

    path: of the file. user, item, time: its columns; time is a number. items: how many different
    ones there are at most. sequence_length: S, items of a row that a model reads.
    """

    kind_name: ClassVar[str] = "histories"

    path: str = ""
    user: str = "user"
    item: str = "item"
    time: str = "time"
    items: int = 1000
    sequence_length: int = 64

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "sequence_length", "items")

    def vocabulary(self) -> int:
        return self.items + 1

    def columns(self) -> dict[str, ArraySpec]:
        return history_columns(self.sequence_length, self.items)

    def open(self, split: str) -> HistoryRows:
        names = {"user": self.user, "item": self.item, "time": self.time}
        table = read_table(self.path, "data.path", {key: (name,) for key, name in names.items()})
        users, items = ({row[name] for row in table} for name in (self.user, self.item))
        if len(items) > self.items:
            raise UserError(f"data.items: must be at least the {len(items)} of {self.path}")
        number_of_user = {value: n for n, value in enumerate(sorted(users))}
        number_of_item = {value: n for n, value in enumerate(sorted(items), start=1)}
        try:
            time = np.array([float(row[self.time]) for row in table])
        except ValueError as error:
            raise UserError(f"{self.path}: data.time = {self.time}: {error}") from error
        user = np.array([number_of_user[row[self.user]] for row in table])
        item = np.array([number_of_item[row[self.item]] for row in table])
        found = histories(user, item, time)
        titles = [""] * (self.items + 1)
        for value, number in number_of_item.items():
            titles[number] = value
        return HistoryRows(self.kind_name, found, titles, self.sequence_length, split, {})
