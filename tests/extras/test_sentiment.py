"""The rated sentences, fetched with the real pip from the index at hand."""

from __future__ import annotations

import numpy as np

from moe_jax.data.prepare import prepare
from moe_jax.data.progress import Silent
from moe_jax.data.sentiment import Sentiment


def test_the_sentences_are_those_of_the_study(tmp_path):
    """Hutto and Gilbert's counts of sentences by source, and of classes at +-0.5."""
    data = Sentiment(data_dir=str(tmp_path))
    message = "\n".join(prepare(data, Silent()))
    assert "23,703 documents" in message
    by_source = np.zeros((4, 3), int)
    for split in ("train", "validation"):
        rows = data.open(split)
        np.add.at(by_source, (rows.labels["domain"], rows.labels["label"]), 1)
    named = dict(zip(rows.domains, by_source.tolist(), strict=True))
    assert named == {
        "movies": [5061, 562, 4982],
        "products": [1218, 765, 1725],
        "editorials": [1688, 2402, 1100],
        "tweets": [1062, 838, 2300],
    }
    # A second set, of other settings, fetches nothing anew.
    assert len(Sentiment(data_dir=str(tmp_path), neutral=1.0).open("train")) > 20_000
