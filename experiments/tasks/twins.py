"""Sparse models of the two small tasks beside their iso-FLOP dense twins, over paired seeds, with
baselines that a reader would ask for.

    python -m experiments.tasks.twins --out=runs/twins [--seeds=3] [--only=sentiment]

Each run is one process after the other; a run that is complete is not run again. The table is
printed as Markdown and written to OUT/twins.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ARMS = {"sparse": "", "dense": ":dense"}
SHOWN = ("accuracy", "macro_f1", "cross_entropy", "calibration_error")


def trained(config: str, workdir: Path, seed: int) -> dict[str, float]:
    """The last evaluation of a run, which is trained where it is not there."""
    from moe_jax.analysis.read_run import read_metrics
    from moe_jax.sweeps.table import final_metrics

    command = [sys.executable, "-m", "moe_jax.train", f"--config={config}"]
    subprocess.run([*command, f"--workdir={workdir}", f"--config.seed={seed}"], check=True)
    steps = json.loads((workdir / "config.json").read_text("utf-8"))["steps"]
    return final_metrics(read_metrics(workdir), steps)


# Baselines: accuracy on the validation split


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


def bag_of_words(train: Any, held: Any, out: Path) -> float:
    """Logistic regression on counts of the same pieces of words."""
    from scipy.sparse import lil_matrix
    from sklearn.linear_model import LogisticRegression

    def columns(rows: Any) -> tuple[Any, list[int]]:
        counts = lil_matrix((len(rows), rows.tokenizer.vocab_size), dtype=np.float32)
        labels = []
        for i in range(len(rows)):
            row = rows[i]
            for token in row["tokens"][row["segments"] > 0]:
                counts[i, token] += 1
            labels.append(int(row["label"]))
        return counts.tocsr(), labels

    model = LogisticRegression(max_iter=1000, C=0.1).fit(*columns(train))
    return float(model.score(*columns(held)))


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


Baseline = Callable[[Any, Any, Path], float]
BASELINES: dict[str, dict[str, Baseline]] = {
    "sentiment": {
        "majority": majority,
        "VADER's lexicon": lexicon,
        "bag of pieces": bag_of_words,
    },
    "vision": {"majority": majority, "nearest neighbour": nearest},
}


def compared(task: str, seeds: int, out: Path) -> dict[str, Any]:
    from moe_jax.config.overrides import load_config
    from moe_jax.data.types import SPLITS
    from moe_jax.training.experiment import Experiment

    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(seeds):
        for arm, argument in ARMS.items():
            config = f"configs/{task}.py{argument}"
            found[arm].append(trained(config, out / f"{task}-{arm}-{seed}", seed))
    data = load_config(f"configs/{task}.py", (), Experiment).data
    train, held = (data.open(split) for split in SPLITS)
    return {
        "runs": {arm: [{n: m[n] for n in SHOWN} for m in runs] for arm, runs in found.items()},
        "baselines": {name: rule(train, held, out) for name, rule in BASELINES[task].items()},
    }


def table(task: str, found: dict[str, Any]) -> str:
    """Markdown."""
    from moe_jax.sweeps.statistics import paired, student

    seeds = len(found["runs"]["sparse"])
    lines = [f"| {task} | sparse | dense | sparse - dense, paired |", "| --- | --- | --- | --- |"]
    for name in SHOWN:
        sparse, dense = ([m[name] for m in found["runs"][arm]] for arm in ARMS)
        difference = student(paired(dict(enumerate(sparse)), dict(enumerate(dense))))
        means = [student(values).mean for values in (sparse, dense)]
        message = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
        lines.append(f"| {name} | {means[0]:.4f} | {means[1]:.4f} | {message} |")
    others = ", ".join(f"{name} {value:.4f}" for name, value in found["baselines"].items())
    return "\n".join([*lines, "", f"Means of {seeds} seeds. Accuracy of baselines: {others}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/twins")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=sorted(BASELINES))
    arguments = parser.parse_args()
    out = Path(arguments.out)
    results = {}
    for task in [arguments.only] if arguments.only else sorted(BASELINES):
        results[task] = compared(task, arguments.seeds, out)
        print(table(task, results[task]), flush=True)
    (out / "twins.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
