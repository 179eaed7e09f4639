"""Writes the same texts in every format that a folder reads."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from moe_jax.data.folder import Folder

TEXTS = ["one", "two\nlines\r\nand\rmore", 'a, "b"\tc', "Über 日本 🙂", " space ", "\u2028"]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def table(texts: Sequence[str]) -> pa.Table:
    return pa.table({"id": list(range(len(texts))), "text": pa.array(texts, pa.string())})


def write_lines(file: Path, texts: Sequence[str]) -> None:
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
    file.write_text("\n".join(lines) + "\n")


def write_array(file: Path, texts: Sequence[str]) -> None:
    rows = [{"id": i, "text": text} for i, text in enumerate(texts)]
    file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), "utf-8")


def write_table(file: Path, texts: Sequence[str]) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out, csv.excel_tab if ".tsv" in file.name.lower() else csv.excel)
        rows.writerow(["id", "text"])
        rows.writerows(enumerate(texts))


def write_parquet(file: Path, texts: Sequence[str]) -> None:
    pq.write_table(table(texts), file, row_group_size=2)


def write_ipc_stream(file: Path, texts: Sequence[str]) -> None:
    """As the library `datasets` saves a data set."""
    whole = table(texts)
    with pa.ipc.new_stream(file, whole.schema) as out:
        out.write_table(whole, max_chunksize=2)


def write_ipc_file(file: Path, texts: Sequence[str]) -> None:
    whole = table(texts)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(file, whole.schema, options=options) as out:
        out.write_table(whole, max_chunksize=2)


LINES: dict[str, Callable[[Path, Sequence[str]], None]] = {
    ".jsonl": write_lines,
    ".ndjson": write_lines,
    ".json": write_lines,
    ".csv": write_table,
    ".tsv": write_table,
}
COLUMNS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    ".parquet": write_parquet,
    ".arrow": write_ipc_stream,
    ".feather": write_ipc_file,
}


def write(file: Path, texts: Sequence[str]) -> Path:
    """By the suffix, packed where it ends in .gz or .zst."""
    packer = PACKERS.get(file.suffix.lower())
    name = file.name if packer is None else file.stem
    format_suffix = Path(name).suffix.lower()
    (LINES | COLUMNS)[format_suffix](file, texts)
    if packer is not None:
        file.write_bytes(packer(file.read_bytes()))
    return file


def folder(path: Any, **options: Any) -> Folder:
    path = path if isinstance(path, tuple) else str(path)
    return Folder(path=path, **{"sequence_length": 16, **options})


def documents_of(path: Any, **options: Any) -> list[str]:
    """All that a path holds."""
    dataset = folder(path, **options)
    return list(folder(path, validation=dataset.path, **options).documents("validation"))
