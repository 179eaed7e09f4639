"""Sets that are fetched, with the real clients: they are what they were."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from moe_jax.data.census_income import IDS, CensusIncome
from moe_jax.data.climate import Climate
from moe_jax.data.debian import LANGUAGES
from moe_jax.data.fashion_mnist import FashionMnist
from moe_jax.data.fetch.apt import Apt
from moe_jax.data.movielens import MovieLens100k
from moe_jax.data.package_sections import TOPICS, PackageSections
from moe_jax.data.pages import CLASSES, Pages
from moe_jax.data.vowels import Vowels


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def debian(tmp_path_factory) -> None:
    """Needs apt and a mirror that it reaches, which other systems do not have."""
    folder = tmp_path_factory.mktemp("apt")
    apt = Apt(folder / "apt", "bookworm")
    said = apt.update()
    if not any((apt.folder / "lists").glob("*InRelease")):
        pytest.skip(f"apt reaches no mirror of Debian here: {said}")


def test_fashion_mnist_is_whole(data_dir, debian):
    """6,000 and 1,000 pictures of each class; mean and deviation of a pixel as published."""
    data = FashionMnist(data_dir=data_dir)
    for split, each in (("train", 6000), ("validation", 1000)):
        labels = data.pictures(split).labels
        assert np.bincount(labels).tolist() == [each] * 10
    pixels = np.load(data.source_folder() / "train.images.npy") / 255
    assert (pixels.mean(), pixels.std()) == pytest.approx((0.2860, 0.3530), abs=1e-4)


def test_descriptions_of_packages(data_dir, debian):
    data = PackageSections(data_dir=data_dir, languages=("en", "zh_CN"))
    rows = {split: data.open(split) for split in ("train", "validation")}
    counts = sum(
        np.bincount(part.labels["label"][part.labels["domain"] == 0], minlength=len(TOPICS))
        for part in rows.values()
    )
    assert counts.sum() == 14_414 and (counts > 0).all() and counts.argmax() == TOPICS.index("net")
    assert len(data.described()) == 61_089
    held = {one.group for one in data.described()}
    assert 20_000 < len(held) < 34_169  # sources
    assert {language for language in LANGUAGES if data.texts(language)} == set(LANGUAGES)


def test_pages_of_a_book(data_dir, debian):
    """2,186 pages; of 161,399 pieces of text that are not blank, those that follow on each other in
    one font are one run. Other versions of poppler may cut a line otherwise."""
    if any(shutil.which(name) is None for name in ("pdftohtml", "pdftoppm")):
        pytest.skip("poppler-utils is not here")
    data = Pages(data_dir=data_dir)
    counts, number = np.zeros(len(CLASSES), int), 0
    folder = data.opened_folder()
    for language in data.languages:
        with np.load(folder / f"{language}.npz") as file:
            number += len(file["pages"])
            counts += np.bincount(file["runs"][:, 1].astype(int), minlength=len(CLASSES))
            assert file["chapters"].max() == 13 and (np.diff(file["chapters"]) >= 0).all()
    assert number == 2186
    wanted = dict(text=93_263, code=27_808, bold=6_560, heading=4_988, italic=4_740)
    assert dict(zip(CLASSES, counts.tolist(), strict=True)) == pytest.approx(wanted, rel=0.02)
    for split, tiles in (("train", 38_020), ("validation", 7_650)):
        rows = data.open(split)
        assert len(rows) == pytest.approx(tiles, rel=0.02)
        row = rows[0]
        assert 0 < row["objects"] <= 12 and np.isfinite(row["image"]).all()


def test_the_earth(data_dir):
    """Every class in both splits, and a colour table that is better than ocean everywhere."""
    data = Climate(data_dir=data_dir)
    counts = {}
    for split in ("train", "validation"):
        rows = data.open(split)
        maps = [rows[i]["label_map"] for i in range(len(rows))]
        counts[split] = len(maps), np.bincount(np.ravel(maps), minlength=6) / np.size(maps)
    assert (counts["train"][0], counts["validation"][0]) == (867, 245)
    assert all((share > 0.05).all() for _, share in counts.values())


def test_vowels_of_praat(data_dir):
    """Mean formants of men, women and children together, as the paper's table 2 has them by group:
    [i] has the lowest F1 and the highest F2 of the four."""
    rows = Vowels(data_dir=data_dir).open("train")
    assert len(rows) == 400
    first, second = (
        [rows.hertz[rows.labels == vowel, formant].mean() for vowel in range(4)]
        for formant in range(2)
    )
    assert np.argmin(first) == 0 and np.argmax(second) == 0
    assert 270 <= first[0] <= 370 and 2290 <= second[0] <= 3200
    assert 730 <= first[2] <= 1030 and 1090 <= second[2] <= 1370


def test_movielens(data_dir):
    """The hit rate of popularity as others have it: leave one out, all items ranked."""
    from experiments.tasks.movielens_baselines import biases, popularity

    data = MovieLens100k(data_dir=data_dir)
    assert data.ratings().shape == (100_000, 4) and len(data.films()) == 943
    found = popularity(data)
    assert found["hit_rate_at_10"] == pytest.approx(0.0498, abs=1e-4)
    assert found["ndcg_at_10"] == pytest.approx(0.0254, abs=6e-4)  # ties are last here
    assert biases(data)["biases"] == pytest.approx(0.94, abs=0.02)


def test_the_census(data_dir):
    """The published numbers of records, and of those with each target."""
    data = CensusIncome(data_dir=data_dir, repeated=True)
    rows = {split: data.open(split) for split in data.splits}
    assert len(rows["train"]) == 199_523 and rows["train"].ids == IDS
    assert len(rows["validation"]) + len(rows["test"]) == 99_762
    assert rows["train"].arrays["income_above_50k"].sum() == 12_382
    assert rows["train"].arrays["never_married"].sum() == 86_485
    held = CensusIncome(data_dir=data_dir)
    kept = [len(held.open(split)) for split in ("validation", "test")]
    assert sum(kept) == 99_762 - 2_925 and min(kept) > 48_000
