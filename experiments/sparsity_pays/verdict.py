"""What the papers claim, and from which difference on it counts."""

from experiments.card import Claim, Comparison

CLAIMS = [
    Claim(
        name="iso-FLOP",
        text="At equal FLOPs per token and equal steps a sparse model is ahead of a dense one "
        "by more than 0.02 bits per byte.",
        published="Switch-Base against T5-Base, negative log-perplexity at 100k steps: -1.561 "
        "against -1.731",
        source="2101.03961, table 1; 2409.02060, section 4.1",
        tests=(
            Comparison(
                metric="bits_per_byte", treatment="sparse", baseline="dense, iso-FLOP", band=0.02
            ),
        ),
    ),
    Claim(
        name="iso-parameter",
        text="A dense model with as many parameters, all used by every token, is ahead of the "
        "sparse one by more than 0.02 bits per byte at equal steps.",
        published="T5-Large, with 3.5 times T5-Base's FLOPs, against Switch-Base of 7.4B "
        "parameters: -1.550 against -1.561",
        source="2101.03961, table 1",
        tests=(
            Comparison(
                metric="bits_per_byte",
                treatment="dense, iso-parameter",
                baseline="sparse",
                band=0.02,
            ),
        ),
    ),
]
