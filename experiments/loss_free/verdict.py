"""What the paper claims, and from which difference on it counts."""

import math

from experiments.card import Claim, Comparison

SOURCE = "2408.15664, table 2 (1B)"
FIVE_TIMES = math.log(5)


def balances(name: str, text: str, arm: str) -> Claim:
    """Five times better balanced at no worse loss."""
    return Claim(
        name=name,
        text=text,
        published="MaxVio 0.04 against 0.72 (18 times), perplexity 9.50 against 9.56",
        source=SOURCE,
        tests=(
            Comparison(
                metric="moe/max_violation",
                treatment=arm,
                baseline="aux loss 0.001",
                unit="log ratio",
                band=FIVE_TIMES,
            ),
            Comparison(
                metric="bits_per_byte", treatment=arm, baseline="aux loss 0.001", band=-0.005
            ),
        ),
    )


CLAIMS = [
    balances(
        "balance",
        "A bias that follows the load gives an evaluation a max violation 5 times lower than the "
        "auxiliary loss of 0.001, at a loss no worse by 0.005 bits per byte.",
        "loss-free",
    ),
    balances(
        "balance, the paper's rate",
        "The same with the paper's constant rate of 0.001, in a run of 300 steps.",
        "loss-free, rate 0.001",
    ),
    Claim(
        name="quality",
        text="Without the auxiliary loss's gradient the model's loss is lower.",
        published="perplexity 9.50 against 9.56 (0.006 nats)",
        source=SOURCE,
        tests=(
            Comparison(metric="bits_per_byte", treatment="loss-free", baseline="aux loss 0.001"),
        ),
    ),
]
