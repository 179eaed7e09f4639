"""What is wrong with a part of a file, and what is done about it: stop, or pass over and count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json, JsonObject

DAMAGED, NO_FIELD, NO_TEXT = "damaged files", "no such field", "field without text"
EMPTY_TEXT, EMPTY_FILE = "empty texts", "empty files"
NAMES_TOLD = 12


@dataclass(frozen=True)
class Fault:
    """reason: what it is counted under. what: the message."""

    reason: str
    what: str


Item = tuple[str, str | Fault]  # (place in a file, a text or what is wrong there)


def no_field(name: str, names: Iterable[str]) -> Fault:
    """names: of the fields that there are."""
    known = [known if len(known) < 40 else f"{known[:37]}..." for known in names]
    more = ["..."] if len(known) > NAMES_TOLD else []
    there = ", ".join(known[:NAMES_TOLD] + more) or "no fields"
    return Fault(NO_FIELD, f"no text {name!r} (data.field); it has {there}")


def not_text(name: str, kind: str) -> Fault:
    return Fault(NO_TEXT, f"no text {name!r} (data.field); what stands there is of type {kind}")


@dataclass
class Tally:
    """What was read, and what was passed over: for each reason how often, and where first."""

    files: int = 0
    documents: int = 0
    bytes: int = 0
    passed_over: dict[str, list[Json]] = field(default_factory=dict)  # reason: [count, place]

    def add(self, text: str) -> None:
        self.documents += 1
        self.bytes += len(text) if text.isascii() else len(text.encode("utf-8"))

    def pass_over(self, reason: str, place: str) -> None:
        self.passed_over.setdefault(reason, [0, place])[0] += 1

    def refuse_or_pass(self, fault: Fault, file: Path, place: str, on_error: str) -> None:
        """UserError where a fault is to stop the reading; else it is counted."""
        at = f"{file}, {place}" if place else str(file)
        if on_error == "stop":
            hint = "data.on_error=skip passes over what is damaged"
            if fault.reason == NO_FIELD:
                hint = "data.field names another, data.suffixes leaves files out, " + hint
            raise UserError(f"{at}: {fault.what}\n  {hint}")
        self.pass_over(fault.reason, f"{at}: {fault.what}")

    def describe(self) -> JsonObject:
        """JSON, of which `Tally(**...)` makes the tally again."""
        return dict(vars(self))

    def __str__(self) -> str:
        """All of it, in one line."""
        kinds = [
            f"{count:,} {reason} (first: {place})"
            for reason, (count, place) in self.passed_over.items()
        ]
        return self._sizes() + (f"; passed over: {'; '.join(kinds)}" if kinds else "")

    def in_short(self) -> str:
        passed_over = sum(count for count, _ in self.passed_over.values())
        return self._sizes() + (f"; {passed_over:,} passed over" if passed_over else "")

    def _sizes(self) -> str:
        files = f"{self.files:,} files, " if self.files else ""
        return f"{files}{self.documents:,} documents, {self.bytes:,} bytes of text"
