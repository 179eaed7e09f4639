"""The documents of one file, by the suffix of its name: a reader for each format.

A reader yields (place, text) for each document and (place, Fault) for what is none; the place is
such as "line 3", "" for the whole file. It reads on after a fault where the format allows it, and
holds one line, row or batch at a time. Text is given as it is, its line ends included.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TextIO, cast

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json, parsed
from moe_jax.data.columns import read_arrow, read_parquet
from moe_jax.data.faults import DAMAGED, Fault, Item, no_field, not_text

NOT_JSON, NOT_UTF8 = "broken JSON", "not UTF-8"
CHUNK = 1 << 16  # characters of an array of JSON
PIECE = 256  # bytes of zstd that are unpacked at a time: of text that repeats itself to a MiB
LONGEST_FIELD = 1 << 30  # characters of a .csv's field: an open quote takes in all that follows
ABSENT = object()


class LabelField(str):
    """The name of a field whose whole numbers are names: 0, 1, ... of classes."""


Reader = Callable[[Path, str], Iterator[Item]]


def read_file(file: Path, field: str) -> Iterator[Item]:
    """The documents and faults of a file, also of one that ends in its middle.

    field: name of the text, or a dotted path to it; without meaning in a file that is a text.
    UserError where a package is missing that reads it.
    """
    documents = 0
    try:
        # Of no bytes at all a reader of columns would say that they are damaged.
        for item in reader_of(file)(file, field) if file.stat().st_size else ():
            documents += isinstance(item[1], str)
            yield item
    except (OSError, EOFError, zlib.error) as error:
        after = f"after {documents:,} documents" if documents else ""
        yield after, Fault(DAMAGED, f"cannot be read ({getattr(error, 'strerror', None) or error})")


def reader_of(file: Path) -> Reader:
    """By the suffix, upper or lower case; what is not known is a text."""
    return READERS.get(suffix_of(file.name), read_text)


def suffix_of(name: str) -> str:
    """ ".jsonl" of "a.jsonl", "a.JSONL" and "a.jsonl.gz"."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in PACKINGS else path.suffix


# Text formats


def read_text(file: Path, field: str) -> Iterator[Item]:
    """The whole file is one document."""
    with _bytes_of(file) as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield "", Fault(NOT_UTF8, f"not UTF-8 ({error})")
        return
    yield "", _zeros(text) or text


def read_json_lines(file: Path, field: str) -> Iterator[Item]:
    """A line is an object; empty lines are none."""
    with _text_of(file, newline=None) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"line {number}", _text_of_line(line, field)


def _text_of_line(line: str, field: str) -> str | Fault:
    if (fault := _not_utf8(line) or _zeros(line)) is not None:
        return fault
    try:
        return text_in(parsed(line), field)
    except json.JSONDecodeError as error:
        return Fault(
            NOT_JSON, f"not JSON ({error.msg.removesuffix(' at')}, at character {error.pos + 1})"
        )
    except ValueError as error:
        return Fault(NOT_JSON, f"not JSON ({error})")


def read_json(file: Path, field: str) -> Iterator[Item]:
    """One array of objects, or JSON lines."""
    with _text_of(file, newline="") as text:
        start = next((c for chunk in iter(lambda: text.read(CHUNK), "") for c in chunk.split()), "")
    yield from (_read_array if start.startswith("[") else read_json_lines)(file, field)


def _read_array(file: Path, field: str) -> Iterator[Item]:
    number = 0
    try:
        with _text_of(file, newline="", errors="strict") as text:
            for number, element in enumerate(array_elements(text), start=1):
                yield f"element {number}", text_in(element, field)
    except UnicodeDecodeError as error:
        yield f"after element {number}", Fault(NOT_UTF8, f"not UTF-8 ({error})")
    except ValueError as error:
        yield f"element {number + 1}", Fault(NOT_JSON, f"not JSON ({error})")


def array_elements(text: TextIO) -> Iterator[Json]:
    """The elements of one array of JSON, of which a few are held at a time. ValueError."""
    decode = json.JSONDecoder().raw_decode
    window = _Window(text)
    window.take("[")
    first = True
    while window.next_character() != "]":
        if not first:
            window.take(",")
        first = False
        yield window.value(decode)
    window.take("]")
    if rest := window.next_character():
        raise ValueError(f"the array is followed by {rest!r}")


class _Window:
    """The part of a text that is being read."""

    def __init__(self, text: TextIO):
        self._text, self._held, self._at = text, "", 0

    def next_character(self) -> str:
        """The next one that is no white space, "" at the end; it stays."""
        while True:
            while self._at < len(self._held):
                if not (character := self._held[self._at]).isspace():
                    return character
                self._at += 1
            if not self._more(CHUNK):
                return ""

    def take(self, wanted: str) -> None:
        if (found := self.next_character()) != wanted:
            raise ValueError(f"{wanted!r} is missing where {found or 'the end'!r} is")
        self._at += 1

    def value(self, decode: Callable[[str, int], tuple[Json, int]]) -> Json:
        self.next_character()
        while True:
            try:
                value, self._at = decode(self._held, self._at)
                return value
            except RecursionError as error:
                raise ValueError("it is nested too deeply") from error
            except json.JSONDecodeError as error:
                # A value that the window cuts off fails at its end, or in a string that is open.
                is_cut = "Unterminated" in error.msg or error.pos > len(self._held) - 16
                if not is_cut or not self._more(max(CHUNK, len(self._held) - self._at)):
                    raise ValueError(error.msg) from error

    def _more(self, size: int) -> bool:
        more = self._text.read(size)
        self._held, self._at = self._held[self._at :] + more, 0
        return bool(more)


