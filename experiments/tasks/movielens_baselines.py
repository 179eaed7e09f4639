"""What the simplest recommenders reach on MovieLens-100k.

    python -m experiments.tasks.movielens_baselines

Popularity: films ranked by how often they are in the training histories, for each person without
what he has seen; the last film of each is held out. Neighbours: films that like people had.
"""

from __future__ import annotations

import argparse


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    # Imported here: --help needs none of them.
    from experiments.tasks.baselines import tables
    from moe_jax.data.movielens import MovieLens100k

    data = MovieLens100k()
    train = data.open("train")
    rules = {"popularity": tables.popular_scores, "neighbours": tables.neighbours_scores}
    for split in ("validation", "test"):
        for name, scores in rules.items():
            found = tables.figures(scores, train, data.open(split))
            shown = ", ".join(f"{metric} {x:.4f}" for metric, x in found.items())
            print(f"{name}, {split}: {shown}", flush=True)


if __name__ == "__main__":
    main()
