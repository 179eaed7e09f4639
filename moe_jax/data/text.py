"""What the datasets of text share: tokenised once into a folder, opened as packed rows."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least, kind
from moe_jax.config.json_files import Json, JsonObject
from moe_jax.config.tree import leaves, to_json_dict
from moe_jax.config.values import written
from moe_jax.data.faults import EMPTY_TEXT, Tally
from moe_jax.data.packing import StreamInfo, packed_rows
from moe_jax.data.progress import ConsoleReporter, Reporter, Silent
from moe_jax.data.store import (
    FORMAT,
    TOKENS,
    TokenFolder,
    build_once,
    digest,
    open_tokens,
    resolve_data_dir,
    write_tokens,
)
from moe_jax.data.tokenizer import TOKENIZERS, Bytes, TokenizerConfig
from moe_jax.data.types import Rows, Tokenizer, require_split


@dataclass(frozen=True, kw_only=True)
class TextDataset:
    """A dataset of documents. A subclass names itself and says which documents a split has.

    data_dir: folder of prepared data; None: $MOE_JAX_DATA_DIR, else ~/.cache/moe_jax/data.
    auto_prepare: prepare on first use; else a set that is not prepared is an error.
    """

    kind_name: ClassVar[str]  # its row in DATASETS

    sequence_length: int = 256
    tokenizer: TokenizerConfig = kind(TOKENIZERS, Bytes)
    data_dir: str | None = None
    auto_prepare: bool = True

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "sequence_length")

    # What a subclass says

    def identity(self) -> JsonObject:
        """JSON that changes when the documents do; cheap, for it is asked at each start.

        Raises UserError where the documents are not there.
        """
        raise NotImplementedError

    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split, always in the same order."""
        raise NotImplementedError

    def tallied(self, split: str, tally: Tally) -> Iterator[str]:
        """The documents of a split, counted with what is passed over."""
        for text in self.documents(split):
            if text:
                tally.add(text)
                yield text
            else:
                tally.pass_over(EMPTY_TEXT, split)

    def remedy(self, split: str) -> str | None:
        """What makes a split larger, in words. None: it may be empty until it is opened."""
        return None

    def count(self, split: str) -> int | None:
        """How many documents there are, None where that is not known before reading them."""
        return None

    def prepare_source(self, reporter: Reporter) -> None:
        """Makes what `documents` reads, where that is ours to make."""

    def description(self) -> str:
        """The dataset in messages."""
        return self.kind_name

    # What all have

    def open(self, split: str) -> Rows:
        tokens = self.opened(split)
        return packed_rows(
            tokens.stream(split),
            sequence_length=self.sequence_length,
            tokenizer=tokens.tokenizer,
            split=split,
            kind=self.kind_name,
            content=tokens.splits[split].describe(),
            source=self.description(),
            read=tokens.read.in_short(),
            remedy=self.remedy(split),
        )

    def opened(self, split: str) -> TokenFolder:
        """The prepared folder; UserError where it is not there and not to be prepared."""
        require_split(split)
        folder = self._tokens_folder()
        if not folder.exists():
            self._prepare_or_refuse()
        return open_tokens(folder)

    def vocabulary(self) -> int | None:
        """Ids of the tokenizer; a BPE that is trained may end up with fewer."""
        return self.tokenizer.identity().get("vocab_size")

    def _prepare_or_refuse(self) -> None:
        data_dir = resolve_data_dir(self.data_dir)
        if not self.auto_prepare:
            raise UserError(
                f"{self.description()} is not prepared in {data_dir}; prepare it:\n"
                f"  {prepare_command(self)}"
            )
        from moe_jax.parallel.hosts import is_first  # here: other uses do without JAX

        with contextlib.ExitStack() as stack:
            reporter: Reporter = Silent()
            if is_first():
                reporter = stack.enter_context(ConsoleReporter(lines=False))
            reporter.message(f"Preparing {self.description()} in {data_dir} ...")
            self.prepare(reporter)
            for line in self.summary():
                reporter.message(f"  {line}")

    def summary(self) -> list[str]:
        """Two lines on what is prepared: what was read, and the splits."""
        tokens = open_tokens(self._tokens_folder())
        splits = [
            f"{split} {info.documents:,} documents, {info.tokens:,} tokens"
            for split, info in tokens.splits.items()
        ]
        return [f"read: {tokens.read}", f"splits: {'; '.join(splits)}"]

    def prepare(self, reporter: Reporter) -> None:
        """Tokenises the documents into a folder, unless that is done."""
        self.prepare_source(reporter)
        identity = self.identity()
        build_once(self._tokens_folder(), lambda folder: self.write(folder, identity, reporter))

    def write(self, folder: Path, identity: Mapping[str, Json], reporter: Reporter) -> None:
        """Fills the folder of tokens."""
        self.write_documents(folder, identity, self.tallied, reporter)

    def write_documents(
        self,
        folder: Path,
        identity: Mapping[str, Json],
        tallied: Callable[[str, Tally], Iterator[str]],
        reporter: Reporter,
    ) -> None:
        def make_tokenizer() -> Tokenizer:
            reporter.stage("making the tokenizer")
            return self.tokenizer.make(self.documents("train"))

        write_tokens(folder, identity, make_tokenizer, tallied, self.count, self._require, reporter)

    def _require(self, split: str, info: StreamInfo, tally: Tally) -> None:
        """UserError for an empty split."""
        remedy = self.remedy(split)
        if info.documents == 0 and remedy is not None:
            message = f"{self.description()}: the {split} split is empty; {remedy}"
            raise UserError(f"{message}\n  read: {tally}")

    def stored_in(self) -> tuple[Path, ...]:
        """The folders that `prepare` fills."""
        return (self._tokens_folder(),)

    def _tokens_folder(self) -> Path:
        key = digest([FORMAT, self.identity(), self.tokenizer.identity()])[:12]
        return resolve_data_dir(self.data_dir) / TOKENS / f"{self.kind_name}-{key}"


def prepare_command(dataset: TextDataset) -> str:
    """The command line that prepares a dataset with these settings."""
    usual = _flat(to_json_dict(type(dataset)()))
    settings = {
        path: value
        for path, value in _flat(to_json_dict(dataset)).items()
        if value != usual.get(path) and path not in ("sequence_length", "auto_prepare")
    }
    hints = {path: setting.hint for path, setting, _ in leaves(dataset)}
    flags = [f"--dataset={dataset.kind_name}"]
    for path, value in settings.items():
        flags.append(f"--dataset.{path}={written(value, hints.get(path, str))}")
    return shlex.join(["python", "-m", "moe_jax.data.prepare", *flags])


def _flat(tree: Mapping[str, Json], prefix: str = "") -> JsonObject:
    """{"a.b": value}"""
    flat: JsonObject = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
