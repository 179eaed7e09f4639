"""Tokenizers: bytes, byte-level BPE (extra `text`), and plain ids for streams made elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Protocol

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least
from moe_jax.config.json_files import JsonObject, read_object
from moe_jax.config.paths import expanded, write_whole
from moe_jax.data.types import Tokenizer

BPE_FILE = "tokenizer.json"  # the format of the `tokenizers` library
DESCRIPTION = "description.json"


class ByteTokenizer:
    """An id is a byte of UTF-8; 256 begins a document, 257 ends it, 258 pads."""

    vocab_size: int = 259
    bos_id: int | None = 256
    eos_id: int | None = 257
    pad_id: int = 258
    special_ids: tuple[int, ...] = (256, 257, 258)

    def __init__(self) -> None:
        self.bytes_per_token_V = (np.arange(self.vocab_size) < 256).astype(np.int32)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(int(i) for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")

    def describe(self) -> JsonObject:
        return {"kind": "bytes", "vocab_size": self.vocab_size}


class IdTokenizer:
    """Ids whose meaning is not known; as text they are numbers between spaces.

    bytes_per_id: what an id counts in bits per byte; 0 where that has no meaning.
    """

    bos_id: int | None = None

    def __init__(self, vocab_size: int, *, eos_id: int | None = None, bytes_per_id: int = 0):
        self.vocab_size = vocab_size
        self.eos_id = eos_id
        self.bytes_per_id = bytes_per_id
        self.pad_id = 0 if eos_id is None else eos_id
        self.special_ids: tuple[int, ...] = () if eos_id is None else (eos_id,)
        self.bytes_per_token_V = np.full(vocab_size, bytes_per_id, np.int32)
        self.bytes_per_token_V[list(self.special_ids)] = 0

    def encode(self, text: str) -> np.ndarray:
        try:
            ids = np.array([int(word) for word in text.split()], np.int32)
        except (ValueError, OverflowError):
            raise UserError(f"{text!r}: these tokens are numbers, such as '3 14 15'") from None
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise UserError(f"{text!r}: an id must lie in 0 .. {self.vocab_size - 1}")
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(str(int(i)) for i in ids if i not in self.special_ids)

    def describe(self) -> JsonObject:
        return {"kind": "ids", "vocab_size": self.vocab_size, "eos_id": self.eos_id}


class BpeTokenizer:
    """Byte-level byte-pair encoding, from the JSON text of a `tokenizers` file.

    Raises UserError where the library is missing, and where the file loses text (a normaliser, a
    prefix space, no byte level): bits per byte would be wrong.
    """

    # The names of the specials in the files of common models; ours are the first.
    BOS = ("<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>")
    EOS = ("<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>")
    PAD = ("<pad>",)
    # A space is kept and none is put before; Unicode's other forms of a letter stay as they are.
    PROBES = ("Déjà  vu\t日本\r\n\n <eos>\x00 'LL go 🙂 ", " \ufb01 \u212b e\u0301")

    def __init__(self, content: str, name: str = BPE_FILE):
        library = _tokenizers()
        try:
            self._bpe = library.Tokenizer.from_str(content)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{name}: not a file of the tokenizers library ({error})") from error
        self.content = content
        self._bpe.encode_special_tokens = True  # a text that says "<eos>" ends no document
        self._bpe.no_truncation()
        self._bpe.no_padding()
        self.vocab_size = 1 + max(self._bpe.get_vocab().values(), default=0)
        added = self._bpe.get_added_tokens_decoder()
        self.special_ids: tuple[int, ...] = tuple(
            sorted(i for i, token in added.items() if token.special)
        )
        self.eos_id = self._special(self.EOS)
        self.bos_id = self._special(self.BOS)
        self.pad_id = next(i for i in (self._special(self.PAD), self.eos_id, 0) if i is not None)
        self.bytes_per_token_V = self._bytes_per_token()
        self._require_lossless(name)

    def _special(self, names: Sequence[str]) -> int | None:
        found = (self._bpe.token_to_id(name) for name in names)
        return next((i for i in found if i in self.special_ids), None)

    def _bytes_per_token(self) -> np.ndarray:
        """The byte level writes each byte as one character, so a token's length is its bytes."""
        tokens = (self._bpe.id_to_token(i) for i in range(self.vocab_size))
        # An id without a token, a hole in the vocabulary, is never encoded.
        lengths = np.array([len(token or "") for token in tokens], np.int32)
        for i, token in self._bpe.get_added_tokens_decoder().items():
            lengths[i] = 0 if token.special else len(token.content.encode("utf-8"))
        return lengths

    def _require_lossless(self, name: str) -> None:
        for probe in self.PROBES:
            ids, size = self.encode(probe), len(probe.encode("utf-8"))
            if self.decode(ids) != probe or self.bytes_per_token_V[ids].sum() != size:
                raise UserError(
                    f"{name}: not a lossless byte-level BPE (it changes or drops text, or adds a "
                    "space)"
                )

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._bpe.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        kept = [int(i) for i in ids if 0 <= i < self.vocab_size]
        return self._bpe.decode(kept, skip_special_tokens=True)

    def describe(self) -> JsonObject:
        return {"kind": "bpe", "vocab_size": self.vocab_size, "sha256": _sha256(self.content)}

    def save(self, folder: Path) -> None:
        (folder / BPE_FILE).write_text(self.content, "utf-8")


