"""What is published of these networks, and from which difference on it counts."""

from experiments.card import Claim, Comparison
from experiments.census.sweep import area

SOURCE = "Ma et al., MMoE (KDD 2018), and figures of Census-Income that later work cites"
INCOME, MARRIED = "income_above_50k", "never_married"


def against(baseline: str, band: float, target: str, worse: bool = False) -> Comparison:
    """The area of mmoe less that of the baseline; worse: the other way round."""
    return Comparison(
        metric=area(target),
        treatment="mmoe",
        baseline=baseline,
        direction="lower" if worse else "higher",
        band=band,
    )


CLAIMS = [
    Claim(
        name="shared bottom",
        text="On both targets a gate for each target over one pool of experts has a larger area "
        "under the ROC curve than one shared network.",
        published="MMoE against shared bottom: .9152 against .9148 (income), .9756 against .9754 "
        "(never married)",
        source=SOURCE,
        tests=(against("shared bottom", 0.0, INCOME), against("shared bottom", 0.0, MARRIED)),
    ),
    Claim(
        name="single task, income",
        text="Against a network for each target, gates over shared experts lose more than 0.001 of "
        "the area on income.",
        published="single task against MMoE: .9198 against .9152",
        source=SOURCE,
        tests=(against("single task", 0.001, INCOME, worse=True),),
    ),
    Claim(
        name="single task, never married",
        text="On never married gates over shared experts are ahead of a network of its own.",
        published="MMoE against single task: .9756 against .9748",
        source=SOURCE,
        tests=(against("single task", 0.0, MARRIED),),
    ),
]
