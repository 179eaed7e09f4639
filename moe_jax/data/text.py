"""What the datasets of text share: tokenised once into a folder, opened as packed rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least, kind
from moe_jax.config.json_files import Json, JsonObject
from moe_jax.data.faults import EMPTY_TEXT, Tally
from moe_jax.data.packing import StreamInfo, packed_rows
from moe_jax.data.prepared import Prepared
from moe_jax.data.progress import Reporter
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
class TextDataset(Prepared):
    """A dataset of documents. A subclass names itself and says which documents a split has."""

    sequence_length: int = 256
    tokenizer: TokenizerConfig = kind(TOKENIZERS, Bytes)

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
            self.prepare_or_refuse()
        return open_tokens(folder)

    def vocabulary(self) -> int | None:
        """Ids of the tokenizer; a BPE that is trained may end up with fewer."""
        return self.tokenizer.identity().get("vocab_size")

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
        return (self._tokens_folder(),)

    def _tokens_folder(self) -> Path:
        key = digest([FORMAT, self.identity(), self.tokenizer.identity()])[:12]
        return resolve_data_dir(self.data_dir) / TOKENS / f"{self.kind_name}-{key}"
