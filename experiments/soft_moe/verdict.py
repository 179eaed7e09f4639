"""What the paper claims, and from which ratio on it counts."""

import math

from experiments.card import Claim, Comparison
from experiments.soft_moe.sweep import EXPERTS, SLOTS, name_of

FEW, MANY = EXPERTS[0], EXPERTS[-1]
PUBLISHED = (
    "with the slots fixed, the time of a step stays nearly the same from few experts to thousands, "
    "while that of routers that sort or choose grows"
)
SOURCE = "2308.00951, section 2.3 and figure 6"


def compared(metric: str, than: str, ratio: float) -> Comparison:
    """metric below `than` by a factor of more than this."""
    return Comparison(
        metric=metric,
        treatment="soft_moe",
        baseline="soft_moe",
        baseline_metric=than,
        unit="log ratio",
        band=math.log(ratio),
    )


FLATTER = compared("growth, soft", "growth, sparse", 1.1)

CLAIMS = [
    Claim(
        name="flatter",
        text=f"From {FEW} to {MANY} experts with {SLOTS} slots the time of a step grows less than "
        "a V-MoE's: by a factor of more than 1.1.",
        published=PUBLISHED,
        source=SOURCE,
        tests=(FLATTER,),
    ),
    Claim(
        name="flat",
        text="It does not grow at all, or by less than a quarter.",
        published=PUBLISHED,
        source=SOURCE,
        tests=(FLATTER, compared(name_of("soft", MANY), name_of("soft", FEW), 1 / 1.25)),
    ),
]
