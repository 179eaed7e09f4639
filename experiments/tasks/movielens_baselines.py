"""What the simplest recommenders reach on MovieLens-100k.

    python -m experiments.tasks.movielens_baselines

Popularity: films ranked by how often they are in the training histories, for each person without
what he has seen; the last film of each is held out. Biases: rating = mean + b_user + b_film, ridge,
by alternating sums, on ratings drawn by a hash (10 % held out).
"""

from __future__ import annotations

import numpy as np

from moe_jax.data.histories import HELD
from moe_jax.data.movielens import ITEMS, MovieLens100k
from moe_jax.data.store import in_share
from moe_jax.tasks.next_item import ranking

RIDGE = 5.0
ROUNDS = 30


def popularity(data: MovieLens100k, split: str = "test") -> dict[str, float]:
    """Equal counts: as the model's ranks, the target is the last of them."""
    films = data.films()
    kept = np.concatenate([history[:-HELD] for history in films])
    counts = np.bincount(kept, minlength=ITEMS + 1)
    ranks = []
    for history in films:
        at = -1 if split == "test" else -2
        rival = np.ones(ITEMS + 1, bool)
        rival[[0, *history[:at]]] = False
        rival[target := history[at]] = False
        ranks.append(1 + np.sum(rival & (counts >= counts[target])))
    return ranking(np.array(ranks, np.float64))


def biases(data: MovieLens100k) -> dict[str, float]:
    """Root of the mean squared error of the mean, and of the mean with both biases."""
    ratings = data.ratings()
    held = np.array([in_share(f"{user} {item}", 0.1) for user, item in ratings[:, :2]])
    user, item, rating = (ratings[:, n].astype(int) for n in range(3))
    mean, own = rating[~held].mean(), rating - rating[~held].mean()
    b_user, b_item = np.zeros(user.max() + 1), np.zeros(item.max() + 1)
    for _ in range(ROUNDS):
        for number, mine, other in ((user, b_user, b_item[item]), (item, b_item, b_user[user])):
            rest = own - other
            total = np.bincount(number[~held], rest[~held], len(mine))
            mine[:] = total / (np.bincount(number[~held], minlength=len(mine)) + RIDGE)
    found = np.clip(mean + b_user[user] + b_item[item], 1, 5)[held]
    return {
        "mean": float(np.sqrt(np.mean(own[held] ** 2))),
        "biases": float(np.sqrt(np.mean((rating[held] - found) ** 2))),
    }


def main() -> None:
    data = MovieLens100k()
    for split in ("validation", "test"):
        shown = ", ".join(f"{name} {x:.4f}" for name, x in popularity(data, split).items())
        print(f"popularity, {split}: {shown}")
    print("rmse: " + ", ".join(f"{name} {x:.4f}" for name, x in biases(data).items()))


if __name__ == "__main__":
    main()
