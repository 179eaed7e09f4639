"""A synthetic corpus whose structure is known: a mixture of Markov sources.

Each of K sources is a Markov chain over the same V symbols with transitions of its own. Within a
row a source speaks for a while, then another takes over:

    z_t = z_{t-1} with probability 1 - 1/run_length, else drawn anew from p(k) ~ (k + 1)^-skew
    x_t ~ P[z_t, x_{t-1}, :]

Which source speaks is known for every token (``source`` of a row) but is not part of the input, so
a model must infer it from the last symbols: whether its experts specialise on sources, collapse or
stay balanced can be read off directly. Rows are stationary from their first token on.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from moe_jax.config.fields import Rule, at_least
from moe_jax.data.tokenizer import IdTokenizer
from moe_jax.data.types import require_split


@dataclass(frozen=True, kw_only=True)
class Planted:
    """The config of the corpus. A symbol counts as one byte: bits per byte are bits per symbol.

    sources: K. symbols: V. successors: how many symbols may follow one, by random probabilities.
    run_length: mean tokens until a source is drawn anew. skew: 0 for sources of equal share.
    rows, validation_rows: sizes of the splits. seed: of the transitions and of the rows.
    """

    kind_name: ClassVar[str] = "planted"

    sequence_length: int = 256
    sources: int = 8
    symbols: int = 64
    successors: int = 4
    run_length: float = 32.0
    skew: float = 0.0
    rows: int = 4096
    validation_rows: int = 256
    seed: int = 0

    def check(self) -> Iterator[Rule]:
        sizes = ("sequence_length", "sources", "symbols", "successors", "rows", "validation_rows")
        yield from at_least(self, 1, *sizes, "run_length")
        yield from at_least(self, 0, "skew", "seed")
        if self.successors > self.symbols:
            yield "successors", f"must be at most symbols = {self.symbols}"

    def open(self, split: str) -> PlantedRows:
        require_split(split)
        return PlantedRows(self, split)

    def vocabulary(self) -> int:
        return self.symbols

    @functools.cached_property
    def process(self) -> Process:
        """The random process that the rows are drawn from."""
        return Process.of(self)


@dataclass(frozen=True)
class Process:
    """Distributions of the process, in float64, and what follows from them.

    transition_KVV: P[k, x, y]. switch_KK: P(z_t | z_{t-1}). stationary_KV: P(z_t = k, x_t = x).
    """

    transition_KVV: np.ndarray
    switch_KK: np.ndarray
    stationary_KV: np.ndarray

    @classmethod
    def of(cls, config: Planted) -> Process:
        K, V = config.sources, config.symbols
        random = np.random.Generator(np.random.Philox(_seed(config, "transitions")))
        # The V - successors least of random numbers are out, the rest share by exponentials.
        rank_KVV = np.argsort(np.argsort(random.random((K, V, V)), axis=-1), axis=-1)
        weight_KVV = -np.log1p(-random.random((K, V, V))) * (rank_KVV < config.successors)
        transition_KVV = weight_KVV / weight_KVV.sum(axis=-1, keepdims=True)
        share_K = np.arange(1, K + 1) ** -float(config.skew)
        share_K /= share_K.sum()
        stay = 1 - 1 / config.run_length
        switch_KK = stay * np.eye(K) + (1 - stay) * share_K
        return cls(transition_KVV, switch_KK, _stationary(transition_KVV, switch_KK, share_K))

    @property
    def entropy_rate(self) -> float:
        """Nats per token that even a reader who is told each token's source cannot save:
        H(x_t | x_{t-1}, z_t)."""
        before_KV = np.einsum("jx,jk->kx", self.stationary_KV, self.switch_KK)
        with np.errstate(divide="ignore", invalid="ignore"):
            nats_KVV = np.where(
                self.transition_KVV > 0, -self.transition_KVV * np.log(self.transition_KVV), 0.0
            )
        return float(np.einsum("kx,kxy->", before_KV, nats_KVV))

    def optimal_cross_entropy(self, tokens_BS: np.ndarray) -> float:
        """Mean nats per target of the best predictor that knows the process but not the sources:
        Bayes' filter over them. No model does better on the average."""
        first_B, nats = tokens_BS[:, 0], 0.0
        belief_BK = self.stationary_KV[:, first_B].T
        belief_BK = belief_BK / belief_BK.sum(axis=1, keepdims=True)
        for before_B, after_B in zip(tokens_BS[:, :-1].T, tokens_BS[:, 1:].T, strict=True):
            seen_BK = (belief_BK @ self.switch_KK) * self.transition_KVV[:, before_B, after_B].T
            probability_B = seen_BK.sum(axis=1)
            nats -= float(np.log(probability_B).sum())
            belief_BK = seen_BK / probability_B[:, None]
        return nats / tokens_BS[:, 1:].size

    def sample(
        self, rows: int, length: int, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, sources), both int32 (rows, length)."""
        V = self.transition_KVV.shape[1]
        start_KV = _cumulative(self.stationary_KV.ravel())
        start = np.searchsorted(start_KV, random.random(rows), side="right")
        z_B, x_B = np.divmod(start, V)
        switch_KK, next_KVV = _cumulative(self.switch_KK), _cumulative(self.transition_KVV)
        tokens, sources = np.empty((2, rows, length), np.int32)
        for t in range(length):
            if t:
                z_B = np.sum(random.random((rows, 1)) >= switch_KK[z_B], axis=1)
                x_B = np.sum(random.random((rows, 1)) >= next_KVV[z_B, x_B], axis=1)
            tokens[:, t], sources[:, t] = x_B, z_B
        return tokens, sources


def _cumulative(probability: np.ndarray) -> np.ndarray:
    """Along the last axis, with 1 from the last possible outcome on: rounding must not make an
    outcome of probability 0 possible."""
    cumulative = np.cumsum(probability, axis=-1)
    after = np.flip(np.cumsum(np.flip(probability, -1), axis=-1), -1) - probability
    return np.where(after <= 0, 1.0, cumulative)


def _stationary(
    transition_KVV: np.ndarray, switch_KK: np.ndarray, share_K: np.ndarray
) -> np.ndarray:
    """A stationary distribution of (z_t, x_t), by the lazy chain, which cannot oscillate."""
    V = transition_KVV.shape[1]
    now_KV = np.repeat(share_K[:, None] / V, V, axis=1)
    for _ in range(10_000):
        after_KV = np.einsum("jx,jk,kxy->ky", now_KV, switch_KK, transition_KVV, optimize=True)
        if np.abs(after_KV - now_KV).sum() < 1e-13:
            break
        now_KV = (now_KV + after_KV) / 2
    return now_KV / now_KV.sum()


def _seed(config: Planted, purpose: str) -> np.random.SeedSequence:
    return np.random.SeedSequence([config.seed, *purpose.encode("utf-8")])


class PlantedRows:
    """A split of the corpus, drawn when it is opened. `Rows` of types.py, with ``source``."""

    domains = ("planted",)

    def __init__(self, config: Planted, split: str):
        self.config = config
        self.tokenizer = IdTokenizer(config.symbols, bytes_per_id=1)
        random = np.random.Generator(np.random.Philox(_seed(config, split)))
        rows = config.rows if split == "train" else config.validation_rows
        self.tokens, self.sources = config.process.sample(rows, config.sequence_length + 1, random)
        sha256 = hashlib.sha256(self.tokens.astype("<i4").tobytes()).hexdigest()
        self.fingerprint = {
            "kind": config.kind_name,
            "split": split,
            **asdict(config),
            "tokenizer": self.tokenizer.describe(),
            "content": {"tokens": self.tokens.size, "sha256": sha256},
        }

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens = self.tokens[index]
        return {
            "tokens": tokens,
            "segments": np.ones_like(tokens),
            "domain": np.zeros((), np.int32),
            "source": self.sources[index],
        }
