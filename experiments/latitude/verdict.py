"""What the climate's own definition leads one to expect, and from which difference on it counts."""

from experiments.card import Claim, Comparison

SOURCE = "Rubel et al. (2017), whose zones are bounds of temperature and rain"


def better(name: str, text: str, metric: str, band: float) -> Claim:
    return Claim(
        name=name,
        text=text,
        published="not measured there",
        source=SOURCE,
        tests=(
            Comparison(
                metric=metric,
                treatment="given",
                baseline="withheld",
                direction="higher",
                band=band,
            ),
        ),
    )


CLAIMS = [
    better(
        "mean",
        "A model that is told the latitude finds climates better: mean IoU is higher by more than "
        "0.03.",
        "mean_iou",
        0.03,
    ),
    better(
        "tropical",
        "It tells tropical from temperate forest, which have one colour: the IoU of tropical is "
        "higher by more than 0.1.",
        "iou/tropical",
        0.1,
    ),
    better(
        "ocean",
        "Where colour is enough it is of no use: the IoU of the ocean is higher by more than 0.03.",
        "iou/ocean",
        0.03,
    ),
]
