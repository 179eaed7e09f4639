"""What every dataset of the table promises."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.config.fields import kind
from moe_jax.config.overrides import apply_overrides
from moe_jax.config.tree import (
    from_config_dict,
    from_json_dict,
    leaves,
    to_config_dict,
    to_json_dict,
)
from moe_jax.data.box_folder import CocoFolder, VocFolder
from moe_jax.data.box_mixture import BoxMixture
from moe_jax.data.datasets import DATASETS, Dataset, StdlibText
from moe_jax.data.digits import Digits
from moe_jax.data.fetch.dataset import Fetched
from moe_jax.data.folder import Folder
from moe_jax.data.histories import HistoryFile
from moe_jax.data.image_folder import ImageFolder
from moe_jax.data.labelled_folder import LabelledFolder
from moe_jax.data.line_pairs import LinePairs
from moe_jax.data.map_folder import MapFolder
from moe_jax.data.memmap import Memmap
from moe_jax.data.mixture import PARTS, Mixture
from moe_jax.data.planted import Planted
from moe_jax.data.scenes import DigitScenes
from moe_jax.data.table_file import TableFile
from moe_jax.data.tfds_text import Tfds
from moe_jax.data.tokenizer import Bpe, Ids
from moe_jax.data.types import columns_of

S = 24


@dataclass(frozen=True, kw_only=True)
class Top:
    data: Dataset = kind(DATASETS, StdlibText)


PACKED = [name for name in DATASETS if name in (*PARTS, "mixture")]  # rows for the next token


def made(kind, data_dir, texts, tmp_path):
    """A dataset of the kind that can be opened."""
    np.save(tmp_path / "tokens.npy", np.arange(2000) % 100)
    file = str(tmp_path / "tokens.npy")
    name = StdlibText(data_dir=str(data_dir)).identity()["tfds"].rpartition("/")[0]
    bpe = Bpe(vocab_size=280)
    datasets = {
        "stdlib_text": StdlibText(data_dir=str(data_dir)),
        "tfds": Tfds(name=name, data_dir=str(data_dir), train="train[:9]"),
        "folder": Folder(path=str(texts), tokenizer=bpe, data_dir=str(tmp_path)),
        "memmap": Memmap(train=file, validation=file, tokenizer=Ids(vocab_size=100, eos_id=9)),
        "planted": Planted(rows=30, validation_rows=20),
        "mixture": Mixture(
            parts=(f"folder(path={texts}): 1", "stdlib_text: 0.5"), data_dir=str(data_dir)
        ),
    }
    if kind in datasets:
        return replace(datasets[kind], sequence_length=S)
    if kind == "map_folder":
        for n in range(20):
            for name in ("JPEGImages", "SegmentationClass"):
                (tmp_path / name).mkdir(exist_ok=True)
                image = np.full((8, 8), n % 3, np.uint8)
                Image.fromarray(image).save(tmp_path / name / f"{n}.png")
        return MapFolder(path=str(tmp_path), height=8, width=8, validation_fraction=0.4)
    if kind == "coco_folder":
        one = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 4, 3]}
        content = {
            "images": [{"id": 1, "file_name": "one.png", "width": 8, "height": 8}],
            "annotations": [one],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / "annotations").mkdir()
        for split in ("train2017", "val2017"):
            (tmp_path / split).mkdir()
            Image.new("RGB", (8, 8)).save(tmp_path / split / "one.png")
            text = json.dumps(content)
            (tmp_path / f"annotations/instances_{split}.json").write_text(text)
        return CocoFolder(path=str(tmp_path), height=8, width=8, max_objects=2)
    if kind == "voc_folder":
        for name in ("JPEGImages", "Annotations"):
            (tmp_path / name).mkdir()
        box = "<xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax>"
        text = f"<object><name>cat</name><bndbox>{box}</bndbox></object>"
        for n in range(20):
            Image.new("RGB", (8, 8)).save(tmp_path / f"JPEGImages/{n}.png")
            (tmp_path / f"Annotations/{n}.xml").write_text(f"<annotation>{text}</annotation>")
        return VocFolder(
            path=str(tmp_path), height=8, width=8, max_objects=2, validation_fraction=0.4
        )
    if kind == "line_pairs":
        for language in ("de", "en"):
            lines = "".join(f"{language} {n}\n" for n in range(60))
            (tmp_path / f"lines.{language}").write_text(lines)
        source, target = (str(tmp_path / f"lines.{language}") for language in ("de", "en"))
        return LinePairs(
            source=source, target=target, data_dir=str(tmp_path), validation_fraction=0.4
        )
    (tmp_path / "labelled").mkdir()
    lines = [f'{{"text": "number {n}", "label": {n % 3}}}' for n in range(90)]
    (tmp_path / "labelled/a.jsonl").write_text("\n".join(lines))
    for n in range(30):
        (tmp_path / f"images/{n % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), n, np.uint8)).save(tmp_path / f"images/{n % 2}/{n}.png")
    table = "".join(f"{n % 3},{n},{n % 2}\n" for n in range(60))
    (tmp_path / "table.csv").write_text(f"a,b,c\n{table}")
    seen = "".join(f"{n % 9},{n % 7},{n}\n" for n in range(60))
    (tmp_path / "seen.csv").write_text(f"user,item,time\n{seen}")
    others = {
        "histories": HistoryFile(path=str(tmp_path / "seen.csv"), items=8, sequence_length=4),
        "table": TableFile(
            path=str(tmp_path / "table.csv"),
            categories=("a",),
            numbers=("b",),
            targets=("c",),
            validation_fraction=0.4,
        ),
        "labelled": LabelledFolder(path=str(tmp_path / "labelled"), data_dir=str(tmp_path)),
        "digits": Digits(),
        "digit_scenes": DigitScenes(rows=8, validation_rows=4),
        "box_mixture": BoxMixture(
            parts=("digit_scenes(rows=8, validation_rows=4): 1",), height=48, width=48
        ),
        "images": ImageFolder(path=str(tmp_path / "images"), validation_fraction=0.4),
    }
    return others[kind]


@pytest.fixture(params=PACKED)
def dataset(request, data_dir, texts, tmp_path):
    return made(request.param, data_dir, texts, tmp_path)


# What needs a prepared set: tests/data/test_tfds_labelled.py. What is fetched: test_fetch.py and a
# file each.
FETCHED = [name for name, cls in DATASETS.items() if issubclass(cls, Fetched)]
PREPARED = ("labelled_tfds", "tfds_images", "tfds_maps", "tfds_pairs", "tfds_boxes")
ELSEWHERE = (*PREPARED, *FETCHED)


@pytest.fixture(params=[name for name in DATASETS if name not in ELSEWHERE])
def any_dataset(request, data_dir, texts, tmp_path):
    return made(request.param, data_dir, texts, tmp_path)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_are_what_the_columns_say(any_dataset, split):
    columns, rows = columns_of(any_dataset), any_dataset.open(split)
    for index in (0, len(rows) - 1):
        row = rows[index]
        assert columns.keys() <= row.keys()
        for name, spec in columns.items():
            assert (row[name].shape, str(row[name].dtype)) == (spec.shape, spec.dtype), name
        if "label" in columns:
            assert 0 <= int(row["label"]) < len(rows.classes)
            assert columns["label"].padding == -1


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows(dataset, split):
    rows = dataset.open(split)
    assert len(rows) > 0
    for index in {0, len(rows) // 2, len(rows) - 1}:
        row = rows[index]
        for name in ("tokens", "segments"):
            assert (row[name].shape, row[name].dtype) == ((S + 1,), np.int32)
        assert (row["domain"].shape, row["domain"].dtype) == ((), np.int32)
        assert 0 <= row["domain"] < len(rows.domains)
        assert 0 <= row["tokens"].min() <= row["tokens"].max() < rows.tokenizer.vocab_size
        segments = row["segments"]
        padding = segments == 0
        assert segments[0] == 1
        assert set(np.diff(segments[~padding])) <= {0, 1}
        assert not np.diff(padding.astype(int)).min() < 0  # only at the end
        again = rows[index]
        for name in row:
            np.testing.assert_array_equal(row[name], again[name])


def test_the_tokenizer(dataset):
    tokenizer = dataset.open("train").tokenizer
    assert tokenizer.bytes_per_token_V.shape == (tokenizer.vocab_size,)
    assert tokenizer.bytes_per_token_V.dtype == np.int32
    assert all(tokenizer.bytes_per_token_V[i] == 0 for i in tokenizer.special_ids)
    assert isinstance(tokenizer.decode(dataset.open("train")[0]["tokens"]), str)


def test_the_fingerprint_is_json_and_tells_splits_and_lengths_apart(dataset):
    rows = dataset.open("train")
    stored = json.loads(json.dumps(rows.fingerprint))
    assert stored == dict(rows.fingerprint)
    assert json.loads(json.dumps(dataset.open("train").fingerprint)) == stored
    assert dict(dataset.open("validation").fingerprint) != stored
    assert dict(replace(dataset, sequence_length=S + 1).open("train").fingerprint) != stored
    assert rows.tokenizer.describe() == stored["tokenizer"]


def test_an_unknown_split_is_told(any_dataset):
    with pytest.raises(UserError, match="no split 'other'; the dataset has train, validation"):
        any_dataset.open("other")


def test_it_survives_the_config_machinery(any_dataset):
    dataset = any_dataset
    top = Top(data=dataset)
    assert check(top) == []
    assert from_config_dict(to_config_dict(top), Top) == top
    assert from_json_dict(json.loads(json.dumps(to_json_dict(top))), Top) == top
    texts = {"data.kind": dataset.kind_name}
    if hasattr(dataset, "tokenizer"):
        texts["data.tokenizer.kind"] = to_json_dict(top)["data"]["tokenizer"]["kind"]
    for path, _, value in leaves(top):
        texts[path] = ", ".join(value) if isinstance(value, tuple) else str(value)
    assert apply_overrides(Top(), texts) == top


def test_a_length_of_zero_is_refused(dataset):
    problems = check(replace(dataset, sequence_length=0))
    assert [problem.path for problem in problems] == ["sequence_length"]


def test_rows_longer_than_the_data_are_told(dataset):
    if isinstance(dataset, Planted):
        return  # draws rows of any length
    with pytest.raises(UserError, match=r"fewer than one row of sequence_length \+ 1"):
        replace(dataset, sequence_length=10**9).open("train")


def test_kinds_are_named_as_in_the_table():
    assert {name: cls.kind_name for name, cls in DATASETS.items()} == {n: n for n in DATASETS}