def _tokenizers() -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "BPE needs the library tokenizers: pip install 'moe_jax[text]'; or take "
            "tokenizer.kind=bytes"
        ) from error
    return tokenizers


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """A BPE of at most `vocab_size` ids, specials included; the same texts give the same one."""
    library = _tokenizers()
    bpe = library.Tokenizer(library.models.BPE())
    bpe.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_pieces(texts), trainer)
    return BpeTokenizer(bpe.to_str())


def _pieces(texts: Iterable[str], size: int = 1 << 20) -> Iterator[str]:
    """Long texts in pieces: the trainer holds a few of what it is given at a time."""
    for text in texts:
        yield from (text[at : at + size] for at in range(0, len(text), size))


def load_bpe(file: str | Path) -> BpeTokenizer:
    """The BPE of a tokenizer.json. UserError where it is missing or of another kind."""
    path = expanded(file)
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"tokenizer file {file}: cannot be read ({error})") from error
    return BpeTokenizer(content, str(file))


# Configs: which tokenizer a dataset uses


class TokenizerConfig(Protocol):
    """Chooses a tokenizer: `make` is given the training texts, which it may read or not."""

    def make(self, texts: Iterable[str]) -> Tokenizer: ...

    def identity(self) -> JsonObject:
        """JSON: with the texts, it decides what `make` gives."""
        ...


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """The bytes of the text and three specials: nothing to train, vocabulary 259."""

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return ByteTokenizer()

    def identity(self) -> JsonObject:
        return ByteTokenizer().describe()


@dataclass(frozen=True, kw_only=True)
class Bpe:
    """Byte-level BPE, trained on the training split, or taken from `file` (a tokenizer.json)."""

    MIN_SIZE: ClassVar[int] = 260  # the bytes, three specials and one merge

    vocab_size: int = 8192  # specials included; without meaning where a file is given
    file: str | None = None

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, self.MIN_SIZE, "vocab_size")

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return train_bpe(texts, self.vocab_size) if self.file is None else load_bpe(self.file)

    def identity(self) -> JsonObject:
        if self.file is not None:
            return load_bpe(self.file).describe()
        return {"kind": "bpe", "vocab_size": self.vocab_size}


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Ids made elsewhere, for a memmap. eos_id: the id that ends a document, None for none."""

    vocab_size: int = 50257
    eos_id: int | None = None

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "vocab_size")
        if self.eos_id is not None and not 0 <= self.eos_id < self.vocab_size:
            yield "eos_id", f"must lie in 0 .. vocab_size - 1 = {self.vocab_size - 1}"

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return IdTokenizer(self.vocab_size, eos_id=self.eos_id)

    def identity(self) -> JsonObject:
        return IdTokenizer(self.vocab_size, eos_id=self.eos_id).describe()


TOKENIZERS: dict[str, type] = {"bytes": Bytes, "bpe": Bpe}
"""The tokenizers that a dataset of text can name; a memmap also takes `Ids`."""


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes what `load_tokenizer` needs besides the description."""
    if isinstance(tokenizer, BpeTokenizer):
        tokenizer.save(folder)


