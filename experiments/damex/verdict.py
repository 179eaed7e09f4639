"""What the paper claims, and from which difference on it counts."""

from experiments.card import Claim, Comparison
from experiments.damex.sweep import MEAN, SHUFFLED, TELLS

SOURCE = "2311.04894, abstract"

CLAIMS = [
    Claim(
        name="routes follow data sets",
        text="The expert that a learned router chooses tells more than a tenth of the data set's "
        "entropy beyond what it tells of data sets that are given to other images.",
        published="experts become experts of a data set where a loss asks for it; a router with "
        "balance losses alone uses its experts for all data sets",
        source="2311.04894",
        tests=(
            Comparison(
                metric=TELLS,
                treatment="learned",
                baseline="learned",
                baseline_metric=SHUFFLED,
                direction="higher",
                band=0.1,
            ),
        ),
    ),
    Claim(
        name="sparse",
        text="The dense twin is behind the learned router by more than half a point of average "
        "precision in the mean over data sets.",
        published="+2.0 points over the same detector without experts, in the mean over 11 data "
        "sets; +10.2 over what was best before",
        source=SOURCE,
        tests=(
            Comparison(
                metric=MEAN,
                treatment="dense",
                baseline="learned",
                direction="lower",
                band=0.005,
            ),
        ),
    ),
    Claim(
        name="routed by data set",
        text="Where all tokens of a data set have experts of their own, average precision in the "
        "mean over data sets is ahead of the learned router by more than half a point.",
        published="routes that are tied to the data set are what the gain is ascribed to",
        source=SOURCE,
        tests=(
            Comparison(
                metric=MEAN,
                treatment="by data set",
                baseline="learned",
                direction="higher",
                band=0.005,
            ),
        ),
    ),
]
