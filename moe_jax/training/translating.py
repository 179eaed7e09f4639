"""Texts that a trained model translates."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from moe_jax.config.activity import counted
from moe_jax.config.errors import UserError
from moe_jax.data.tokenizer import WithLanguages
from moe_jax.models.network import Params
from moe_jax.models.translation import Decoding, translate
from moe_jax.models.types import RouterStates
from moe_jax.nn.context import Context, TokenBatch
from moe_jax.routing.types import Router
from moe_jax.tasks.translation import alphabet_of, text_of
from moe_jax.training.build import Program
from moe_jax.training.state import TrainState

ROWS = 16  # translated at once


def translations(
    program: Program,
    state: TrainState,
    tokenizer: WithLanguages,
    texts: Sequence[str],
    into: Sequence[str],
    decoding: Decoding,
) -> list[str]:
    """Each text in another language. UserError for one that is empty or longer than a row."""
    S = program.experiment.row_length
    sources = [
        _source(text, tokenizer, language, S) for text, language in zip(texts, into, strict=True)
    ]
    alphabet = alphabet_of(tokenizer, program.experiment.vocabulary or 0)

    def write(
        params: Params, router_state: RouterStates, router: Router, source: TokenBatch
    ) -> Array:
        context = Context(router=router, whole_rows=True)
        module = program.network.module(params)
        ids_BT, _ = translate(module, source, router_state, context, alphabet, decoding, S)
        return ids_BT

    run, router = jax.jit(write), program.step.router_at(program.scalars(int(state.step)))
    found: list[str] = []
    starts = range(0, len(sources), ROWS)
    for first in counted("translating", starts, "batches", "the first compiles"):
        rows = sources[first : first + ROWS]
        batch = _batch(rows, S, tokenizer.pad_id)
        written = jax.device_get(run(state.params, state.router_state, router, batch))
        found += [text_of(ids, tokenizer, alphabet.end) for ids in written[: len(rows)]]
    return found


def _source(text: str, tokenizer: WithLanguages, into: str, S: int) -> np.ndarray:
    """As data/paired.py has it: the language, the text, the end."""
    ids = tokenizer.encode(text)
    if not len(ids):
        raise UserError("a text to translate is empty")
    if len(ids) + 2 > S:
        raise UserError(
            f"a text to translate has {len(ids)} tokens, and the run's rows have room for "
            f"{S - 2}: {text[:40]!r}..."
        )
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return np.concatenate([[tokenizer.language_id(into)], ids, end]).astype(np.int32)


def _batch(rows: Sequence[np.ndarray], S: int, pad: int) -> TokenBatch:
    """ROWS rows, those behind the given ones without a text."""
    token_BS = np.full((ROWS, S), pad, np.int32)
    segment_BS = np.zeros((ROWS, S), np.int32)
    for row, ids in enumerate(rows):
        token_BS[row, : len(ids)] = ids
        segment_BS[row, : len(ids)] = 1
    numbers = jnp.arange(ROWS, dtype=jnp.int32)
    return TokenBatch.packed(jnp.asarray(token_BS), jnp.asarray(segment_BS), numbers)
