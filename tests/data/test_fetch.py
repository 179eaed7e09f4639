"""Data that is fetched: held to its checksum, kept with its card, refused where it is damaged."""

from __future__ import annotations

import bz2
import lzma
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_jax.config.errors import UserError
from moe_jax.data import debian
from moe_jax.data.datasets import DATASETS
from moe_jax.data.debian import DebianDescriptions
from moe_jax.data.fashion_mnist import INSIDE, FashionMnist
from moe_jax.data.fetch import deb
from moe_jax.data.fetch.archives import fetched
from moe_jax.data.fetch.dataset import SOURCE, Fetched
from moe_jax.data.prepare import prepare
from moe_jax.data.progress import Silent
from tests.data.archives import card_of, deb_of, idx_of

DOCS = Path(__file__).parents[2] / "docs/data.md"
FETCHED = {name: cls for name, cls in DATASETS.items() if issubclass(cls, Fetched)}


@pytest.fixture
def clothes(tmp_path, monkeypatch):
    """The arrays of a small Fashion-MNIST, whose package lies in tmp_path."""
    arrays, files, rng = {}, {}, np.random.default_rng(0)
    for split, stem, count in (("train", "train", 20), ("validation", "t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        arrays[split] = images, labels
        files[INSIDE.format(stem, "images-idx3")] = idx_of(images)
        files[INSIDE.format(stem, "labels-idx1")] = idx_of(labels)
    content = deb_of(files)
    (tmp_path / "clothes.deb").write_bytes(content)
    monkeypatch.setattr(FashionMnist, "card", card_of(FashionMnist.card, one=content))
    return arrays


@pytest.fixture
def data(clothes, tmp_path):
    return FashionMnist(archive=str(tmp_path / "clothes.deb"), data_dir=str(tmp_path / "data"))


def test_pictures_are_those_of_the_archive(data, clothes):
    for split, (images, labels) in clothes.items():
        rows = data.open(split)
        assert len(rows) == len(labels) and rows.classes[9] == "ankle boot"
        mean, deviation = np.float32(data.mean), np.float32(data.deviation)
        every = [rows[i] for i in range(len(rows))]
        found = {row["image"].tobytes(): int(row["label"]) for row in every}
        for image, label in zip(images, labels, strict=True):
            pixels = image[..., None].astype(np.float32) / np.float32(255)
            assert found[((pixels - mean) / deviation).tobytes()] == label


def test_the_card_is_said_and_kept(data):
    said = []

    class Heard(Silent):
        def message(self, text):
            said.append(text)

    lines = prepare(data, Heard())
    kept = (data.source_folder() / SOURCE).read_text("utf-8").splitlines()
    assert said[: len(kept)] == kept == list(data.card.lines())
    assert any("license: MIT" in line for line in kept)
    assert any("train: 20 rows" in line for line in lines)


def test_a_changed_archive_and_a_changed_file_are_refused(data, tmp_path):
    content = (tmp_path / "clothes.deb").read_bytes()
    (tmp_path / "clothes.deb").write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match=r"its sha256 is [0-9a-f]{16}\.\.\., and that of dataset-"):
        data.open("train")
    assert not list((tmp_path / "data/sources").glob("[!.]*"))
    (tmp_path / "clothes.deb").write_bytes(content)
    data.open("train")
    file = data.source_folder() / "train.images.npy"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(UserError, match=r"train\.images\.npy: has changed"):
        data.open("validation")
    file.unlink()
    with pytest.raises(UserError, match=r"train\.images\.npy: has changed"):
        data.open("validation")
    (data.source_folder() / "sha256.json").unlink()
    with pytest.raises(UserError, match=r"has no sha256\.json, so it is not what was written"):
        data.open("validation")


def test_once_prepared_nothing_is_fetched(data, tmp_path, monkeypatch):
    data.open("train")
    (tmp_path / "clothes.deb").unlink()
    monkeypatch.setenv("PATH", "")
    assert len(replace(data, archive=None, auto_prepare=False).open("train")) == 20


def test_without_preparation_the_command_is_shown(data, tmp_path):
    with pytest.raises(UserError) as error:
        replace(data, auto_prepare=False).open("train")
    message = str(error.value)
    assert "python -m moe_jax.data.prepare --dataset=fashion_mnist" in message
    assert f"--dataset.archive={tmp_path / 'clothes.deb'}" in message


def test_without_a_client_the_file_and_where_to_put_it_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    card = FashionMnist.card
    with pytest.raises(UserError) as error:
        fetched(card.archives, None, "data.archive", tmp_path)
    message = str(error.value)
    assert "Debian package dataset-fashion-mnist 0.0~git20200523.55506a9-1" in message
    assert "apt" in message and f"Fetch {card.archives[0].file}" in message
    assert message.endswith("data.archive=PATH")
    with pytest.raises(UserError) as error:
        fetched(DebianDescriptions.card.archives, None, "data.archive", tmp_path)
    message = str(error.value)
    assert "index Packages of Debian bookworm" in message
    assert "data.archive=FOLDER, with Packages, Translation-en, " in message


def test_indices_may_be_packed_as_mirrors_have_them(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    contents = {archive.file: archive.file.encode() * 9 for archive in debian.CARD.archives}
    card = card_of(debian.CARD, **contents)
    for number, (name, content) in enumerate(contents.items()):
        pack, suffix = [(bytes, ""), (lzma.compress, ".xz"), (bz2.compress, ".bz2")][number % 3]
        (tmp_path / "in" / (name + suffix)).write_bytes(pack(content))
    found = fetched(card.archives, str(tmp_path / "in"), "data.archive", tmp_path / "out")
    assert {name: path.read_bytes() for name, path in found.items()} == contents
    (tmp_path / "in/Translation-en.xz").write_bytes(lzma.compress(b"other"))
    with pytest.raises(UserError, match="Translation-en: its sha256"):
        fetched(card.archives, str(tmp_path / "in"), "data.archive", tmp_path / "out")
    (tmp_path / "in/Translation-en.xz").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"Translation-en\.xz: cannot be unpacked"):
        fetched(card.archives, str(tmp_path / "in"), "data.archive", tmp_path / "out")
    (tmp_path / "in/Translation-en.xz").unlink()
    with pytest.raises(UserError, match=r"no file .*Translation-en, which is index Translation-en"):
        fetched(card.archives, str(tmp_path / "in"), "data.archive", tmp_path / "out")
    with pytest.raises(UserError, match="is no folder"):
        fetched(card.archives, str(tmp_path / "in/Packages"), "data.archive", tmp_path)


def test_files_of_a_debian_package(tmp_path):
    path = tmp_path / "a.deb"
    path.write_bytes(deb_of({"usr/a": b"one", "usr/share/b": b"two"}))
    assert deb.listing(path) == ["usr/a", "usr/share/b"]
    assert deb.members(path, ["usr/share/b"]) == {"usr/share/b": b"two"}
    with pytest.raises(UserError, match="it has no file usr/c"):
        deb.members(path, ["usr/c"])
    for damaged in (b"", b"!<arch>\n", b"PK" * 99, path.read_bytes()[:90]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="no Debian package"):
            deb.members(path, ["usr/a"])


@pytest.mark.parametrize("name", FETCHED)
def test_every_set_has_a_card_in_the_documents(name):
    """docs/data.md says of each what its card says."""
    page = re.sub(r"\s+", " ", DOCS.read_text("utf-8"))
    card = FETCHED[name].card
    assert f"`{name}`" in page
    for text in (card.title, card.source, card.license, card.terms):
        assert text in page, text
    for archive in card.archives:
        assert archive.file in page, archive.file
    sums = [archive.sha256 for archive in card.archives]
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) for sha256 in sums)
    assert any(sums[0][:16] in page for _ in sums)
