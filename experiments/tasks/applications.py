"""The applications that sparse models are held against their dense twins in, and what else a reader
would ask for beside them: a rule without learning and a simple learner (baselines/)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.tasks.baselines import (
    classes,
    images,
    maps,
    objects,
    tables,
    texts,
    translations,
)

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
        trivial={"the source as it is": translations.copied},
        simple={"a translation memory": translations.remembered},
        settings=QUIET,
    ),
    "sentiment": Application(
        what="sentiment of sentences",
        config="configs/sentiment.py",
        data="VADER's rated sentences",
        metric="accuracy",
        best="max",
        trivial={"the most frequent class": classes.majority},
        simple={"VADER's lexicon": texts.lexicon, "linear on a bag of pieces": texts.bag_of_pieces},
        settings=QUIET,
    ),
    "vision": Application(
        what="image classification",
        config="configs/vision.py",
        data="1,797 handwritten digits",
        metric="accuracy",
        best="max",
        trivial={"the most frequent class": classes.majority},
        simple={"the nearest image": images.nearest},
    ),
    "topics": Application(
        what="text classification",
        config="configs/topics.py",
        data="26 topics of software packages",
        metric="accuracy",
        best="max",
        trivial={"the most frequent class": classes.majority},
        simple={"naive Bayes": texts.naive_bayes},
        settings=QUIET,
    ),
    "tags": Application(
        what="tagging of texts",
        config="configs/topics.py",
        sparse="tags",
        dense="tags-dense",
        data="100 tags of software packages",
        metric="mean_average_precision",
        best="max",
        trivial={"the frequency of each tag": texts.frequencies},
        simple={
            "naive Bayes": texts.naive_bayes_each,
            "linear on a bag of pieces": texts.linear_each,
        },
        settings=QUIET,
    ),
    "fashion": Application(
        what="image classification",
        config="configs/fashion.py",
        data="Fashion-MNIST",
        metric="accuracy",
        best="max",
        trivial={"the most frequent class": classes.majority},
        simple={"the nearest image": images.nearest, "linear on pixels": images.linear_on_pixels},
        settings=QUIET,
    ),
    "segmentation": Application(
        what="segmentation",
        config="configs/segmentation.py",
        data="climate zones of a satellite picture",
        metric="mean_iou",
        best="max",
        trivial={"ocean everywhere": maps.ocean},
        simple={"a table of colours": maps.colours},
    ),
    "detection": Application(
        what="object detection",
        config="configs/detection.py",
        data="scenes of clothes",
        metric="average_precision",
        best="max",
        trivial={"a box of the mean size at every patch": objects.mean_box},
        simple={"gradients in sliding windows, linear": objects.sliding_windows},
        settings=("--config.steps=1000",),
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
