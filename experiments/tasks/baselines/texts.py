"""What simple learners reach on texts, by counts of their pieces of words."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np


def _pieces(rows: Any) -> tuple[Any, np.ndarray]:
    """(rows, ids) counts of each row's pieces of words, and the label or labels of each."""
    from scipy.sparse import lil_matrix

    counts = lil_matrix((len(rows), rows.tokenizer.vocab_size), dtype=np.float32)
    labels = []
    for i in range(len(rows)):
        row = rows[i]
        for token in row["tokens"][row["segments"] > 0]:
            counts[i, token] += 1
        labels.append(row["labels"] if "labels" in row else row["label"])
    return counts.tocsr(), np.array(labels)


def bag_of_pieces(train: Any, held: Any, out: Path) -> float:
    """Logistic regression on counts of the same pieces of words."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000, C=0.1).fit(*_pieces(train))
    return float(model.score(*_pieces(held)))


def naive_bayes(train: Any, held: Any, out: Path) -> float:
    """Multinomial naive Bayes on the same counts."""
    from sklearn.naive_bayes import MultinomialNB

    model = MultinomialNB(alpha=0.1).fit(*_pieces(train))
    return float(model.score(*_pieces(held)))


def _mean_precision(labels_NC: np.ndarray, scores_NC: np.ndarray) -> float:
    """Over the labels that occur."""
    from sklearn.metrics import average_precision_score

    there = labels_NC.any(axis=0)
    return float(average_precision_score(labels_NC[:, there], scores_NC[:, there], average="macro"))


def frequencies(train: Any, held: Any, out: Path) -> float:
    """Each label with the chance that it has in the training split."""
    (_, known), (_, labels) = _pieces(train), _pieces(held)
    return _mean_precision(labels, np.broadcast_to(known.mean(axis=0), labels.shape))


def naive_bayes_each(train: Any, held: Any, out: Path) -> float:
    """Multinomial naive Bayes on the same counts, for each label by itself."""
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.naive_bayes import MultinomialNB

    model = OneVsRestClassifier(MultinomialNB(alpha=0.1)).fit(*_pieces(train))
    counts, labels = _pieces(held)
    return _mean_precision(labels, model.predict_proba(counts))


def linear_each(train: Any, held: Any, out: Path) -> float:
    """Logistic regression on the logarithms of the same counts, for each label by itself."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    (counts, known), (held_counts, labels) = _pieces(train), _pieces(held)
    model = OneVsRestClassifier(LogisticRegression(max_iter=300, C=0.3, solver="liblinear"))
    model.fit(counts.log1p(), known)
    return _mean_precision(labels, model.predict_proba(held_counts.log1p()))


def lexicon(train: Any, held: Any, out: Path) -> float:
    """Valences of VADER's own lexicon, added up over a sentence's words: x / sqrt(x^2 + 15), its
    package's scale, and its package's thresholds of 0.05. Without its rules of grammar."""
    from moe_jax.data.fetch.archives import fetched
    from moe_jax.data.sentiment import CARD

    folder = out / "lexicon"
    folder.mkdir(parents=True, exist_ok=True)
    (path,) = fetched(CARD.archives, None, "data.archive", folder).values()
    with zipfile.ZipFile(path) as archive:
        name = "vaderSentiment-0.5/vaderSentiment/vader_sentiment_lexicon.txt"
        lines = archive.read(name).decode("utf-8", "replace").splitlines()
    valence = {line.split("\t")[0]: float(line.split("\t")[1]) for line in lines if "\t" in line}
    right = []
    for i in range(len(held)):
        ids = held.text_ids(held.place_of(i))
        words = held.tokenizer.decode(ids).lower().split()
        x = sum(valence.get(word, valence.get(word.strip(".,!?;:'\"()"), 0.0)) for word in words)
        score = x / (x * x + 15) ** 0.5
        right.append(int(held[i]["label"]) == 1 + int(score >= 0.05) - int(score <= -0.05))
    return float(np.mean(right))
