"""What a rule and a memory reach in translating."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WRITTEN = 256  # pairs that BLEU is over, as in the runs


def _bleu(held: Any, guess: Callable[[list[str]], list[str]]) -> float:
    """The mean over pairs of languages, of the rows that a run writes itself."""
    from moe_jax.tasks.translation import scores

    texts = [held.texts(i) for i in range(min(WRITTEN, len(held)))]
    pairs = np.array([int(held[i]["domain"]) for i in range(len(texts))])
    guessed = guess([source for source, _ in texts])
    found = []
    for pair in np.unique(pairs):
        here = np.flatnonzero(pairs == pair)
        language = held.domains[pair].partition("-")[2]
        written, true = [guessed[i] for i in here], [texts[i][1] for i in here]
        found.append(scores(written, true, language)["bleu"])
    return float(np.mean(found))


def copied(train: Any, held: Any, out: Path) -> float:
    """The source as it is."""
    return _bleu(held, lambda sources: sources)


def remembered(train: Any, held: Any, out: Path) -> float:
    """A translation memory: what the training source was translated into that is most alike, by
    the cosine of TF-IDF over runs of two to five letters. Of one pair of languages."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import NearestNeighbors

    known = [train.texts(i) for i in range(len(train))]

    def guess(sources: list[str]) -> list[str]:
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), max_features=200_000)
        table = letters.fit_transform([source for source, _ in known])
        nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(table)
        places = nearest.kneighbors(letters.transform(sources), return_distance=False)[:, 0]
        return [known[place][1] for place in places]

    return _bleu(held, guess)
