"""What simpler models reach on the census: the area under the ROC curve of both targets.

    python -m experiments.tasks.census_baselines [--trees]

Logistic regression on one-hot categories and scaled numbers; --trees: boosted trees too (minutes).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

SPLITS = ("train", "validation", "test")


def one_hot(arrays: dict[str, np.ndarray]) -> Any:
    from scipy import sparse

    from moe_jax.data.census_income import IDS

    rows, columns = arrays["categories"].shape
    at = np.repeat(np.arange(rows), columns), arrays["categories"].ravel()
    ones = sparse.csr_matrix((np.ones(rows * columns), at), (rows, IDS))
    return sparse.hstack([ones, sparse.csr_matrix(arrays["numbers"])]).tocsr()


def plain(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([arrays["categories"], arrays["numbers"]], axis=1)


def areas(splits: dict[str, Any], target: str, model: Any, features: Any) -> str:
    from moe_jax.tasks.multi_task import area_under_curve

    model.fit(features(splits["train"]), splits["train"][target])
    found = {
        name: area_under_curve(
            model.predict_proba(features(splits[name]))[:, 1], splits[name][target] > 0.5
        )
        for name in SPLITS[1:]
    }
    return ", ".join(f"{name} {area:.4f}" for name, area in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", action="store_true")
    trees = parser.parse_args().trees
    # Imported here: --help needs none of them.
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    from moe_jax.data.census_income import TARGETS, CensusIncome

    data = CensusIncome()
    splits = {name: data.open(name).arrays for name in SPLITS}
    for target in TARGETS:
        linear = LogisticRegression(max_iter=300, C=0.1)
        print(f"{target}, logistic: {areas(splits, target, linear, one_hot)}", flush=True)
        if trees:
            boosted = HistGradientBoostingClassifier(max_iter=200)
            print(f"{target}, trees: {areas(splits, target, boosted, plain)}", flush=True)


if __name__ == "__main__":
    main()
