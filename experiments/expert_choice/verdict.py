"""What the paper claims, and from which difference on it counts."""

from experiments.card import Claim, Comparison

ARMS = {"treatment": "expert choice, c=2", "baseline": "token choice, k=2"}
PUBLISHED = "reaches GShard top-2's validation perplexity in half the steps (100M, 64 experts)"

CLAIMS = [
    Claim(
        name="as published",
        text="Expert choice reaches a lower loss than GShard's token choice at equal steps, both "
        "as they train.",
        published=PUBLISHED,
        source="2202.09368, section 4.2",
        tests=(Comparison(metric="bits_per_byte", band=0.01, **ARMS),),
    ),
    Claim(
        name="without the leak",
        text="It still does when what it gains by seeing later tokens of the row is taken off.",
        published=f"not measured there; {PUBLISHED}",
        source="2202.09368, section 4.2; the leak: docs/traces.md",
        tests=(Comparison(metric="discounted", band=0.01, **ARMS),),
    ),
]