def text_in(content: Json, field: str) -> str | Fault:
    """The text of an object: a key of this name, else a path of keys; null is an empty text."""
    value = _value_in(content, field)
    if value is ABSENT:
        return no_field(field, content if isinstance(content, dict) else ())
    if value is None:
        return ""
    if isinstance(field, LabelField) and isinstance(value, bool | int):
        return str(value)
    if not isinstance(value, str):
        return not_text(field, type(value).__name__)
    return value.encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a surrogate


def _value_in(content: Json, field: str) -> Json:
    if isinstance(content, dict) and field in content:
        return content[field]
    for name in field.split("."):
        if content is None:
            return None
        if not isinstance(content, dict) or name not in content:
            return ABSENT
        content = content[name]
    return content


def read_csv(file: Path, field: str) -> Iterator[Item]:
    """Commas between the fields, whose names are the first row."""
    return _read_rows(file, field, csv.excel)


def read_tsv(file: Path, field: str) -> Iterator[Item]:
    return _read_rows(file, field, csv.excel_tab)


def _read_rows(file: Path, field: str, dialect: type[csv.Dialect]) -> Iterator[Item]:
    csv.field_size_limit(LONGEST_FIELD)
    with _text_of(file, newline="") as lines:
        rows = csv.reader(lines, dialect, strict=True)
        header = _row(rows)
        if not isinstance(header, list):
            if header is not None:
                yield "line 1", header
            return
        if header.count(field) != 1:
            yield "line 1", no_field(field, header)
            return
        column = header.index(field)
        while (row := _row(rows)) is not None:
            if row:  # an empty line is none
                yield f"line {rows.line_num}", _text_of_row(row, column, len(header))


def _row(rows: Iterator[list[str]]) -> list[str] | Fault | None:
    """The next row; None at the end."""
    try:
        return next(rows, None)
    except csv.Error as error:
        return Fault("broken rows", f"not a row of the table ({error})")


def _text_of_row(row: list[str] | Fault, column: int, width: int) -> str | Fault:
    if isinstance(row, Fault):
        return row
    if len(row) != width:
        message = f"has {len(row)} fields, the first row {width}"
        return Fault("another number of fields", message)
    whole = "".join(row)
    return _not_utf8(whole) or _zeros(whole) or row[column]


# Bytes and characters


def _not_utf8(text: str) -> Fault | None:
    """Bytes that were no UTF-8 are half surrogates now."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return Fault(NOT_UTF8, f"not UTF-8 (character {error.start + 1})")
    return None


def _zeros(text: str) -> Fault | None:
    at = text.find("\0")
    return None if at < 0 else Fault("NUL bytes", f"holds a NUL byte (character {at + 1})")


@contextlib.contextmanager
def _text_of(file: Path, newline: str | None, errors: str = "surrogateescape") -> Iterator[TextIO]:
    with (
        _bytes_of(file) as stream,
        io.TextIOWrapper(stream, "utf-8-sig", errors=errors, newline=newline) as text,
    ):
        yield text


@contextlib.contextmanager
def _bytes_of(file: Path) -> Iterator[BinaryIO]:
    """What the file holds, unpacked."""
    with file.open("rb") as raw, PACKINGS.get(file.suffix.lower(), _plain)(raw, file) as stream:
        yield stream


def _plain(raw: BinaryIO, file: Path) -> BinaryIO:
    return raw


def _gzip(raw: BinaryIO, file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb"))


def _zstd(raw: BinaryIO, file: Path) -> BinaryIO:
    try:
        import zstandard
    except ImportError as error:
        message = f'{file}: reading it needs zstandard: pip install "moe_jax[data]"'
        raise UserError(message) from error
    return cast(BinaryIO, io.BufferedReader(_Zstd(raw, zstandard), CHUNK))


class _Zstd(io.RawIOBase):
    """The frames of a .zst, one after the other. The library's own stream takes a file that is cut
    off for one that ends there."""

    def __init__(self, raw: BinaryIO, library: ModuleType):
        self._raw, self._library = raw, library
        self._frame: Any = None  # zstandard's
        self._packed, self._held = memoryview(b""), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:  # a buffer, as io has no name for it before 3.12
        while not self._held:
            self._packed = self._packed or memoryview(self._raw.read(CHUNK))
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends within a frame of zstd")
                return 0
            self._held = memoryview(self._unpacked())
        size = min(len(into), len(self._held))
        into[:size], self._held = self._held[:size], self._held[size:]
        return size

    def _unpacked(self) -> bytes:
        if self._frame is None:
            largest = self._library.ZstdDecompressor(max_window_size=1 << 31)  # zstd --long=31
            self._frame = largest.decompressobj()
        piece, self._packed = self._packed[:PIECE], self._packed[PIECE:]
        try:
            content = self._frame.decompress(piece)
        except self._library.ZstdError as error:
            raise OSError(f"not zstd: {error}") from error
        if self._frame.eof:
            unused = bytes(self._frame.unused_data)
            self._packed, self._frame = memoryview(unused + bytes(self._packed)), None
        return content


PACKINGS: dict[str, Callable[[BinaryIO, Path], BinaryIO]] = {".gz": _gzip, ".zst": _zstd}
"""Of the text formats: ".jsonl.gz"."""

READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
