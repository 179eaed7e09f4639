"""Hash layers: the id of a token says which experts it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.config.fields import Rule, at_least, one_of
from moe_jax.routing.content_free.base import BaseContentFree, hash_choice
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums

TABLES = ("random", "balanced")


def greedy_table(
    count_V: Float[Array, "V"], table_VK: Int[Array, "V K"], E: int
) -> Int[Array, "V K"]:
    """Ids by falling count, each to the k least loaded experts; a load is the sum of the counts.

    Ties go to the lower id and the lower expert. Ids with count 0 keep what `table_VK` says: all of
    them would go to one expert. V steps one after the other.
    """
    k = table_VK.shape[1]
    order_V = jnp.argsort(-count_V, stable=True)

    def place(load_E: Array, count: Array) -> tuple[Array, Array]:
        _, expert_K = jax.lax.top_k(-load_E, k)
        return load_E.at[expert_K].add(count), expert_K.astype(jnp.int32)

    _, expert_VK = jax.lax.scan(place, jnp.zeros((E,), jnp.float32), count_V[order_V])
    found_VK = jnp.zeros_like(table_VK).at[order_V].set(expert_VK, unique_indices=True)
    return jnp.where(count_V[:, None] > 0, found_VK, table_VK)


@dataclass(frozen=True, kw_only=True)
class Hash(BaseContentFree):
    """The k experts of a token are a fixed function of its id, with weights 1/k; no parameters.

    table:
      random    the k largest of hash(seed, id, expert), see `content_free.hash_choice`: no table,
                any vocabulary.
      balanced  ids by falling frequency, each to the least loaded experts (`greedy_table`).
    vocab_size: rows of the balanced table, at least model.vocab_size; ids past it, and ids that
      were not seen while counting, are hashed as in "random".
    count_steps: after each of the first so many optimizer steps the balanced table is built anew
      from the ids of all steps so far; then it is frozen. Before the first step it is "random".

    Roller et al. (2106.04426) section 3: one expert (k = 1), chosen by the token's id alone, and no
    loss for balance. They find test perplexity 23.23 with balanced assignment, 23.27 with a random
    one. Differences: they take the frequencies of the training data before the run, we count them
    in its first steps (from the global batch, so the same on every mesh). Their MultiHash layers
    put one FFN together from segments of N experts; our k > 1 is the mean of k whole, distinct
    experts. A router does not know its layer: all layers have the same function.
    Frequent ids bound the balance: of an id with a share of s of the tokens each expert has at
    least that share. Cost: no matrix; balanced adds up V counts per routing group and layer in
    training, and takes V sequential steps in each of the first count_steps updates.
    """

    pooled = ("ids_V",)
    reads_ids = True

    table: str = "random"
    seed: int = 0
    vocab_size: int | None = None
    count_steps: int = 20

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from one_of(self, TABLES, "table")
        yield from at_least(self, 0, "seed")
        yield from at_least(self, 1, "vocab_size", "count_steps")
        if self.table == "balanced" and self.vocab_size is None:
            yield "vocab_size", 'must be set with table = "balanced", to model.vocab_size or more'

    def state(self, E: int) -> dict[str, Array]:
        if self.table == "random":
            return {}
        id_V = jnp.arange(self.vocab_size, dtype=jnp.int32)
        return {
            "expert_VK": hash_choice((id_V,), self.seed, E, self.k),
            "count_V": jnp.zeros((self._V,), jnp.float32),
            "steps": jnp.zeros((), jnp.int32),
        }

    def own_sums(self, E: int) -> dict[str, Array]:
        return {} if self.table == "random" else {"ids_V": jnp.zeros((self._V,), jnp.float32)}

    @property
    def _V(self) -> int:
        return self.vocab_size or 0

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        if inputs.id_T is None:
            raise ValueError("hash routing is by the ids of tokens, and these have none")
        expert_TK = hash_choice((inputs.id_T,), self.seed, inputs.E, self.k)
        if self.table == "random":
            return self.decide_evenly(expert_TK, inputs)
        known_T = (inputs.id_T >= 0) & (inputs.id_T < self._V)
        listed_TK = state["expert_VK"][jnp.clip(inputs.id_T, 0, self._V - 1)]
        expert_TK = jnp.where(known_T[:, None], listed_TK, expert_TK)
        own = {}
        if inputs.train:
            id_T = jnp.where(known_T & inputs.valid_T, inputs.id_T, self._V)
            own["ids_V"] = jnp.zeros((self._V,), jnp.float32).at[id_T].add(1.0, mode="drop")
        return self.decide_evenly(expert_TK, inputs, own)

    def metrics(self, state: RouterState, sums: Sums) -> dict[str, Float[Array, ""]]:
        """ids_seen: share of the vocabulary that the balanced table has counted."""
        if self.table == "random":
            return {}
        return {"ids_seen": jnp.mean((state["count_V"] > 0).astype(jnp.float32))}

    def update(self, state: RouterState, sums: Sums) -> RouterState:
        if self.table == "random":
            return state
        E = sums.wanted_E.shape[0]
        counting = state["steps"] < self.count_steps
        count_V = state["count_V"] + jnp.where(counting, sums.own["ids_V"], 0)
        return {
            "expert_VK": _rebuild_if(counting, count_V, state["expert_VK"], E),
            "count_V": count_V,
            "steps": state["steps"] + counting.astype(jnp.int32),
        }


def _rebuild_if(wanted: Array, count_V: Array, table_VK: Array, E: int) -> Array:
    """greedy_table(...) where wanted, else the table as it is, and then in no time: the vmap of a
    `cond` over layers would build the table in every step of the run."""

    @jax.custom_batching.custom_vmap
    def rebuild(wanted: Array, count_V: Array, table_VK: Array) -> Array:
        return jax.lax.cond(
            wanted,
            lambda count_V, table_VK: greedy_table(count_V, table_VK, E),
            lambda count_V, table_VK: table_VK,
            count_V,
            table_VK,
        )

    @rebuild.def_vmap
    def _(axis_size: int, batched: Sequence[bool], *leaves: Array) -> tuple[Array, bool]:
        wanted_L, count_LV, table_LVK = (
            leaf if is_batched else jnp.broadcast_to(leaf, (axis_size, *leaf.shape))
            for leaf, is_batched in zip(leaves, batched, strict=True)
        )

        def build(count_LV: Array, table_LVK: Array) -> Array:
            built_LVK = jax.vmap(lambda count, table: greedy_table(count, table, E))(
                count_LV, table_LVK
            )
            return jnp.where(wanted_L[:, None, None], built_LVK, table_LVK)

        keep = lambda count_LV, table_LVK: table_LVK  # noqa: E731
        return jax.lax.cond(jnp.any(wanted_L), build, keep, count_LV, table_LVK), True

    return rebuild(wanted, count_V, table_VK)
