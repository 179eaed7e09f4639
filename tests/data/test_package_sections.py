"""Descriptions of packages: read as the indices have them, no source package in two splits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data import debian
from moe_jax.data.debian import DebianDescriptions
from moe_jax.data.package_sections import TOPICS, PackageSections
from moe_jax.data.package_tags import PackageTags, frequent
from moe_jax.data.progress import Silent
from tests.data.archives import card_of

COUNT = 120


def md5_of(n):
    """Of the description of package n: some have that of the one before."""
    return f"{(n - n % 2 if n % 20 < 4 else n):032x}"


def section_of(n):
    return TOPICS[n // 2 % 7] if n % 3 else "libs"


def twins(number):
    """The packages with the description of this one."""
    return [n for n in range(COUNT) if md5_of(n) == md5_of(number)]


def indices():
    """Packages 2 n and 2 n + 1 are of one source; one in twenty shares its description with the
    next source; every third is of a section that is no topic."""
    packages, texts = [], {language: [] for language in debian.LANGUAGES}
    for n in range(COUNT):
        md5, section = md5_of(n), section_of(n)
        packages.append(
            f"Package: p{n}\nSource: s{n // 2} (1.{n})\nSection: contrib/{section}\n"
            f"Description: title\nDescription-md5: {md5}\nTag: role::program, use::editing,\n"
            f" works-with::text\n"
        )
        if n % 20 in (3,):  # another source with the description of p{n}
            packages.append(
                f"Package: q{n}\nSource: s{n // 2 + 1}\nSection: {section}\n"
                f"Description-md5: {md5}\n"
            )
        for i, language in enumerate(debian.LANGUAGES):
            if n % (i + 1) == 0:
                texts[language].append(
                    f"Package: p{n}\nDescription-md5: {md5}\n"
                    f"Description-{language}: {language} {n}\n first line\n second line\n"
                    " .\n another paragraph\n  set in\n  again\n"
                )
    stray = "Package: z\nDescription-md5: 00\nDescription-en: of no package\n text\n"
    texts["en"].append(stray)
    files = {"Packages": "\n".join(packages)}
    files |= {f"Translation-{name}": "\n".join(blocks) for name, blocks in texts.items()}
    return {name: text.encode() for name, text in files.items()}


@pytest.fixture
def data(tmp_path, monkeypatch):
    contents = indices()
    (tmp_path / "in").mkdir()
    for name, content in contents.items():
        (tmp_path / "in" / name).write_bytes(content)
    monkeypatch.setattr(DebianDescriptions, "card", card_of(debian.CARD, **contents))
    return PackageSections(
        archive=str(tmp_path / "in"),
        data_dir=str(tmp_path / "data"),
        sequence_length=200,
        languages=("en", "de"),
        validation_fraction=0.4,
    )


def texts_of(rows):
    found = []
    for i in range(len(rows)):
        row = rows[i]
        text = rows.tokenizer.decode(row["tokens"][row["segments"] > 0])
        found.append((text, rows.classes[row["label"]], rows.domains[row["domain"]]))
    return found


def test_texts_sections_and_languages(data):
    rows = [row for split in ("train", "validation") for row in texts_of(data.open(split))]
    assert {domain for _, _, domain in rows} == {"en", "de"}
    assert all(section in TOPICS for _, section, _ in rows)
    for text, section, language in rows:
        title, *paragraphs = text.split("\n", 1)
        name, number = title.split()
        assert name == language and section in {section_of(n) for n in twins(int(number))}
        assert paragraphs == ["first line second line\nanother paragraph\nset in\nagain"]
    assert not any("of no package" in text for text, _, _ in rows)


def test_no_source_is_in_two_splits(data):
    """Nor two sources that share a description, through however many others."""
    data.open("train")
    sources = {}  # md5: sources
    for n in range(COUNT):
        md5 = md5_of(n)
        sources.setdefault(md5, set()).add(n // 2)
        if n % 20 == 3:
            sources[md5].add(n // 2 + 1)
    groups = {one.md5: one.group for one in data.described()}
    assert groups.keys() == sources.keys()
    for one, ours in sources.items():
        for other, theirs in sources.items():
            if ours & theirs:
                assert groups[one] == groups[other]
    assert len(set(groups.values())) > COUNT / 4
    splits = [
        {text.split("\n")[0].split()[1] for text, _, _ in texts_of(data.open(split))}
        for split in ("train", "validation")
    ]
    assert splits[0] and splits[1]
    of_number = {str(int(md5, 16)): group for md5, group in groups.items()}
    first, second = ({of_number[n] for n in split if n in of_number} for split in splits)
    assert not first & second


def test_tags_and_sections_of_the_index(data):
    data.open("train")
    one = next(one for one in data.described() if one.md5 == md5_of(4))
    assert one.tags == ("role::program", "use::editing", "works-with::text")
    assert (one.md5, one.section) == (md5_of(4), section_of(4)) == (md5_of(4), TOPICS[2])


def test_languages_are_checked(data, tmp_path):
    for languages in ((), ("en", "xx"), ("en", "en")):
        problems = [p for p in check(replace(data, languages=languages)) if p.path == "languages"]
        assert len(problems) == 1
    with pytest.raises(UserError, match="no index of packages"):
        (tmp_path / "empty").write_text("nothing: here\n")
        list(debian._described(tmp_path / "empty"))


def test_a_damaged_index_is_not_read_again(data):
    """Another setting reads the same folder, which has changed meanwhile."""
    data.open("train")
    file = data.source_folder() / "descriptions-en.jsonl"
    file.write_text(file.read_text().replace("first", "fifth", 1))
    with pytest.raises(UserError, match=r"descriptions-en\.jsonl: has changed"):
        replace(data, languages=("en",)).open("train")


def test_tags_are_several_a_row(data, tmp_path):
    """The most frequent ones; packages without tags are left out."""
    tags = PackageTags(
        archive=data.archive, data_dir=data.data_dir, tags=2, validation_fraction=0.4,
        sequence_length=200,
    )  # fmt: skip
    described = tags.prepare(Silent()) or tags.described()
    assert frequent(described, 3) == ("role::program", "use::editing", "works-with::text")
    assert tags.columns()["labels"].shape == (2,) and "label" not in tags.columns()
    for split in ("train", "validation"):
        rows = tags.open(split)
        assert rows.classes == ("role::program", "use::editing")
        assert all(rows[i]["labels"].tolist() == [1, 1] for i in range(len(rows)))
    assert "role::program" in "\n".join(tags.summary())
    number = {one.md5 for one in described if one.tags}
    assert sum(len(tags.open(split)) for split in ("train", "validation")) == len(number)
