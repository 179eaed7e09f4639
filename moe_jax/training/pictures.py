"""A row's image for people, beside what the model says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moe_jax.analysis.report.pictures import Framed, Picture
from moe_jax.data.pipeline import filled_up
from moe_jax.data.types import NO_LABEL, DataInfo
from moe_jax.tasks.detection import detections
from moe_jax.training.build import Program

Row = Mapping[str, np.ndarray]
Predict = Callable[[Row], Any]  # of a batch, predictions of its rows (nn/predictions.py)
SHOWN_SCORE = 1 / 3  # from which on a detection is shown


def of_row(program: Program, info: DataInfo, row: Row, predict: Predict) -> Picture:
    """The image of a row with its class, or the true and the predicted class of each pixel, or the
    true and the predicted objects."""
    config = program.experiment
    rows, columns = config.model.grid(config.io)
    label = int(row.get("label", NO_LABEL))
    return Picture(
        pixels=row["image"],
        grid=(rows, columns),
        ahead=config.row_length - rows * columns,
        name=info.classes[label] if 0 <= label < len(info.classes) else "",
        maps=_maps(program, row, predict) if "label_map" in row else {},
        boxes=_boxes(program, info, row, predict) if "boxes" in row else {},
    )


def _maps(program: Program, row: Row, predict: Predict) -> dict[str, np.ndarray]:
    best_HW = predict(_first(program, row)).logits_BHWC[0].argmax(axis=-1)
    return {"truth": row["label_map"], "prediction": best_HW}


def _boxes(program: Program, info: DataInfo, row: Row, predict: Predict) -> dict[str, list[Framed]]:
    """The surest prediction lies on top."""
    found = detections(predict(_first(program, row)))
    box_K4, class_K, score_K = (np.asarray(x)[0, ::-1] for x in found)
    sure, there = score_K >= SHOWN_SCORE, row["classes"] != NO_LABEL
    return {
        "truth": framed(row["boxes"][there], row["classes"][there], info.classes),
        "prediction": framed(box_K4[sure], class_K[sure], info.classes, score_K[sure]),
    }


def framed(
    box_N4: np.ndarray,
    class_N: np.ndarray,
    names: Sequence[str],
    score_N: np.ndarray | None = None,
) -> list[Framed]:
    """Objects by their boxes (x, y, w, h)."""
    corner_N4 = np.concatenate(
        [box_N4[:, :2] - box_N4[:, 2:] / 2, box_N4[:, :2] + box_N4[:, 2:] / 2], axis=1
    )
    return [
        Framed(
            corner=(float(left), float(top), float(right), float(bottom)),
            number=int(class_N[n]),
            name=names[class_N[n]],
            score=None if score_N is None else float(score_N[n]),
        )
        for n, (left, top, right, bottom) in enumerate(corner_N4)
    ]


def _first(program: Program, row: Row) -> dict[str, np.ndarray]:
    """A batch whose first row it is."""
    return filled_up([row], program.eval_batch_size, program.columns)