def load_tokenizer(folder: Path, description: JsonObject) -> Tokenizer:
    """The tokenizer that was saved in a folder. UserError where the file was changed."""
    if description == (plain := ByteTokenizer()).describe():
        return plain
    tokenizer = load_bpe(folder / BPE_FILE)
    if tokenizer.describe() != description:
        raise UserError(f"{folder / BPE_FILE}: not the tokenizer that {folder} was written with")
    return tokenizer


# Carried by a run, so that its model is read and written without its data


class WithLanguages:
    """A tokenizer with an id for each language behind its own, which stands in front of a source
    and says into which language it goes (Johnson et al., 1611.04558, section 3)."""

    def __init__(self, inner: Tokenizer, languages: tuple[str, ...]):
        self.inner, self.languages = inner, languages
        self.bos_id, self.eos_id, self.pad_id = inner.bos_id, inner.eos_id, inner.pad_id
        self.vocab_size = inner.vocab_size + len(languages)
        own = tuple(range(inner.vocab_size, self.vocab_size))
        self.special_ids = (*inner.special_ids, *own)
        zeros = np.zeros(len(own), inner.bytes_per_token_V.dtype)
        self.bytes_per_token_V = np.concatenate([inner.bytes_per_token_V, zeros])

    def language_id(self, language: str) -> int:
        return self.inner.vocab_size + self.languages.index(language)

    def encode(self, text: str) -> np.ndarray:
        return self.inner.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self.inner.encode_batch(texts)

    def decode(self, ids: Iterable[int]) -> str:
        return self.inner.decode([i for i in ids if i < self.inner.vocab_size])

    def describe(self) -> JsonObject:
        return {**self.inner.describe(), "languages": list(self.languages)}


def writable_ids(tokenizer: Tokenizer, vocabulary: int) -> np.ndarray:
    """bool (V,): which of a model's ids may be written: the tokenizer's, no specials but the
    end."""
    writable_V = np.zeros(vocabulary, bool)
    writable_V[: tokenizer.vocab_size] = True
    writable_V[list(tokenizer.special_ids)] = False
    if tokenizer.eos_id is not None:
        writable_V[tokenizer.eos_id] = True
    return writable_V


def carry_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a tokenizer of this package into a folder of its own. One from outside is only
    described: it comes with its dataset."""
    content: JsonObject = {"description": tokenizer.describe()}
    if isinstance(tokenizer, WithLanguages):
        tokenizer = tokenizer.inner
    if isinstance(tokenizer, IdTokenizer):
        content["bytes_per_id"] = tokenizer.bytes_per_id
    folder.mkdir(exist_ok=True)
    if isinstance(tokenizer, BpeTokenizer):
        write_whole(folder / BPE_FILE, tokenizer.content)
    write_whole(folder / DESCRIPTION, json.dumps(content, indent=2) + "\n")


def carried_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer that `carry_tokenizer` wrote; None where there is none, or one from outside.
    UserError where its files were changed."""
    try:
        content = read_object(folder / DESCRIPTION)
    except FileNotFoundError:
        return None
    description = content.get("description")
    if not isinstance(description, dict):
        raise UserError(f"{folder / DESCRIPTION}: describes no tokenizer")
    if description.get("kind") not in ("bytes", "ids", "bpe"):
        return None
    languages = description.pop("languages", None)
    try:
        inner = _carried(folder, description, content)
        return inner if languages is None else WithLanguages(inner, tuple(map(str, languages)))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / DESCRIPTION}: describes no tokenizer ({error})") from error


def _carried(folder: Path, description: JsonObject, content: JsonObject) -> Tokenizer:
    if description["kind"] == "ids":
        size, eos = description["vocab_size"], description["eos_id"]
        return IdTokenizer(size, eos_id=eos, bytes_per_id=content["bytes_per_id"])
    return load_tokenizer(folder, description)
