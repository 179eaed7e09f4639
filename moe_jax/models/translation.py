"""Translations that an encoder-decoder writes: the source read once, then id by id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.config.fields import Rule, at_least
from moe_jax.models.encoder_decoder import EncoderDecoder
from moe_jax.models.types import Cache, RouterStates
from moe_jax.nn.context import Context, TokenBatch
from moe_jax.nn.cross import CrossingCache
from moe_jax.ops.beam_search import beam_search


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a sequence is written. beams: hypotheses that are followed at once; 1: greedy.
    length_penalty: alpha of `ops.beam_search.length_penalty`; 0: the most probable sequence."""

    beams: int = 1
    length_penalty: float = 0.6

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "beams")
        yield from at_least(self, 0, "length_penalty")


@dataclass(frozen=True, kw_only=True)
class Alphabet:
    """What may be written: the ids before, at the end of and behind a sequence, and which of the V
    ids are some."""

    start: int
    end: int
    pad: int
    usable_V: Bool[Array, "V"]


def translate(
    model: EncoderDecoder,
    source: TokenBatch,
    router_state: RouterStates,
    context: Context,
    alphabet: Alphabet,
    decoding: Decoding,
    length: int,
) -> tuple[Int[Array, "B T"], Float[Array, "B"]]:
    """`beam_search` of up to T = length ids for each row of the source. context: without drops and
    with whole rows as groups, so that no translation depends on those beside it."""
    memory, _ = model.encode(source, context, router_state)
    B = memory.hidden_BPD.shape[0]
    row_N = jnp.repeat(jnp.asarray(source.row_B), decoding.beams)
    task_N1 = source.task_BS
    if task_N1 is not None:
        task_N1 = jnp.repeat(task_N1[:, :1], decoding.beams, axis=0)
    # Rows that only fill up a batch have no source: their tokens are padding too.
    real_N = jnp.repeat(jnp.max(memory.segment_BP, axis=1), decoding.beams)

    def following(cache: Cache, id_N: Array, place: Array) -> tuple[Array, Cache]:
        target = TokenBatch(
            token_BS=id_N[:, None],
            position_BS=jnp.full((len(id_N), 1), place, jnp.int32),
            segment_BS=real_N[:, None],
            row_B=row_N,
            task_BS=task_N1,
        )
        output = model.decode(target, context, router_state, cache=cache)
        assert output.cache is not None
        return output.logits_BSV[:, 0], output.cache

    return beam_search(
        following,
        model.make_memory_cache(memory, length, decoding.beams),
        _reordered if decoding.beams > 1 else lambda cache, index_N: cache,
        start_B=jnp.full(B, alphabet.start, jnp.int32),
        beams=decoding.beams,
        length=length,
        end=alphabet.end,
        pad=alphabet.pad,
        usable_V=alphabet.usable_V,
        alpha=decoding.length_penalty,
    )


def _reordered(cache: Cache, index_N: Array) -> Cache:
    """Rows are the axis behind the layers; the hypotheses of a row share its memory."""

    def of_stack(stack: CrossingCache) -> CrossingCache:
        tokens = jax.tree.map(
            lambda leaf: leaf[:, index_N] if leaf.ndim > 1 else leaf, stack.tokens
        )
        return CrossingCache(tokens=tokens, memory=stack.memory)

    return {name: of_stack(stack) for name, stack in cache.items()}
