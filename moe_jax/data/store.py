"""Prepared data on disk: where it lies, and how it gets there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_jax.config.errors import NO_SPACE, UserError
from moe_jax.config.json_files import Json, read_object
from moe_jax.config.paths import expanded, home_cache, write_whole
from moe_jax.data.faults import Tally
from moe_jax.data.packing import StreamInfo, write_stream
from moe_jax.data.progress import Reporter
from moe_jax.data.tokenizer import load_tokenizer, save_tokenizer
from moe_jax.data.types import SPLITS, Tokenizer

VARIABLE = "MOE_JAX_DATA_DIR"
FORMAT = 1  # of a folder of tokens; another number, another folder
META = "meta.json"
TOKENS = "tokens"  # the folder of those folders
SMALL = 64 << 20  # bytes of tokens that are read through at each start: a twentieth of a second


def resolve_data_dir(data_dir: str | None) -> Path:
    """The folder of prepared data: the argument, else $MOE_JAX_DATA_DIR, else ~/.cache."""
    chosen = data_dir or os.environ.get(VARIABLE) or home_cache() / "data"
    return expanded(chosen).absolute()


def digest(content: Json) -> str:
    """sha256 of JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def in_share(name: str, fraction: float) -> bool:
    """Whether a name falls into a share of all names, by its hash: copies stay together, and more
    names change nothing for those that are there."""
    head = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]
    return int.from_bytes(head) < fraction * 2**64


def build_once(target: Path, write: Callable[[Path], None]) -> None:
    """Makes the folder `target` with `write(temporary folder)`, unless it is there.

    The folder appears whole, by a rename. A second process waits for the first and finds it made;
    where the file system knows no locks both work and the first to end wins.
    """
    if target.exists():  # perhaps where we may not write
        return
    prefix, lock = f".{target.name}.tmp-", target.parent / f".{target.name}.lock"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        raise UserError(
            f"{target.parent}: cannot be written ({error.strerror}); data.data_dir or "
            f"${VARIABLE} names another folder for prepared data"
        ) from error
    with _lock(lock) as alone:
        if target.exists():
            return
        if alone:  # what lies here was left by a process that died
            for stale in target.parent.glob(prefix + "*"):
                shutil.rmtree(stale, ignore_errors=True)
        # Not mkdtemp, whose folder only its owner may read.
        temporary = target.parent / f"{prefix}{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
        try:
            write(temporary)
            temporary.rename(target)
        except OSError:
            if not target.exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Waits for an exclusive lock; False where there is none to be had."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # some network file systems
            yield False
        else:
            yield True  # closing the file frees it


# Folders of tokens


@dataclass(frozen=True)
class TokenFolder:
    """An opened folder: a stream of tokens for each split, their tokenizer, and what was read."""

    folder: Path
    tokenizer: Tokenizer
    splits: Mapping[str, StreamInfo]
    read: Tally

    def stream(self, split: str) -> np.ndarray:
        """The ids of a split, mapped into memory. UserError where the file is damaged."""
        info, path = self.splits[split], _stream_path(self.folder, split)
        dtype = np.dtype(info.dtype).newbyteorder("<")
        if not path.is_file() or path.stat().st_size != info.tokens * dtype.itemsize:
            raise UserError(
                f"{path}: not the {info.tokens} tokens that were written; remove the folder "
                "and prepare the data again"
            )
        if info.tokens == 0:
            return np.zeros(0, dtype)
        if not is_unchanged(path, info.sha256):
            raise UserError(
                f"{path}: has changed since it was written (sha256); remove the folder and prepare "
                "the data again"
            )
        # A plain view: slicing a memmap object costs several times as much.
        return np.asarray(np.memmap(path, dtype, "r"))


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_unchanged(path: Path, digest: str) -> bool:
    """Whether the file is there with this sha256. A large one is read through once for each time of
    change, which a file beside it remembers."""
    if not path.is_file():
        return False
    stat = path.stat()
    seen = f"{stat.st_size} {stat.st_mtime_ns} {digest}"
    mark = path.with_name(f"{path.name}.checked")
    if stat.st_size > SMALL:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if mark.read_text("utf-8") == seen:
                return True
    if sha256_of(path) != digest:
        return False
    if stat.st_size > SMALL:
        with contextlib.suppress(OSError):  # a folder that is not ours to write
            write_whole(mark, seen)
    return True


def _stream_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.bin"


def write_tokens(
    folder: Path,
    identity: Mapping[str, Json],
    make_tokenizer: Callable[[], Tokenizer],
    documents: Callable[[str, Tally], Iterator[str]],
    count: Callable[[str], int | None],
    require: Callable[[str, StreamInfo, Tally], None],
    reporter: Reporter,
) -> None:
    """Fills a folder: a stream for each split, the tokenizer, and meta.json.

    require: raises UserError where a split is not to be kept.
    """
    tokenizer, tally = make_tokenizer(), Tally()
    save_tokenizer(tokenizer, folder)
    splits = {}
    for split in SPLITS:
        reporter.stage(f"tokenising {split}", count(split))
        path = _stream_path(folder, split)
        texts = documents(split, tally)
        splits[split] = write_stream(path, texts, tokenizer, reporter.advance)
        require(split, splits[split], tally)
    meta = {
        "format": FORMAT,
        "source": dict(identity),
        "tokenizer": tokenizer.describe(),
        "splits": {split: info.describe() for split, info in splits.items()},
        "read": tally.describe(),
    }
    (folder / META).write_text(json.dumps(meta, indent=2) + "\n", "utf-8")


def open_tokens(folder: Path) -> TokenFolder:
    """The folder that `write_tokens` made. UserError where it is damaged."""
    try:
        meta = read_object(folder / META)
        splits = {split: StreamInfo(**info) for split, info in meta["splits"].items()}
        description = meta["tokenizer"]
        sums = {n: sum(getattr(i, n) for i in splits.values()) for n in ("documents", "bytes")}
        read = Tally(**meta.get("read", sums))  # which older folders do not have
    except (OSError, UserError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / META}: cannot be read ({error}); remove the folder and prepare again"
        ) from error
    return TokenFolder(folder, load_tokenizer(folder, description), splits, read)
