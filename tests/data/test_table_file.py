"""A table of the user's own: columns by name, splits that keep together what belongs together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data.table_file import TableFile


@pytest.fixture
def data(tmp_path):
    lines = ["person,colour,age,buys,price"]
    for n in range(200):
        price = "" if n % 5 == 0 else f"{n / 10}"
        lines.append(f"p{n % 40},{['red', 'blue', '', 'green'][n % 4]},{n},{n % 2},{price}")
    (tmp_path / "shop.csv").write_text("\n".join(lines) + "\n")
    return TableFile(
        path=str(tmp_path / "shop.csv"), categories=("person", "colour"), numbers=("age",),
        targets=("buys", "price"), validation_fraction=0.3, together="person",
    )  # fmt: skip


def test_nobody_is_in_two_splits(data):
    train, held = data.open("train"), data.open("validation")
    assert len(train) + len(held) == 200 and len(held) > 20
    people = [set(rows.arrays["categories"][:, 0]) for rows in (train, held)]
    assert people[1] == {0} and 0 not in people[0]  # whom the training part does not have
    assert len(people[0]) == len(train.vocabulary.categories["person"])
    assert train.ids == held.ids == len(people[0]) + 1 + 5
    by_row = replace(data, together=None)
    assert 0 < len(by_row.open("validation")) < 200


def test_targets_that_are_missing_are_not_known(data):
    rows = data.open("train")
    price = rows.arrays["price"]
    assert 0.1 < np.isnan(price).mean() < 0.3 and not np.isnan(rows.arrays["buys"]).any()
    known = ~np.isnan(price)
    assert set(np.unique(rows.arrays["buys"])) == {0, 1} and price[known].max() > 15
    columns = data.columns()
    assert np.isnan(columns["price"].padding) and columns["categories"].shape == (2,)
    no_numbers = replace(data, numbers=())
    assert "numbers" not in no_numbers.columns() and "numbers" not in no_numbers.open("train")[0]


def test_a_file_of_its_own_validates(data, tmp_path):
    (tmp_path / "other.tsv").write_text("person\tcolour\tage\tbuys\tprice\nx\tred\t1\t0\tNA\n")
    rows = replace(data, validation=str(tmp_path / "other.tsv")).open("validation")
    assert len(rows) == 1 and np.isnan(rows[0]["price"]) and rows[0]["categories"][0] == 0


def test_mistakes_are_told_with_their_setting(data, tmp_path):
    def told(message, **changes):
        with pytest.raises(UserError, match=message):
            replace(data, **changes).open("train")

    told(r"data\.targets: .*shop\.csv has no column cost; it has person, colour", targets=("cost",))
    told(r"data\.together: .* has no column who", together="who")
    told(r"data\.path: no file", path=str(tmp_path / "none.csv"))
    told(r"data\.path: must be a \.csv or \.tsv", path=str(tmp_path / "a.xlsx"))
    told("the target colour is 'blue', which is no number", targets=("colour",), categories=())
    told("train split is empty", validation_fraction=0.9999999)
    (tmp_path / "broken.csv").write_text("person,colour,age,buys,price\na,b\n")
    told("row 2 has another number of fields", path=str(tmp_path / "broken.csv"))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00a")
    told("is no table of text in UTF-8", path=str(tmp_path / "bytes.csv"))
    wrong = TableFile(targets=("a", "a", "numbers"), validation_fraction=1.0)
    assert [p.path for p in check(wrong)] == [
        "validation_fraction", "targets", "categories", "targets",
    ]  # fmt: skip
