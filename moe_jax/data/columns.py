"""Documents in columns: Parquet, and Arrow's IPC files and streams (extra `data`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from moe_jax.config.errors import UserError
from moe_jax.data.faults import DAMAGED, Fault, Item, no_field, not_text

Arrow = Any  # an object of pyarrow, which comes with an extra

ROWS = 256  # made to Python's texts at a time
BUFFER = 1 << 20  # bytes of a column of Parquet that are read ahead
FEATHER_1, IPC_FILE = b"FEA1", b"ARROW1"


def read_parquet(file: Path, field: str) -> Iterator[Item]:
    """The rows, from the column of the text alone."""
    pa = _pyarrow(file)
    try:
        import pyarrow.parquet as parquet

        opened = parquet.ParquetFile(
            file, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True
        )
        path = _path(opened.schema_arrow, field, pa)
    except _damage(pa) as error:
        yield "", _damaged("not Parquet", error)
        return
    with contextlib.closing(opened):
        if isinstance(path, Fault):
            yield "", path
            return
        first = 1
        for group in range(opened.num_row_groups):
            row = first
            try:
                first += opened.metadata.row_group(group).num_rows
                columns = [".".join(path)]
                for batch in opened.iter_batches(ROWS, row_groups=[group], columns=columns):
                    yield from _rows(batch, path, row, pa)
                    row += len(batch)
            except _damage(pa) as error:
                yield f"row group {group + 1}", _damaged("cannot be read", error)


def read_arrow(file: Path, field: str) -> Iterator[Item]:
    """The rows of an IPC file or stream, from the column of the text alone."""
    pa = _pyarrow(file)
    with file.open("rb") as stream:
        start = stream.read(len(IPC_FILE))
    if start.startswith(FEATHER_1):
        yield "", Fault(DAMAGED, "Feather of version 1; only version 2 (Arrow IPC) is read")
        return
    try:
        source = pa.memory_map(str(file))
        is_file = start == IPC_FILE
        whole = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source)
        path = _path(whole.schema, field, pa)
    except _damage(pa) as error:
        yield "", _damaged("not Arrow IPC", error)
        return
    if isinstance(path, Fault):
        yield "", path
        return
    wanted = pa.ipc.IpcReadOptions(included_fields=[whole.schema.get_field_index(path[0])])
    row = 1
    batches = (_batches_of_file if is_file else _batches_of_stream)(source, wanted, pa)
    for number, batch in enumerate(batches, start=1):
        try:
            if isinstance(batch, Exception):
                raise batch
            yield from _rows(batch, path, row, pa)
            row += len(batch)
        except _damage(pa) as error:
            yield f"batch {number}", _damaged("cannot be read", error)


def _batches_of_file(source: Arrow, options: Arrow, pa: ModuleType) -> Iterator[Arrow | Exception]:
    """Each batch, or the error in its place."""
    opened = pa.ipc.open_file(source, options=options)
    for number in range(opened.num_record_batches):
        try:
            batch = opened.get_batch(number)
        except _damage(pa) as error:
            batch = error
        yield batch


def _batches_of_stream(
    source: Arrow, options: Arrow, pa: ModuleType
) -> Iterator[Arrow | Exception]:
    """Each batch up to the first error, which ends a stream."""
    source.seek(0)
    try:
        yield from pa.ipc.open_stream(source, options=options)
    except _damage(pa) as error:
        yield error


def _path(schema: Arrow, field: str, pa: ModuleType) -> tuple[str, ...] | Fault:
    """The names that lead to the text: one column's, or that of a column of structs and below."""
    path: tuple[str, ...] = (field,)
    if schema.names.count(field) == 1:
        kind = schema.field(field).type
    else:
        path = tuple(field.split("."))
        names, kind = schema, None
        for name in path:
            if names is None or [known.name for known in names].count(name) != 1:
                return no_field(field, schema.names)
            kind = names.field(name).type
            names = kind if pa.types.is_struct(kind) else None
    if not _holds_text(kind, pa):
        return not_text(field, str(kind))
    return path


def _holds_text(kind: Arrow, pa: ModuleType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    kinds = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return pa.types.is_null(kind) or str(kind) in kinds


def _rows(batch: Arrow, path: tuple[str, ...], first: int, pa: ModuleType) -> Iterator[Item]:
    """The texts of a batch; first: number of its first row. A null is an empty text."""
    for start in range(0, len(batch), ROWS):
        values = _values(batch.slice(start, ROWS), path, pa)
        for number, value in enumerate(values, start=first + start):
            try:
                yield f"row {number}", "" if value is None else value.decode("utf-8")
            except UnicodeDecodeError as error:
                yield f"row {number}", Fault("not UTF-8", f"not UTF-8 ({error})")


def _values(batch: Arrow, path: tuple[str, ...], pa: ModuleType) -> list[bytes | None]:
    """Nothing in a batch of IPC was looked at yet: a damaged offset would end the process."""
    column = batch.column(batch.schema.get_field_index(path[0]))
    column.validate()
    valid = [True] * len(column)
    for name in path[1:]:
        own = column.is_valid().to_pylist()
        valid = [a and b for a, b in zip(valid, own, strict=True)]
        column = column.field(column.type.get_field_index(name))
        column.validate()
    if pa.types.is_null(column.type):
        return [None] * len(column)
    plain = {"string": pa.binary(), "large_string": pa.large_binary()}
    if str(column.type) in plain:  # as bytes, so that one that is no UTF-8 does not refuse all
        column = column.view(plain[str(column.type)])
    column.validate(full=True)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not str(column.type).endswith("binary"):
        column = column.cast(pa.large_binary())
    return [value if ok else None for value, ok in zip(column.to_pylist(), valid, strict=True)]


def _damaged(what: str, error: Exception) -> Fault:
    message = " ".join(str(error).split())
    return Fault(DAMAGED, f"{what} ({message[:200] or type(error).__name__})")


def _damage(pa: ModuleType) -> tuple[type[Exception], ...]:
    """What pyarrow raises of a file that is damaged."""
    return (pa.ArrowException, OSError, EOFError, ValueError, TypeError, LookupError)


def _pyarrow(file: Path) -> ModuleType:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        message = f'{file}: reading it needs pyarrow: pip install "moe_jax[data]"'
        raise UserError(message) from error
    return pyarrow
