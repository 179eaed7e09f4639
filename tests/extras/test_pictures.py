"""Pictures of the committed benchmark results, by the real matplotlib."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from experiments.benchmarks import plot

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


@pytest.mark.parametrize("name", ["moe_layer", "train_step"])
def test_every_arm_is_drawn(name, tmp_path):
    results = FIGURES / f"{name}.json"
    plot.main(str(results), str(tmp_path / "picture.png"))
    pixels = matplotlib.image.imread(tmp_path / "picture.png")[..., :3].reshape(-1, 3)
    found = {tuple(colour) for colour in np.round(np.unique(pixels, axis=0) * 255).astype(int)}
    arms = {
        arm.partition("/")[0]
        for result in json.loads(results.read_text())["results"]
        for arm in result["arms"]
    }
    drawn = arms & plot.COLOURS.keys()
    assert len(drawn) > 1
    for arm in drawn:
        colour = np.round(np.array(matplotlib.colors.to_rgb(plot.COLOURS[arm])) * 255)
        assert tuple(colour.astype(int)) in found, arm
