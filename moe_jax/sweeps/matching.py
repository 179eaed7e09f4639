"""What a config costs, and the width at which another costs the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from moe_jax.config.errors import UserError
from moe_jax.config.overrides import apply_overrides
from moe_jax.models.counts import Counts
from moe_jax.training.experiment import Experiment


def counts_of(experiment: Experiment) -> Counts:
    """Parameters and FLOPs per token of a config."""
    return experiment.counts


def training_tokens(experiment: Experiment) -> int:
    """Tokens of all steps."""
    return experiment.steps * experiment.batch_size * experiment.row_length


def used_flops(experiment: Experiment, dropped: float) -> float:
    """Training FLOPs per token without those of dropped assignments.

    dropped: share of the wanted assignments that got no place.
    """
    counts = counts_of(experiment)
    return counts.flops_per_token - dropped * counts.routed_flops


def min_dropped(experiment: Experiment) -> float:
    """The share of assignments that must be dropped however even the load is: 1 - f below a
    capacity factor f of 1, else 0."""
    factor = experiment.moe.capacity_factor
    return max(0.0, 1.0 - factor) if factor is not None else 0.0


QUANTITIES: dict[str, Callable[[Experiment], float]] = {
    "flops": lambda e: used_flops(e, min_dropped(e)),
    "active": lambda e: counts_of(e).active,
    "parameters": lambda e: counts_of(e).total,
}
LARGEST_WIDTH = 1 << 24
CLOSE = 0.005  # a relative difference of matched quantities that need not be told


@dataclass(frozen=True)
class Matching:
    """Makes all points of a sweep cost what the config costs that they vary.

    quantity: "flops" (training FLOPs per token, without those of assignments that a capacity
    factor below 1 must drop), "active" or "parameters"; None: points stay as they are.
    path: the width that is solved for; by default that of the experts, of a dense model that of
    its feed-forward.
    """

    quantity: str | None = None
    path: str | None = None

    def target(self, base: Experiment) -> float:
        return 0.0 if self.quantity is None else QUANTITIES[self.quantity](base)

    def refuse_swept(self, experiment: Experiment, swept: Iterable[str]) -> None:
        """UserError where the sweep itself sets the width that is solved for."""
        path = self.path or width_path(experiment)
        if self.quantity is not None and path in swept:
            raise UserError(
                f"--match={self.quantity} solves for {path}, which the sweep sets; "
                "--match_width names another width"
            )

    def notes(self, base: Experiment, arms: Mapping[str, Experiment]) -> list[str]:
        """What is not equal although it was matched: the nearest whole width may be far off, and
        costs are per token."""
        if self.quantity is None:
            return []
        of, target = QUANTITIES[self.quantity], self.target(base)
        gaps = {arm: of(experiment) / target - 1 for arm, experiment in arms.items()}
        notes = [
            f"{arm}: {self.quantity} {gap:+.1%} off what the config has, the nearest that a whole "
            "width gives"
            for arm, gap in gaps.items()
            if abs(gap) > CLOSE
        ]
        tokens = sorted({training_tokens(experiment) for experiment in arms.values()})
        if len(tokens) > 1:
            notes.append(
                f"equal {self.quantity} are per token, and the points train on {tokens[0]:,} to "
                f"{tokens[-1]:,} tokens: whole trainings cost as PFLOP says"
            )
        return notes

    def match(self, experiment: Experiment, target: float) -> Experiment:
        """The experiment with the width whose quantity is nearest to the target. UserError where
        no width brings it there."""
        if self.quantity is None:
            return experiment
        path = self.path or width_path(experiment)
        width = width_for(experiment, self.quantity, target, path)
        return apply_overrides(experiment, {path: width})


def width_path(experiment: Experiment) -> str:
    """The width that a model is usually scaled by: of its experts, or of its dense layers."""
    return "moe.expert_dim" if experiment.moe.every else "model.mlp_dim"


def width_for(experiment: Experiment, quantity: str, target: float, path: str | None = None) -> int:
    """The width at `path` (default: `width_path`) that brings a quantity nearest to `target`, by
    bisection. UserError where none does."""
    path = path or width_path(experiment)

    def at(width: int) -> float:
        widened = apply_overrides(experiment, {path: width}, check=lambda config: [])
        return QUANTITIES[quantity](widened)

    if at(1) > target or at(LARGEST_WIDTH) < target:
        raise UserError(f"no {path} gives {target:,.0f} {quantity}: 1 gives {at(1):,.0f}")
    low, high = 1, LARGEST_WIDTH
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) <= target else (low, middle)
    return low if target - at(low) <= at(high) - target else high
