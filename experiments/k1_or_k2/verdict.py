"""What the paper claims, and from which difference on it counts."""

from experiments.card import Claim, Comparison
from experiments.k1_or_k2.sweep import arm

SOURCE = "2101.03961, table 1"


def ahead(k: int, factor: float, published: str) -> Claim:
    """k against the other one."""
    return Claim(
        name=f"factor {factor:g}",
        text=f"At capacity factor {factor:g} k = {k} is ahead of k = {3 - k} at equal steps.",
        published=f"negative log-perplexity at 100k steps, k = 1 and 2: {published}",
        source=SOURCE,
        tests=(
            Comparison(
                metric="bits_per_byte",
                treatment=arm(k, factor),
                baseline=arm(3 - k, factor),
                band=0.005,
            ),
        ),
    )


CLAIMS = [
    ahead(1, 1.0, "-1.561 and -1.572"),
    ahead(1, 1.25, "-1.553 and -1.559"),
    ahead(2, 2.0, "-1.554 and -1.547"),
]
