"""What the paper claims, and from which difference on it counts."""

from experiments.batch_priority.sweep import metric
from experiments.card import Claim, Comparison


def better(factor: float, band: float) -> Claim:
    """Priority against position at a capacity factor."""
    return Claim(
        name=f"factor {factor:g}",
        text=f"At capacity factor {factor:g} a trained model loses less when experts serve the "
        f"tokens of the highest router probability first, by more than {band:g} bits per byte.",
        published="batch priority degrades far more slowly than the order of positions as the "
        "factor falls below 1",
        source="2106.05974, section 4",
        tests=(
            Comparison(
                metric=metric("priority", factor),
                treatment="v_moe",
                baseline="v_moe",
                baseline_metric=metric("position", factor),
                band=band,
            ),
        ),
    )


CLAIMS = [better(1.0, 0.02), better(0.5, 0.1), better(0.25, 0.1)]
