"""Points are validated together, named apart, and may be brought to equal cost."""

from __future__ import annotations

import json

import pytest

from moe_jax.config.errors import UserError
from moe_jax.config.overrides import apply_overrides, load_config
from moe_jax.sweeps import space as h
from moe_jax.sweeps.matching import Matching, counts_of, min_dropped, used_flops
from moe_jax.sweeps.points import SweepPoint, point_name, resolve, short_names
from moe_jax.sweeps.table import Row, arms_of
from moe_jax.training.experiment import Experiment

CONFIG = "configs/quickstart.py"
FOLDER = {"data.kind": "folder", "data.path": "somewhere"}
BASE = load_config(CONFIG, {}, Experiment)


def points(text: str, common: dict | None = None, matching: Matching | None = None):
    return resolve(CONFIG, common or {}, h.parse(text), matching or Matching())


def test_points_have_their_values_and_short_names():
    found = points("moe.router.kind=switch,mixtral; optimizer.learning_rate=0.001; seed=0..1")
    assert [p.name for p in found][:2] == [
        "router=switch,learning_rate=0.001,seed=0",
        "router=switch,learning_rate=0.001,seed=1",
    ]
    assert found[0].arm == found[1].arm == "router=switch,learning_rate=0.001"
    assert [p.experiment.seed for p in found] == [0, 1, 0, 1]
    assert {type(p.experiment.moe.router).__name__ for p in found} == {"Switch", "Mixtral"}
    assert found[0].experiment.optimizer.learning_rate == 0.001


def test_a_kind_comes_before_its_settings_wherever_they_stand():
    found = points("moe.router.capacity_factor=1,2", common={"moe.router.kind": "expert_choice"})
    assert [p.experiment.moe.router.capacity_factor for p in found] == [1.0, 2.0]


def test_names_grow_until_they_differ():
    names = short_names(dict.fromkeys(["moe.capacity_factor", "evaluation.capacity_factor"]))
    assert names == {
        "moe.capacity_factor": "moe.capacity_factor",
        "evaluation.capacity_factor": "evaluation.capacity_factor",
    }
    long = point_name({"a": "x" * 300}, {"a": "a"})
    other = point_name({"a": "x" * 299 + "y"}, {"a": "a"})
    assert len(long) <= 100 and long != other
    assert "/" not in point_name({"p": "a/b c"}, {"p": "p"})


def test_a_point_survives_json():
    point = points("moe.router.k=1; seed=3")[0]
    assert SweepPoint.from_json(json.loads(json.dumps(point.to_json()))) == point


def test_all_problems_of_all_points_are_told_at_once():
    with pytest.raises(UserError) as error:
        points("moe.router.k=1,99; moe.num_expert=8,16")
    message = str(error.value)
    assert message.count("did you mean config.moe.num_experts") == 4
    with pytest.raises(UserError, match="2 problems in the sweep") as error:
        points("moe.router.k=1,98,99")
    assert "k=98: " in str(error.value) and "k=99: " in str(error.value)


@pytest.mark.parametrize(
    ("text", "common", "message"),
    [
        ("moe.router.k=1,1", {}, "a point twice|one run twice"),
        ("moe.router.k=1,2", {"moe.router.k": "2"}, "both the sweep and --config"),
        ("moe.router.k=2; optimizer.learning_rate=0.001,1e-3", {}, "twice"),
    ],
)
def test_doubled_points_are_refused(text: str, common: dict, message: str):
    with pytest.raises(UserError, match=message):
        points(text, common)


@pytest.mark.parametrize("quantity", ["flops", "active", "parameters"])
def test_matching_solves_for_the_width(quantity: str):
    found = points("moe.router.k=1,2,4", matching=Matching(quantity))
    for point in found:
        counts, base = counts_of(point.experiment), counts_of(BASE)
        pair = {
            "flops": (counts.flops_per_token, base.flops_per_token),
            "active": (counts.active, base.active),
            "parameters": (counts.total, base.total),
        }[quantity]
        assert pair[0] == pytest.approx(pair[1], rel=2e-3)
    widths = [p.experiment.moe.expert_dim for p in found]
    assert widths == ([256] * 3 if quantity == "parameters" else [512, 256, 128])


def test_matching_a_dense_model_solves_for_its_feed_forward():
    found = points("moe.every=0,1", matching=Matching("flops"))
    # The router of the sparse one takes part: 2 x 128 x 8 weights a layer are worth 2.67 units.
    assert found[0].experiment.model.mlp_dim == pytest.approx(512 + 8 / 3, abs=1)
    with pytest.raises(UserError, match=r"no moe\.expert_dim gives"):
        points("model.model_dim=2048", matching=Matching("active"))


