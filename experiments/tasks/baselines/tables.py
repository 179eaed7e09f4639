"""What a rule and what simple learners reach on tables, histories and choices: functions of the
training rows, the validation rows and a folder (`Baseline` in applications.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

FEATURES = ("categories", "numbers")
RIDGE, ROUNDS = 5.0, 30


def one_hot(rows: Any) -> Any:
    """(rows, ids and numbers), sparse."""
    from scipy import sparse

    ids = rows.arrays["categories"]
    at = np.repeat(np.arange(len(ids)), ids.shape[1]), ids.ravel()
    ones = sparse.csr_matrix((np.ones(ids.size), at), (len(ids), rows.ids))
    return sparse.hstack([ones, sparse.csr_matrix(rows.arrays["numbers"])]).tocsr()


def plain(rows: Any) -> np.ndarray:
    return np.concatenate([rows.arrays[name] for name in FEATURES], axis=1)


def binary(rows: Any) -> list[str]:
    """The targets that are 0 or 1 wherever they are known."""
    targets = {name: x for name, x in rows.arrays.items() if name not in FEATURES}
    return [n for n, x in targets.items() if set(np.unique(x[~np.isnan(x)])) <= {0.0, 1.0}]


def areas(train: Any, held: Any, features: Any, model: Any) -> dict[str, float]:
    """Of each binary target, with a model of its own."""
    from moe_jax.tasks.multi_task import area_under_curve

    learnt, asked, found = features(train), features(held), {}
    for name in binary(train):
        known, there = (~np.isnan(rows.arrays[name]) for rows in (train, held))
        fitted = model().fit(learnt[known], train.arrays[name][known])
        score = fitted.predict_proba(asked[there])[:, 1]
        found[name] = area_under_curve(score, held.arrays[name][there] > 0.5)
    return found


def _logistic() -> tuple[Any, Any]:
    from sklearn.linear_model import LogisticRegression

    return one_hot, lambda: LogisticRegression(max_iter=300, C=0.1)


def _trees() -> tuple[Any, Any]:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return plain, lambda: HistGradientBoostingClassifier(max_iter=200)


# What a learner sees of rows, and a new one.
LEARNERS = {"logistic": _logistic, "trees": _trees}


def constant(train: Any, held: Any, out: Path) -> float:
    """The area of one score for all."""
    return 0.5


def logistic(train: Any, held: Any, out: Path) -> float:
    """Logistic regression on one-hot categories and scaled numbers; mean over targets."""
    return float(np.mean(list(areas(train, held, *_logistic()).values())))


def trees(train: Any, held: Any, out: Path) -> float:
    """Gradient boosting, 200 rounds; mean over targets."""
    return float(np.mean(list(areas(train, held, *_trees()).values())))


def _root(rating: np.ndarray, guess: np.ndarray) -> float:
    return float(np.sqrt(np.mean((rating - guess) ** 2)))


def mean_rating(train: Any, held: Any, out: Path) -> float:
    rating = held.arrays["rating"].astype(np.float64)
    return _root(rating, np.full_like(rating, train.arrays["rating"].mean(dtype=np.float64)))


def biases(train: Any, held: Any, out: Path) -> float:
    """rating = mean + b_user + b_film, ridge, by alternating sums."""
    ids, rating = train.arrays["categories"][:, :2], train.arrays["rating"].astype(np.float64)
    mean, bias = rating.mean(), np.zeros(train.ids)
    for _ in range(ROUNDS):
        for k in range(2):
            rest = rating - mean - bias[ids[:, 1 - k]]
            count = np.bincount(ids[:, k], minlength=train.ids)
            total = np.bincount(ids[:, k], rest, train.ids)
            bias = np.where(count > 0, total / (count + RIDGE), bias)
    guess = mean + bias[held.arrays["categories"][:, :2]].sum(axis=1)
    return _root(held.arrays["rating"].astype(np.float64), np.clip(guess, 1, 5))


def _choices(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """What was available (rows, alternatives), and the number of what was chosen."""
    chosen = np.stack([x for name, x in rows.arrays.items() if name not in FEATURES], axis=1)
    return ~np.isnan(chosen), np.nanargmax(chosen, axis=1)


def _nats(p: np.ndarray, rows: Any) -> float:
    """Of a choice, of probabilities that are shared out anew among what is available."""
    available, chosen = _choices(rows)
    p = np.where(available, p, 0)
    p = p / p.sum(axis=1, keepdims=True)
    return float(-np.log(p[np.arange(len(p)), chosen]).mean())


def shares(train: Any, held: Any, out: Path) -> float:
    """How often each is chosen where it is available."""
    available, chosen = _choices(train)
    count = np.bincount(chosen, minlength=available.shape[1]) / available.sum(axis=0)
    return _nats(np.broadcast_to(count, (len(held), len(count))), held)


def logit(train: Any, held: Any, out: Path) -> float:
    """A multinomial logit: utilities linear in one-hot categories and scaled numbers."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=2000, C=0.01).fit(one_hot(train), _choices(train)[1])
    return _nats(model.predict_proba(one_hot(held)), held)


def choice_trees(train: Any, held: Any, out: Path) -> float:
    """Gradient boosting of classes, 50 rounds."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(max_iter=50, learning_rate=0.05)
    return _nats(model.fit(plain(train), _choices(train)[1]).predict_proba(plain(held)), held)


def _held_out(held: Any) -> tuple[np.ndarray, np.ndarray]:
    """What somebody had before (people, items + 1), and the item that came next."""
    rows = [held[n] for n in range(len(held))]
    target = [int(row["tokens"][int(row["held"]) + 1]) for row in rows]
    return np.stack([row["seen"] for row in rows]).astype(np.float64), np.array(target)


def figures(scores: Any, train: Any, held: Any) -> dict[str, float]:
    """Of the ranks that scores (people, items + 1) give; of equal ones the target is last, as in
    the task. scores: of training rows and of what somebody had before."""
    from moe_jax.tasks.next_item import ranking

    seen, target = _held_out(held)
    score = scores(train, seen)
    own = np.take_along_axis(score, target[:, None], axis=1)
    rival = (seen == 0) & (score >= own)
    rival[:, 0] = False
    np.put_along_axis(rival, target[:, None], False, axis=1)
    return ranking(1.0 + rival.sum(axis=1))


def popular_scores(train: Any, seen: np.ndarray) -> np.ndarray:
    """How often an item is in the training histories."""
    count = np.zeros(seen.shape[1])
    for n in range(len(train)):
        row = train[n]
        had = row["tokens"][row["segments"] > 0]
        np.add.at(count, had[1:] if n and _goes_on(train[n - 1], had) else had, 1)
    return np.broadcast_to(count, seen.shape)


def _goes_on(before: Any, had: np.ndarray) -> bool:
    """Whether a row begins with the last item of the full row before it: the same history."""
    full = before["segments"].all()
    return bool(full and before["tokens"][-1] == had[0])


def neighbours_scores(train: Any, seen: np.ndarray) -> np.ndarray:
    """Cosines of an item's people with those of each item that somebody has had."""
    length = np.maximum(np.sqrt(seen.sum(axis=0)), 1)
    alike = (seen.T @ seen) / length[:, None] / length[None]
    scores: np.ndarray = seen @ alike
    return scores


def popular(train: Any, held: Any, out: Path) -> float:
    """What most have had."""
    return figures(popular_scores, train, held)["ndcg_at_10"]


def neighbours(train: Any, held: Any, out: Path) -> float:
    """Items that like people had."""
    return figures(neighbours_scores, train, held)["ndcg_at_10"]
