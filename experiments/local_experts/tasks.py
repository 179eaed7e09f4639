"""Two small tasks whose cases come from known regimes: which one, the mixture is not told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """Cases for training and testing, in float32.

    x: inputs (T, D). d: targets (T, O), one-hot rows for classes. regime: (T,), 0..R-1.
    std: the width of the experts' Gaussians in eq. 1.3, stds: the widths of the sweep. classes:
    whether the experts' outputs are probabilities (a softmax).
    """

    name: str
    x: dict[str, np.ndarray]
    d: dict[str, np.ndarray]
    regime: dict[str, np.ndarray]
    std: float
    stds: tuple[float, ...]
    classes: bool

    @property
    def regimes(self) -> int:
        return int(self.regime["train"].max()) + 1


# Slope and value at the middle of each of four equal intervals of [-1, 1].
LINES = ((3.0, -0.5), (-3.0, 1.0), (2.0, -1.0), (-2.0, 0.75))
NOISE = 0.1


def piecewise(seed: int) -> LocalTask:
    """One input, four intervals, a line in each, Gaussian noise; the lines do not meet."""
    rng = np.random.default_rng([seed, 1])
    x, d, regime = {}, {}, {}
    for split, cases in (("train", 400), ("test", 2000)):
        at = rng.uniform(-1, 1, cases)
        part = np.minimum((at + 1) * len(LINES) / 2, len(LINES) - 1).astype(int)
        slope, level = np.array(LINES)[part].T
        middle = (2 * part + 1) / len(LINES) - 1
        value = level + slope * (at - middle) + NOISE * rng.normal(size=cases)
        x[split] = at[:, None].astype(np.float32)
        d[split] = value[:, None].astype(np.float32)
        regime[split] = part
    stds = (0.1, 0.2, 0.4, 0.7, 1.0)
    return LocalTask(name="piecewise", x=x, d=d, regime=regime, std=0.4, stds=stds, classes=False)


# Average F1 and F2 in Hz of men, women and children (Peterson and Barney 1952, table II) for
# heed, hid, hod, hud: [i], [I], [a], [A]. The first two are one regime, the others the other one.
FORMANTS = np.array(
    [
        [(270, 2290), (310, 2790), (370, 3200)],
        [(390, 1990), (430, 2480), (530, 2730)],
        [(730, 1090), (850, 1220), (1030, 1370)],
        [(640, 1190), (760, 1400), (850, 1590)],
    ],
    float,
)
WITHIN = 0.08  # spread of each log formant around its group's average


def vowels(seed: int) -> LocalTask:
    """Two formants, four vowels; synthetic speakers around the published averages of their group.

    50 speakers to train with, 25 to test with, each vowel twice.
    """
    rng = np.random.default_rng([seed, 2])
    x, d, regime = {}, {}, {}
    for split, speakers in (("train", 50), ("test", 25)):
        group = np.arange(speakers) % FORMANTS.shape[1]
        log_hz = np.log(FORMANTS[:, group])[:, :, None]  # vowel, speaker, repetition, formant
        log_hz = log_hz + WITHIN * rng.normal(size=(len(FORMANTS), speakers, 2, 2))
        vowel = np.repeat(np.arange(len(FORMANTS)), 2 * speakers)
        # kHz, about centred: a gate and experts of ordinary size can use them.
        x[split] = (np.exp(log_hz).reshape(-1, 2) / [200, 500] - [3, 4]).astype(np.float32)
        d[split] = np.eye(len(FORMANTS), dtype=np.float32)[vowel]
        regime[split] = vowel // 2
    stds = (0.15, 0.3, 0.5, 0.7, 1.0)
    return LocalTask(name="vowels", x=x, d=d, regime=regime, std=1.0, stds=stds, classes=True)


TASKS = {"piecewise": piecewise, "vowels": vowels}
