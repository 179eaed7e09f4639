"""Text from a decoder: prefill, then one token at a time with a key/value cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Wrapped
from jaxtyping import Array, Float, Key

from moe_jax.models.network import Network, Params
from moe_jax.models.types import Cache, RouterStates
from moe_jax.nn.context import Context, Routes, TokenBatch
from moe_jax.routing.types import Router


def sample(
    logits_V: Float[Array, "V"], key: Key[Array, ""], temperature: float, top_p: float
) -> Array:
    """A token from the nucleus: the smallest set of most probable tokens whose probability
    reaches top_p (at least one), at the given temperature; temperature 0 takes the best.

    Holtzman et al. (1904.09751). Runs under jit with traced temperature and top_p.
    """
    scaled_V = logits_V.astype(jnp.float32) / jnp.maximum(temperature, 1e-6)
    order_V = jnp.argsort(-scaled_V)
    prob_V = jax.nn.softmax(scaled_V[order_V])
    before_V = jnp.cumsum(prob_V) - prob_V  # probability of everything better
    kept_V = (before_V < top_p).at[0].set(True)
    drawn = jax.random.categorical(key, jnp.where(kept_V, jnp.log(prob_V), -jnp.inf))
    return order_V[jnp.where(temperature <= 0, 0, drawn)].astype(jnp.int32)


@dataclass(frozen=True)
class Token:
    """One generated (or prompt) token and, per sparse layer, its experts and weights (L, K)."""

    id: int
    expert_LK: np.ndarray | None
    weight_LK: np.ndarray | None


@dataclass(frozen=True)
class Generator:
    """Generates from one prompt at a time. Routing is dropless and without noise.

    usable_V: True for ids that may be generated (the tokenizer's, without padding). router: with
    the scalars of the run's step; None: as the model was made.
    """

    network: Network
    params: Params
    router_state: RouterStates
    usable_V: np.ndarray
    capture: bool = False
    router: Router | None = None

    @cached_property
    def _step(self) -> Wrapped:
        def step(params, router_state, router, cache, token_BS, start):
            B, S = token_BS.shape
            position_S = start + jnp.arange(S, dtype=jnp.int32)
            batch = TokenBatch(
                token_BS=token_BS,
                position_BS=jnp.broadcast_to(position_S, (B, S)),
                segment_BS=jnp.ones((B, S), jnp.int32),
                row_B=jnp.arange(B, dtype=jnp.int32),
            )
            context = Context(router=router, whole_rows=True, capture=self.capture)
            output = self.network.apply(params, batch, context, router_state, cache)
            routes = output.report.routes if output.report is not None else None
            return output.logits_BSV[:, -1], output.cache, routes

        return jax.jit(step, donate_argnums=3)

    def logits(self, prompt: list[int], length: int) -> tuple[Array, Cache, Routes | None]:
        """The next token's logits after the prompt, the cache (room for `length` positions), and
        the routes of the prompt."""
        cache = self.network.module(self.params).make_cache(1, length)
        tokens = jnp.asarray([prompt], jnp.int32)
        return self._step(self.params, self.router_state, self.router, cache, tokens, 0)

    def __call__(
        self,
        prompt: list[int],
        max_tokens: int,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        stop: int | None = None,
    ) -> Iterator[Token]:
        """Yields the prompt's tokens (all but the last with their routes known at once), then up
        to `max_tokens` new ones; ends before the token `stop`."""
        key = jax.random.key(seed)
        draw = jax.jit(sample)
        length = len(prompt) + max_tokens
        logits, cache, routes = self.logits(prompt, length)
        for place, token in enumerate(prompt):
            yield self._token(token, routes, place)
        blocked_V = jnp.where(jnp.asarray(self.usable_V), 0.0, -jnp.inf)
        for i in range(max_tokens):
            key, now = jax.random.split(key)
            token = int(draw(logits[0] + blocked_V, now, temperature, top_p))
            if token == stop:
                return
            logits, cache, routes = self._step(
                self.params,
                self.router_state,
                self.router,
                cache,
                jnp.asarray([[token]], jnp.int32),
                len(prompt) + i,
            )
            yield self._token(token, routes, 0)

    @staticmethod
    def _token(token: int, routes: Routes | None, place: int) -> Token:
        if routes is None:
            return Token(token, None, None)
        expert, weight = routes.expert_BSK[:, 0, place], routes.weight_BSK[:, 0, place]
        return Token(token, np.asarray(expert), np.asarray(weight))
