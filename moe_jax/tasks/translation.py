"""A text from one language into another."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from moe_jax.config.fields import Rule, at_least, one_of
from moe_jax.data.tokenizer import writable_ids
from moe_jax.data.types import Columns, DataInfo, Tokenizer
from moe_jax.models.translation import Alphabet, Decoding, translate
from moe_jax.models.types import IO, RouterStates
from moe_jax.nn.context import Context, PairBatch, TokenBatch
from moe_jax.nn.predictions import GivenLogits, Predictions
from moe_jax.tasks.next_target import NextTarget
from moe_jax.tasks.types import Arrays, Headline, RawBatch, Sums

TASKS = ("target", "source", "pair")
# sacrebleu's tokenizers for languages whose words are not divided by spaces; else its default 13a.
TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char", "ko": "char"}


@dataclass(frozen=True, kw_only=True)
class Translation:
    """Predicts each next token of a text, given its source in another language.

    label_smoothing: e of each target goes to all ids alike (Szegedy et al., 1512.00567). tasks: by
    what a router of tasks routes, the `target` or the `source` language, or the `pair`. written:
    so many rows of an evaluation, the first ones, are also translated by the model itself, by
    `decoding`, for BLEU and chrF (extra `translation`); an evaluation's other figures are of the
    true texts before each token.
    """

    headlines: ClassVar = (Headline("bleu", "max"), Headline("cross_entropy", "min"))

    label_smoothing: float = 0.1
    tasks: str = "target"
    written: int = 0
    decoding: Decoding = field(default_factory=Decoding)

    def check(self) -> Iterator[Rule]:
        if not 0 <= self.label_smoothing < 1:
            yield "label_smoothing", "must be at least 0 and below 1"
        yield from one_of(self, TASKS, "tasks")
        yield from at_least(self, 0, "written")
        if self.written and importlib.util.find_spec("sacrebleu") is None:
            yield (
                "written",
                'needs sacrebleu, which is not installed: pip install "moe_jax[translation]", or 0',
            )

    def reads(self, columns: Columns) -> tuple[str, ...]:
        own = ("source", "source_segments", "target", "target_segments")
        return (*own, "domain") if "domain" in columns else own

    def io(self, columns: Columns) -> IO:
        return IO(length=columns["target"].shape[0] - 1, source=columns["source"].shape[0])

    def completed(self, info: DataInfo) -> Translation:
        return self

    def fits(self, info: DataInfo) -> Iterator[Rule]:
        if info.tokenizer is None:
            yield "kind", "is of text, and the data has no tokenizer"

    def row_tasks(self, columns: Columns, domains: tuple[str, ...]) -> tuple[str, ...] | None:
        if "domain" not in columns:
            return None
        return tuple(sorted({self.task_of(name) for name in domains}))

    def task_of(self, domain: str) -> str:
        """Of a pair of languages "de-en"."""
        source, _, target = domain.partition("-")
        return {"pair": domain, "source": source, "target": target}[self.tasks]

    def figures(self) -> tuple[str, ...]:
        written = ("bleu", "chrf") if self.written else ()
        return ("cross_entropy", "perplexity", "accuracy", *written)

    def start(self, vocabulary: int, info: DataInfo) -> TranslatedText:
        assert info.tokenizer is not None
        return TranslatedText(self, vocabulary, info.tokenizer, info.domains)


class TranslatedText(NextTarget):
    """Rows of a source of S tokens and a target of S + 1: of the target the first S are inputs, the
    last S what is predicted; the segment of a source is that of its target.

    Sums: nats (the loss, smoothed), nll, correct, tokens; nll and tokens by domain, the pair of
    languages.
    """

    ids, segments = "target", "target_segments"
    counters: ClassVar = ("tokens", "tokens_by_domain")
    losses: ClassVar = ("smoothed_cross_entropy",)

    def __init__(
        self,
        config: Translation,
        vocabulary: int,
        tokenizer: Tokenizer,
        domains: tuple[str, ...] = (),
    ):
        self._smoothing, self._decoding = config.label_smoothing, config.decoding
        self.written = config.written
        self._tokenizer, self._domains = tokenizer, domains
        self._alphabet = alphabet_of(tokenizer, vocabulary)
        self.tasks = sorted({config.task_of(name) for name in domains})
        of_domain = [self.tasks.index(config.task_of(name)) for name in domains]
        self._task_of_domain = np.asarray(of_domain or [0], np.int32)

    def inputs(self, raw: RawBatch) -> PairBatch:
        task_B = None
        if "domain" in raw:
            task_B = jnp.asarray(self._task_of_domain)[jnp.asarray(raw["domain"])]
        return PairBatch(
            source=TokenBatch.packed(raw["source"], raw["source_segments"], raw["row"], task_B),
            target=self.packed(raw, task_B),
        )

    def write(
        self, model: Any, context: Context, router_state: RouterStates, raw: RawBatch
    ) -> dict[str, Array]:
        """Ids that the model writes, those of the true text, and the pair of languages."""
        source, length = self.inputs(raw).source, raw["target"].shape[1] - 1
        written_BS, _ = translate(
            model, source, router_state, context, self._alphabet, self._decoding, length
        )
        zeros_B = jnp.zeros(len(written_BS), jnp.int32)
        return {
            "written": written_BS,
            "reference": self.targets(raw),
            "pair": jnp.asarray(raw.get("domain", zeros_B)),
        }

    def sums(self, predictions: Predictions | GivenLogits, raw: RawBatch) -> Sums:
        target_BS, mask_BS = self.targets(raw), self.target_mask(raw)
        nll_BS, best_BS = predictions.of_targets(target_BS)
        loss_BS, e = nll_BS, self._smoothing
        if e:
            loss_BS = (1 - e) * nll_BS + e * predictions.mean_nll(nll_BS, target_BS)
        nll_BS = jnp.where(mask_BS, nll_BS, 0)
        sums = {
            "nats": jnp.sum(jnp.where(mask_BS, loss_BS, 0)),
            "nll": jnp.sum(nll_BS),
            "correct": jnp.sum(mask_BS & (best_BS == target_BS), dtype=jnp.int32),
            "tokens": jnp.sum(mask_BS, dtype=jnp.int32),
        }
        if len(self._domains) > 1 and "domain" in raw:
            domain_B, n = jnp.asarray(raw["domain"]), len(self._domains)
            tokens_B = jnp.sum(mask_BS, axis=1, dtype=jnp.int32)
            sums["nll_by_domain"] = jax.lax.stop_gradient(
                jnp.zeros(n, jnp.float32).at[domain_B].add(jnp.sum(nll_BS, axis=1), mode="drop")
            )
            sums["tokens_by_domain"] = (
                jnp.zeros(n, jnp.int32).at[domain_B].add(tokens_B, mode="drop")
            )
        return sums

    def metrics(self, sums: Arrays, rows: Arrays | None = None) -> dict[str, float]:
        """cross_entropy: nats per token, without smoothing; perplexity, its exp.
        smoothed_cross_entropy: the loss. accuracy. domain/NAME/cross_entropy of each pair of
        languages. Of texts that the model wrote: bleu (Papineni et al., ACL 2002; sacrebleu, Post,
        1804.08771) and chrf (Popovic, WMT 2015), 0 to 100, of each pair of languages, and their
        means over the pairs."""
        tokens = max(float(sums["tokens"]), 1.0)
        cross_entropy = float(sums["nll"]) / tokens
        metrics = {
            "cross_entropy": cross_entropy,
            "perplexity": float(np.exp(min(cross_entropy, 80.0))),
            "accuracy": float(sums["correct"]) / tokens,
            "smoothed_cross_entropy": float(sums["nats"]) / tokens,
        }
        if "tokens_by_domain" in sums:
            for name, nll, n in zip(
                self._domains, sums["nll_by_domain"], sums["tokens_by_domain"], strict=True
            ):
                if n:
                    metrics[f"domain/{name}/cross_entropy"] = float(nll) / float(n)
        if rows and "written" in rows:
            metrics |= self._scores(rows)
        return metrics

    def _scores(self, rows: Arrays) -> dict[str, float]:
        pairs = np.asarray(rows["pair"])
        texts = {
            name: [text_of(ids, self._tokenizer, self._alphabet.end) for ids in rows[name]]
            for name in ("written", "reference")
        }
        found: dict[str, dict[str, float]] = {"bleu": {}, "chrf": {}}
        for pair in np.unique(pairs):
            here = np.flatnonzero(pairs == pair)
            written, true = ([texts[name][i] for i in here] for name in ("written", "reference"))
            name = self._domains[pair] if self._domains else "all"
            for metric, score in scores(written, true, name.partition("-")[2]).items():
                found[metric][name] = score
        means = {name: float(np.mean(list(of_pair.values()))) for name, of_pair in found.items()}
        if len(self._domains) < 2:
            return means
        return means | {
            f"domain/{pair}/{name}": score
            for name, of_pair in found.items()
            for pair, score in of_pair.items()
        }


def text_of(ids: Iterable[int], tokenizer: Tokenizer, end: int) -> str:
    """The text of ids up to the end."""
    written = itertools.takewhile(lambda i: i != end, map(int, ids))
    return tokenizer.decode([i for i in written if i < tokenizer.vocab_size])


def alphabet_of(tokenizer: Tokenizer, vocabulary: int) -> Alphabet:
    """What a model of so many ids may write: no specials but the end, no ids beyond the
    tokenizer's."""
    return Alphabet(
        start=tokenizer.bos_id or 0,
        end=-1 if tokenizer.eos_id is None else tokenizer.eos_id,
        pad=tokenizer.pad_id,
        usable_V=jnp.asarray(writable_ids(tokenizer, vocabulary)),
    )


def scores(written: list[str], true: list[str], language: str) -> dict[str, float]:
    """sacrebleu's corpus BLEU, words as the language has them, and chrF."""
    from sacrebleu.metrics import BLEU, CHRF

    tokenizer = TOKENIZERS.get(language.partition("_")[0], "13a")
    bleu = BLEU(tokenize=tokenizer).corpus_score(written, [true])
    return {"bleu": bleu.score, "chrf": CHRF().corpus_score(written, [true]).score}
