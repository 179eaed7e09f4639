"""How much a token's routes and prediction depend on tokens that come after it.

Routing is discrete, so a gradient with respect to later tokens is 0 even where they decide which
expert a token gets. Hence later tokens are really replaced, and the earlier ones looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moe_jax.analysis.trace import gates_of

# Weights that differ by less are the same route: rounding differs with the number of rows.
SAME_WEIGHT = 1e-4


def replace_later(tokens: np.ndarray, segments: np.ndarray, cut: int, seed: int) -> np.ndarray:
    """tokens (B, S+1) with those from place `cut` on replaced by draws from all tokens of the batch
    (so that frequencies stay); padding stays."""
    random = np.random.default_rng(seed)
    pool = tokens[segments > 0]
    drawn = random.choice(pool, size=tokens.shape) if pool.size else tokens
    later = (np.arange(tokens.shape[1]) >= cut)[None, :] & (segments > 0)
    return np.where(later, drawn, tokens).astype(tokens.dtype)


@dataclass
class LeakSums:
    """Adds up over batches and cuts; see `metrics`."""

    tokens: int = 0
    targets: int = 0
    changed: int = 0  # (layer, token) pairs
    pairs: int = 0
    nats: float = 0.0
    absolute: float = 0.0
    by_layer: dict[int, list[int]] = field(default_factory=dict)

    def add(self, before: Observed, after: Observed, cut: int, layers: tuple[int, ...]) -> None:
        """before, after: with the true and with other tokens from place `cut` on. Compared are the
        inputs before `cut`, and the predictions whose target is before it."""
        valid = before.segment_BS[:, :cut] > 0
        gates = [gates_of(*x.routes(cut), x.num_experts) for x in (before, after)]
        moved_LBS = np.any(np.abs(gates[0] - gates[1]) > SAME_WEIGHT, axis=-1)
        for layer, moved_BS in zip(layers, moved_LBS, strict=True):
            counts = self.by_layer.setdefault(layer, [0, 0])
            counts[0] += int(np.sum(moved_BS & valid))
            counts[1] += int(np.sum(valid))
        self.changed += int(np.sum(moved_LBS & valid[None]))
        self.pairs += int(np.sum(valid)) * len(layers)
        self.tokens += int(np.sum(valid))
        difference = (after.nll_BS - before.nll_BS)[:, : cut - 1].astype(np.float64)
        # Not where nats are 0: a sure model has targets of exactly 0 nats.
        self.targets += int(np.sum(before.target_BS[:, : cut - 1]))
        self.nats += float(np.sum(difference))
        self.absolute += float(np.sum(np.abs(difference)))

    def metrics(self) -> dict[str, float]:
        """routes_changed: share of (layer, earlier token) pairs whose kept experts or weights
        changed; routes_changed_layer_07 the same of one layer. nats: mean over earlier targets of
        nats(other future) - nats(true future), what the model gains by the future; absolute_nats:
        mean of its absolute value. tokens: earlier tokens looked at."""
        targets = max(self.targets, 1)
        return {
            "routes_changed": self.changed / max(self.pairs, 1),
            "nats": self.nats / targets,
            "absolute_nats": self.absolute / targets,
            "tokens": float(self.tokens),
            **{
                f"routes_changed_layer_{layer:02d}": changed / max(pairs, 1)
                for layer, (changed, pairs) in sorted(self.by_layer.items())
            },
        }


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A batch on the host. target: whether the next token counts in the loss. expert, weight, kept:
    (L, B, S, K)."""

    nll_BS: np.ndarray
    target_BS: np.ndarray
    segment_BS: np.ndarray
    expert_LBSK: np.ndarray
    weight_LBSK: np.ndarray
    kept_LBSK: np.ndarray
    num_experts: int

    def routes(self, cut: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the tokens before `cut`."""
        return (
            self.expert_LBSK[:, :, :cut],
            self.weight_LBSK[:, :, :cut],
            self.kept_LBSK[:, :, :cut],
        )
