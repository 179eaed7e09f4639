"""What the paper claims, and from which difference on it counts."""

import math

from experiments.card import Claim, Comparison

SOURCE = "2408.15664, table 2 (1B)"
FIVE_TIMES = math.log(5)


BASELINE = "aux loss 0.001"


def balances(name: str, text: str, arm: str) -> Claim:
    """Five times better balanced."""
    return Claim(
        name=name,
        text=text,
        published="MaxVio 0.04 against 0.72 (18 times)",
        source=SOURCE,
        tests=(
            Comparison(
                metric="moe/max_violation",
                treatment=arm,
                baseline=BASELINE,
                unit="log ratio",
                band=FIVE_TIMES,
            ),
        ),
    )


CLAIMS = [
    balances(
        "balance",
        "A bias that follows the load gives an evaluation a max violation more than 5 times lower "
        "than the auxiliary loss of 0.001.",
        "loss-free",
    ),
    balances(
        "balance, the paper's rate",
        "The same with the paper's constant rate of 0.001, in a run of 300 steps.",
        "loss-free, rate 0.001",
    ),
    Claim(
        name="balance at no cost",
        text="It does so at a loss that is no worse by 0.02 bits per byte.",
        published="perplexity 9.50 against 9.56 (0.006 nats better), MaxVio 0.04 against 0.72",
        source=SOURCE,
        tests=(
            Comparison(
                metric="moe/max_violation",
                treatment="loss-free",
                baseline=BASELINE,
                unit="log ratio",
                band=FIVE_TIMES,
            ),
            Comparison(
                metric="bits_per_byte", treatment="loss-free", baseline=BASELINE, band=-0.02
            ),
        ),
    ),
]
