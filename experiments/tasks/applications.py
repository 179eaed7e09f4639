"""The applications that sparse models are held against their dense twins in, and what else a reader
would ask for beside them: a rule without learning and a simple learner."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.tasks import table_baselines as tables

# (training rows, validation rows, a folder to work in) -> the metric on the validation split.
Baseline = Callable[[Any, Any, Path], float]


@dataclass(frozen=True, kw_only=True)
class Application:
    """config: its file, of which `sparse` and `dense` are the arguments. metric: by which arms are
    compared. trivial, simple: baselines by name. settings: of the config, for the runs of the
    table, where they differ from the file's."""

    what: str
    config: str
    data: str
    metric: str
    best: Literal["max", "min"]
    trivial: dict[str, Baseline]
    simple: dict[str, Baseline]
    sparse: str = ""
    dense: str = "dense"
    settings: tuple[str, ...] = ()

    def configs(self) -> dict[str, str]:
        """Of each arm."""
        arms = {"sparse": self.sparse, "dense": self.dense}
        return {arm: f"{self.config}:{word}" if word else self.config for arm, word in arms.items()}


def majority(train: Any, held: Any, out: Path) -> float:
    """The most frequent class of the training split."""
    labels = [int(train[i]["label"]) for i in range(len(train))]
    most = int(np.bincount(labels).argmax())
    return float(np.mean([int(held[i]["label"]) == most for i in range(len(held))]))


def nearest(train: Any, held: Any, out: Path) -> float:
    """The class of the nearest training image, pixel by pixel."""
    from sklearn.neighbors import KNeighborsClassifier

    def columns(rows: Any) -> tuple[np.ndarray, list[int]]:
        found = [rows[i] for i in range(len(rows))]
        return np.stack([r["image"].ravel() for r in found]), [int(r["label"]) for r in found]

    model = KNeighborsClassifier(1).fit(*columns(train))
    return float(model.score(*columns(held)))


def _pieces(rows: Any) -> tuple[Any, list[int]]:
    """(rows, ids) counts of each row's pieces of words, and the labels."""
    from scipy.sparse import lil_matrix

    counts = lil_matrix((len(rows), rows.tokenizer.vocab_size), dtype=np.float32)
    labels = []
    for i in range(len(rows)):
        row = rows[i]
        for token in row["tokens"][row["segments"] > 0]:
            counts[i, token] += 1
        labels.append(int(row["label"]))
    return counts.tocsr(), labels


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


def _mean_iou(right_HW: list[np.ndarray], found_HW: list[np.ndarray], classes: int) -> float:
    from moe_jax.tasks.segmentation import ClassOfPixel

    label, best = (np.concatenate([x.ravel() for x in maps]) for maps in (right_HW, found_HW))
    there = label >= 0
    pairs = np.bincount(label[there] * classes + best[there], minlength=classes**2)
    sums = {
        "nats": np.zeros(()),
        "pixels": there.sum(),
        "confusion": pairs.reshape(classes, classes),
    }
    return ClassOfPixel(classes).metrics(sums)["mean_iou"]


def ocean(train: Any, held: Any, out: Path) -> float:
    """The class of the ocean everywhere."""
    maps = [held[i]["label_map"] for i in range(len(held))]
    sea = held.classes.index("ocean")
    return _mean_iou(maps, [np.full_like(one, sea) for one in maps], len(held.classes))


def colours(train: Any, held: Any, out: Path) -> float:
    """The most frequent class of each of 4,096 colours in the training split."""
    from moe_jax.data.climate import Climate

    classes, usual = len(held.classes), Climate()
    table = np.zeros((16**3, classes), np.int64)

    def colour(row: Any) -> np.ndarray:
        image = row["image"] * usual.deviation + usual.mean
        level = np.clip((image[..., :3] * 16).astype(int), 0, 15)
        return level[..., 0] * 256 + level[..., 1] * 16 + level[..., 2]

    for i in range(len(train)):
        row = train[i]
        there = row["label_map"] >= 0
        np.add.at(table, (colour(row)[there], row["label_map"][there]), 1)
    best = table.argmax(axis=1).astype(np.int32)
    rows = [held[i] for i in range(len(held))]
    found = [best[colour(row)] for row in rows]
    return _mean_iou([row["label_map"] for row in rows], found, classes)


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


# Without what only reports show: the figures are the same.
QUIET = (
    "--config.evaluation.every=0",
    "--config.logging.load_every=0",
    "--config.logging.probe_every=0",
)
APPLICATIONS = {
    "translation": Application(
        what="translation",
        config="configs/translation.py",
        sparse="danish",
        dense="danish-dense",
        data="descriptions of packages, Danish to English",
        metric="bleu",
        best="max",
        trivial={"the source as it is": copied},
        simple={"a translation memory": remembered},
    ),
    "sentiment": Application(
        what="sentiment of sentences",
        config="configs/sentiment.py",
        data="VADER's rated sentences",
        metric="accuracy",
        best="max",
        trivial={"the most frequent class": majority},
        simple={"VADER's lexicon": lexicon, "linear on a bag of pieces": bag_of_pieces},
    ),
    "vision": Application(
        what="image classification",
        config="configs/vision.py",
        data="1,797 handwritten digits",
        metric="accuracy",
        best="max",
        trivial={"the most frequent class": majority},
        simple={"the nearest image": nearest},
    ),
    "topics": Application(
        what="text classification",
        config="configs/topics.py",
        data="26 topics of software packages",
        metric="accuracy",
        best="max",
        trivial={"the most frequent class": majority},
        simple={"naive Bayes": naive_bayes},
    ),
    "segmentation": Application(
        what="segmentation",
        config="configs/segmentation.py",
        data="climate zones of a satellite picture",
        metric="mean_iou",
        best="max",
        trivial={"ocean everywhere": ocean},
        simple={"a table of colours": colours},
    ),
    "census": Application(
        what="income and marriage",
        config="configs/census.py",
        data="a census, 2 targets",
        metric="auc",
        best="max",
        trivial={"one score for all": tables.constant},
        simple={"logistic regression": tables.logistic, "boosted trees": tables.trees},
        settings=("--config.steps=500", *QUIET),
    ),
    "flights": Application(
        what="late flights",
        config="configs/flights.py",
        data="departures from New York, 3 targets",
        metric="auc",
        best="max",
        trivial={"one score for all": tables.constant},
        simple={"logistic regression": tables.logistic, "boosted trees": tables.trees},
        settings=("--config.steps=300", *QUIET),
    ),
    "swissmetro": Application(
        what="choice of transport",
        config="configs/swissmetro.py",
        data="9 choices of each of 1,191 people",
        metric="cross_entropy",
        best="min",
        trivial={"shares of the choices": tables.shares},
        simple={"a multinomial logit": tables.logit, "boosted trees": tables.choice_trees},
        settings=QUIET,
    ),
    "movielens": Application(
        what="the next film",
        config="configs/movielens.py",
        data="what 943 people watched",
        metric="ndcg_at_10",
        best="max",
        trivial={"popularity": tables.popular},
        simple={"films with like people": tables.neighbours},
        settings=QUIET,
    ),
    "ratings": Application(
        what="ratings of films",
        config="configs/movielens.py",
        sparse="rating",
        dense="rating-dense",
        data="100,000 ratings",
        metric="rmse/rating",
        best="min",
        trivial={"the mean": tables.mean_rating},
        simple={"biases of people and films": tables.biases},
        settings=("--config.steps=1000", *QUIET),
    ),
}
