"""Vowels by competing experts, as in the paper that began it (Jacobs, Jordan, Nowlan, Hinton 1991).

    python -m experiments.vowels.run --out=DIR [--seeds=25]

Writes DIR/results.json and DIR/figure.svg. Needs the extra `vowels`. See README.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--data_dir", default=None)
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be at least 2: the verdict needs differences")
    # Imported here: --help and a misspelt flag need no JAX.
    from experiments.vowels.figure import figure
    from experiments.vowels.judged import run
    from moe_jax.data.vowels import Vowels

    data = Vowels(data_dir=arguments.data_dir)
    train, held = data.open("train"), data.open("validation")
    results = run(train, held, arguments.seeds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "figure.svg").write_text(figure(results, train, held))
    for name, one in results["networks"].items():
        training, test = (100 * np.mean(one[f"right_{part}"]) for part in ("training", "test"))
        epochs, spread = np.mean(one["epochs"]), np.std(one["epochs"])
        print(f"{name:38} {training:5.1f} % {test:5.1f} % {epochs:6.0f} +- {spread:.0f} epochs")
    for claim in results["verdict"]:
        print(f"{claim['claim']:85} {'yes' if claim['holds'] else 'no'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
