"""What the papers claim, and from which difference on it counts."""

import math

from experiments.card import Claim, Comparison

SHAZEER = "1701.06538, table 6"
THREE_TIMES = math.log(3)

CLAIMS = [
    Claim(
        name="noise alone",
        text="Noise without importance and load losses leaves the experts far less evenly loaded "
        "than noise with them: the coefficient of variation is more than 3 times as large.",
        published="CV of the load 3.01 without, 0.05 with both losses at 0.1; busiest over mean "
        "load 17.80 against 1.14",
        source=SHAZEER,
        tests=(
            Comparison(
                metric="moe/load_cv",
                treatment="noise",
                baseline="noise and losses",
                direction="higher",
                unit="log ratio",
                band=THREE_TIMES,
            ),
        ),
    ),
    Claim(
        name="neither",
        text="So does doing without noise and losses.",
        published='"This imbalance is self-reinforcing", section 4',
        source="1701.06538",
        tests=(
            Comparison(
                metric="moe/load_cv",
                treatment="neither",
                baseline="noise and losses",
                direction="higher",
                unit="log ratio",
                band=THREE_TIMES,
            ),
        ),
    ),
    Claim(
        name="quality",
        text="The importance and load losses lower the loss of the model too.",
        published="test perplexity 39.8 without, 35.6 with both losses at 0.1 (0.11 nats a word)",
        source=SHAZEER,
        tests=(
            Comparison(
                metric="bits_per_byte",
                treatment="noise and losses",
                baseline="noise",
                band=0.01,
            ),
        ),
    ),
    Claim(
        name="first layer",
        text="Without a balance loss the first layer sends most of its tokens to two experts.",
        published="OLMoE's first layer collapses to about 2 of 64 experts",
        source="2409.02060, section 4.1",
        tests=(
            Comparison(
                metric="busiest",
                treatment="softmax",
                baseline="softmax and balance loss",
                direction="higher",
                band=0.2,
            ),
        ),
    ),
]