def test_assignments_that_must_be_dropped_cost_nothing():
    half = apply_overrides(BASE, {"moe.capacity_factor": 0.5})
    assert min_dropped(half) == 0.5
    one = apply_overrides(BASE, {"moe.router.k": 1})
    assert used_flops(half, 0.5) == pytest.approx(counts_of(one).flops_per_token)
    found = points("moe.capacity_factor=0.5,none", matching=Matching("flops"))
    assert [p.experiment.moe.expert_dim for p in found] == [512, 256]
    shared = apply_overrides(BASE, {"moe.num_shared": 1})
    assert used_flops(shared, 1.0) == pytest.approx(
        counts_of(shared).flops_per_token - 18 * 4 * 2 * 128 * 256
    )


@pytest.mark.parametrize(
    ("sweep", "values"),
    [
        (h.parse("(moe.capacity_factor, seed) = (.5, 0), (5, 1)"), [0.5, 5.0]),
        (h.parse("moe.capacity_factor = .5, 5"), [0.5, 5.0]),
        (h.sweep("moe.capacity_factor", [1.12345678, 1.12345699]), [1.12345678, 1.12345699]),
    ],
)
def test_arms_are_told_apart_by_their_configs(sweep: h.Sweep, values: list[float]):
    found = resolve(CONFIG, {}, sweep, Matching())
    assert [point.experiment.moe.capacity_factor for point in found] == values
    assert len({point.arm for point in found}) == len({point.name for point in found}) == 2
    rows = [Row(point, done=True, metrics={"loss": 1.0}, costs={}) for point in found]
    assert [len(arm.rows) for arm in arms_of(rows, "loss")] == [1, 1]


def test_names_that_say_the_same_of_two_configs_are_made_their_own():
    sweep = h.product(h.sweep("data.validation", ["a/b", "a b"]), h.seeds(2))
    found = resolve(CONFIG, FOLDER, sweep, Matching())
    assert len({point.arm for point in found}) == 2
    assert len({point.name for point in found}) == 4
    assert all(point.experiment.name == point.name for point in found)


def test_a_config_is_one_arm_however_it_is_written():
    found = points("(optimizer.learning_rate, seed) = (1e-3, 0), (0.001, 1)")
    assert found[0].arm == found[1].arm == "learning_rate=1e-3"


def test_lists_of_lists_have_names():
    sweep = h.sweep("data.suffixes", [[".txt"], [".md", ".py"]])
    found = resolve(CONFIG, FOLDER, sweep, Matching())
    assert [point.experiment.data.suffixes for point in found] == [(".txt",), (".md", ".py")]
    assert len({point.name for point in found}) == 2


def test_quotes_around_a_value_are_not_part_of_it():
    assert points("data.field='a,b'", FOLDER)[0].experiment.data.field == "a,b"
    found = points("(data.field, seed) = ('a,b', 0), (\"c;d\", 1)", FOLDER)
    assert [point.experiment.data.field for point in found] == ["a,b", "c;d"]


def test_a_width_that_is_swept_is_not_solved_for():
    with pytest.raises(UserError, match=r"solves for moe\.expert_dim, which the sweep sets"):
        points("moe.expert_dim=64,128", matching=Matching("flops"))
    with pytest.raises(UserError, match=r"solves for model\.mlp_dim, which the sweep sets"):
        points("model.mlp_dim=64,128", matching=Matching("active", "model.mlp_dim"))
    assert len(points("model.mlp_dim=64,128", matching=Matching("active"))) == 2


def test_what_matching_leaves_unequal_is_told():
    def notes(text: str, quantity: str | None) -> list[str]:
        matching = Matching(quantity)
        found = points(text, matching=matching)
        return matching.notes(BASE, {point.arm: point.experiment for point in found})

    assert notes("moe.router.k=1,2", "flops") == []
    off = notes("moe.num_experts=8,512", "parameters")
    assert len(off) == 1 and off[0].startswith("num_experts=512: parameters ")
    gap = float(off[0].split("parameters ")[1].split("%")[0]) / 100
    (matched,) = (p for p in points("moe.num_experts=512", matching=Matching("parameters")))
    expected = counts_of(matched.experiment).total / counts_of(BASE).total - 1
    assert gap == pytest.approx(expected, abs=1e-3) and abs(gap) > 0.005
    message = notes("steps=300,600", "flops")
    assert len(message) == 1 and "per token" in message[0]
    assert notes("steps=300,600", None) == []
