"""What is expected of experts of a classifier in eleven languages, and what counts."""

from experiments.card import Claim, Comparison

ARM = "eleven languages"
PUBLISHED = (
    "no patterns by topic; experts follow syntax (Mixtral); experts of late layers are those of a "
    "language or family (NLLB)"
)
SOURCE = "2401.04088, section 5; 2207.04672, section 6"


def more(name: str, text: str, metric: str, than: str, band: float) -> Claim:
    return Claim(
        name=name,
        text=text,
        published=PUBLISHED,
        source=SOURCE,
        tests=(
            Comparison(
                metric=metric,
                treatment=ARM,
                baseline=ARM,
                direction="higher",
                baseline_metric=than,
                band=band,
            ),
        ),
    )


CLAIMS = [
    more(
        "language",
        "The expert of a token tells more about its text's language than about its topic, though "
        "the topic is what is learnt: by more than 0.1 bits.",
        "bits of language",
        "bits of topic",
        0.1,
    ),
    more(
        "depth",
        "It tells more about the topic in the last sparse layer than in the first, by more than "
        "0.05 bits.",
        "bits of topic, last",
        "bits of topic, first",
        0.05,
    ),
    more(
        "last layer",
        "In the last sparse layer it tells more about the topic than about the language, by more "
        "than 0.05 bits.",
        "bits of topic, last",
        "bits of language, last",
        0.05,
    ),
]
