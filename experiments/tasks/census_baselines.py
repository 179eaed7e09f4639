"""What simpler models reach on the census: the area under the ROC curve of each target.

    python -m experiments.tasks.census_baselines [--trees]

Logistic regression on one-hot categories and scaled numbers; --trees: boosted trees too (minutes).
"""

from __future__ import annotations

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", action="store_true")
    trees = parser.parse_args().trees
    # Imported here: --help needs none of them.
    from experiments.tasks.baselines.tables import LEARNERS, areas
    from moe_jax.data.census_income import CensusIncome

    data = CensusIncome()
    train, *held = (data.open(split) for split in data.splits)
    for name in ["logistic", *(["trees"] if trees else [])]:
        for split, rows in zip(data.splits[1:], held, strict=True):
            found = areas(train, rows, *LEARNERS[name]())
            shown = ", ".join(f"{target} {area:.4f}" for target, area in found.items())
            print(f"{name}, {split}: {shown}", flush=True)


if __name__ == "__main__":
    main()
