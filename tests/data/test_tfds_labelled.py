"""TFDS sets with class labels, of texts and of images, read without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from moe_jax.config.errors import UserError
from moe_jax.data.box_folder import TfdsBoxes
from moe_jax.data.image_folder import TfdsImages
from moe_jax.data.labelled_folder import LabelledTfds
from moe_jax.data.map_folder import TfdsMaps

NAMES = ["cat", "dog", "owl"]


class PetsBuilder(tfds.core.GeneratorBasedBuilder):
    """A small set of both."""

    name = "pets"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list] = [tfds.core.BuilderConfig(name="small")]

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(9, 9, 3)),
            "segmentation_mask": tfds.features.Image(shape=(9, 9, 1)),
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=NAMES),
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=NAMES),
                    "is_crowd": np.bool_,
                }
            ),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(30), "test": self._generate_examples(12)}

    def _generate_examples(self, count):
        for n in range(count):
            mask = np.full((9, 9), 1 + n % 3, np.uint8)
            mask[0] = 9
            image = png_of(np.full((9, 9, 3), 8 * n, np.uint8))
            text = "" if n == 5 else f"about {NAMES[n % 3]} {n}"
            features = {"image": image, "segmentation_mask": png_of(mask)}
            box = tfds.features.BBox(ymin=0.25, xmin=0.5, ymax=0.75, xmax=1.0)
            objects = [
                {"bbox": box, "label": n % 3, "is_crowd": crowd} for crowd in (True, False)
            ] * (n % 3)
            yield n, {**features, "text": text, "label": n % 3, "objects": objects}


def png_of(pixels):
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    png.seek(0)
    return png


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        PetsBuilder(
            config="small", data_dir=str(folder), file_format="array_record"
        ).download_and_prepare()
    return folder


def test_texts_and_their_classes(prepared, tmp_path):
    data = LabelledTfds(
        name="pets/small", tfds_dir=str(prepared), data_dir=str(tmp_path), sequence_length=16
    )
    train, held = data.open("train"), data.open("validation")
    assert (len(train), len(held)) == (29, 11)  # without the empty text
    assert train.classes == tuple(NAMES)
    for i in range(len(train)):
        row = train[i]
        text = train.tokenizer.decode(row["tokens"][row["segments"] > 0])
        assert text.split()[1] == train.classes[row["label"]]
    assert "2 passed over" in train.read


def test_images_and_their_classes(prepared):
    data = TfdsImages(
        name="pets/small", tfds_dir=str(prepared), height=6, width=6, mean=0.0, deviation=1.0
    )
    train, held = data.open("train"), data.open("validation")
    assert (len(train), len(held)) == (30, 12)
    seen = set()
    for i in range(30):  # in the order of TFDS
        row = train[i]
        n = round(float(row["image"][0, 0, 0]) * 255 / 8)
        np.testing.assert_allclose(row["image"], np.full((6, 6, 3), 8 * n / 255), atol=1e-6)
        assert int(row["label"]) == n % 3
        seen.add(n)
    assert seen == set(range(30))
    assert train.classes == tuple(NAMES)
    assert "tensorflow" not in sys.modules


def test_images_and_the_classes_of_their_pixels(prepared):
    data = TfdsMaps(
        name="pets/small", tfds_dir=str(prepared), height=9, width=9, mean=0.0, deviation=1.0,
        names=("pet", "background", "border"), first=1,
    )  # fmt: skip
    rows = data.open("train")
    assert len(rows) == 30 and rows.classes == data.names
    for i in range(30):
        row = rows[i]
        n = round(float(row["image"][4, 4, 0]) * 255 / 8)
        assert (row["label_map"][0] == -1).all() and (row["label_map"][1:] == n % 3).all()
    with pytest.raises(UserError, match=r"no image named 'mask' \(data.map_feature\)"):
        TfdsMaps(name="pets/small", tfds_dir=str(prepared), map_feature="mask").open("train")
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "kind"}, r"no label named 'kind' \(data.label\); its labels: label"),
        ({"feature": "photo"}, r"no image named 'photo' \(data.feature\); its images: image"),
        ({"train": "dev"}, "no split 'dev'; it has train, test"),
        ({"name": "birds"}, "is not prepared in"),
    ],
)
def test_what_the_set_has_not_is_told(settings, message, prepared):
    data = TfdsImages(**{"name": "pets/small", "tfds_dir": str(prepared), **settings})
    with pytest.raises(UserError, match=message):
        data.open("train")


def test_boxes_of_a_set(prepared):
    data = TfdsBoxes(name="pets", tfds_dir=prepared, height=9, width=9, flip=0.0, max_objects=2)
    rows = data.open("validation")
    assert rows.classes == tuple(NAMES) and len(rows) == 12
    found = [rows[i] for i in range(12)]
    assert sorted(int(row["objects"]) for row in found) == [0] * 4 + [1] * 4 + [2] * 4
    for row in found:
        n = int(row["objects"])
        assert np.allclose(row["boxes"][:n], [0.75, 0.5, 0.5, 0.5], atol=1e-6)
        assert (row["classes"][:n] == n).all() and (row["classes"][n:] == -1).all()
    with pytest.raises(UserError, match=r"no objects named 'things' \(data\.objects\)"):
        TfdsBoxes(name="pets", tfds_dir=prepared, objects="things").open("train")
