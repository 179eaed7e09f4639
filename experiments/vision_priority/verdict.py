"""What the paper claims, and from which difference on it counts."""

from experiments.card import Claim, Comparison
from experiments.vision_priority.sweep import metric

PUBLISHED = (
    "with priority, quality falls slowly as the factor goes from 1.05 to 0.2; in the order of "
    "positions it falls at once"
)
SOURCE = "2106.05974, section 4.1 and figure 5"


def better(factor: float, band: float) -> Claim:
    """Priority against position at a capacity factor."""
    return Claim(
        name=f"factor {factor:g}",
        text=f"At capacity factor {factor:g} more images are classified right when experts serve "
        "the patches of the highest router probability first: accuracy is higher by more than "
        f"{band:g}.",
        published=PUBLISHED,
        source=SOURCE,
        tests=(
            Comparison(
                metric=metric("priority", factor),
                treatment="v_moe",
                baseline="v_moe",
                direction="higher",
                baseline_metric=metric("position", factor),
                band=band,
            ),
        ),
    )


CLAIMS = [better(0.6, 0.01), better(0.4, 0.02), better(0.2, 0.05)]
