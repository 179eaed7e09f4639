"""Conventions of other codebases: the same loss and the same slots after a conversion, an error
exactly where none exists, and a config that follows."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config.overrides import apply_overrides
from moe_jax.config.tree import value_at
from moe_jax.routing import Mixtral
from moe_jax.routing.balance import importance_loss, load_balance_loss, router_z_loss
from moe_jax.routing.capacity import ROUNDINGS
from moe_jax.routing.conventions import (
    CODEBASES,
    Convention,
    config_gaps,
    config_overrides,
    convert_capacity_factor,
    convert_coefficient,
    slots_of,
)
from moe_jax.routing.losses import scoped_loss
from moe_jax.routing.plan import reduce_sums
from moe_jax.routing.types import Sums
from moe_jax.training.experiment import Experiment

E, T, LAYERS, DRAWS = 6, 40, 3, 4
BALANCED = {name: row for name, row in CODEBASES.items() if row.normalization is not None}
WITH_CV = {name: row for name, row in CODEBASES.items() if row.cv_variance is not None}
WITH_CAPACITY = {name for name, row in CODEBASES.items() if row.capacity_rounding is not None}


def random_sums(seed, k, layers=LAYERS):
    """Leaves (L, ...): every token has k distinct choices, probabilities sum to 1."""
    rng = np.random.default_rng([seed, k])
    expert_LTK = np.argsort(rng.random((layers, T, E)) * np.arange(1, E + 1), axis=2)[..., :k]
    wanted_LE, first_LE = (
        np.stack([np.bincount(layer.reshape(-1), minlength=E) for layer in expert_LTN])
        for expert_LTN in (expert_LTK, expert_LTK[..., :1])
    )
    float_LE = [rng.dirichlet(np.arange(1, E + 1), layers) * T for _ in range(3)]
    z_L, entropy_L = rng.random((2, layers)) * T
    leaves = {
        "wanted_E": wanted_LE,
        "first_E": first_LE,
        "prob_E": float_LE[0],
        "importance_E": float_LE[1],
        "load_E": float_LE[2],
        "z": z_L,
        "entropy": entropy_L,
        "valid": np.full(layers, T),
        "largest_logit": np.ones(layers),
    }
    return Sums(
        **{
            name: jnp.asarray(leaf, jnp.int32 if leaf.dtype.kind == "i" else jnp.float32)
            for name, leaf in leaves.items()
        }
    )


def value_and_gradient(function, sums_L, leaf):
    """Over all layers, of one leaf of the sums."""
    return jax.value_and_grad(
        lambda x: function(dataclasses.replace(sums_L, **{leaf: x})), allow_int=False
    )(getattr(sums_L, leaf))


def over_layers(function, sums_L, how):
    """The codebase's loss of all layers from the loss of one."""
    if how == "pooled":
        return function(reduce_sums(sums_L, 0))
    value_L = jax.vmap(function)(sums_L)
    return jnp.sum(value_L) if how == "sum" else jnp.mean(value_L)


def balance_of(name, k):
    """[(value, gradient)] of a codebase's load-balance loss, a pair for each draw."""
    row = CODEBASES[name]

    def loss(sums):
        return load_balance_loss(sums, count=row.count, normalization=row.normalization)

    return [
        value_and_gradient(
            lambda sums_L: over_layers(loss, sums_L, row.over_layers),
            random_sums(seed, k),
            "prob_E",
        )
        for seed in range(DRAWS)
    ]


@pytest.fixture(scope="module", params=[1, 2])
def balances(request):
    k = request.param
    return k, {name: balance_of(name, k) for name in BALANCED}


def test_a_converted_coefficient_is_the_same_loss_and_no_factor_means_none(balances):
    """For every pair: value and gradient of coefficient * loss agree on every draw; where the
    conversion refuses, the ratio of the losses is not the same on all draws."""
    k, losses = balances
    refused = 0
    for source in BALANCED:
        for target in BALANCED:
            try:
                converted = convert_coefficient(0.3, source, target, E=E, k=k, layers=LAYERS)
            except ValueError:
                refused += 1
                pairs = zip(losses[source], losses[target], strict=True)
                ratios = [float(theirs / ours) for (theirs, _), (ours, _) in pairs]
                assert max(ratios) / min(ratios) > 1.0005, (source, target, ratios)
                continue
            for theirs, ours in zip(losses[source], losses[target], strict=True):
                for a, b in zip(theirs, ours, strict=True):
                    np.testing.assert_allclose(0.3 * a, converted * b, rtol=2e-6)
    pooled = 2 * (len(BALANCED) - 1)
    mixed = 2 * 5 * (len(BALANCED) - 5)  # five rows count first choices
    both = 2 * 5  # pooled and first
    assert refused == (pooled if k == 1 else pooled + mixed - both)


def test_the_loss_of_a_balanced_router_by_name():
    """1 in V-MoE, Tutel, MegaBlocks, Megatron-Core; k in Flaxformer, MaxText, Hugging Face; 1/k
    in Levanter: a coefficient times that is what it weighs."""
    expected = {"megablocks": 1, "megatron_core": 1, "deepseek": 1, "moe_jax": 1, "levanter": 1 / 4}
    expected |= {"flaxformer": 4, "maxtext": 4, "hugging_face": 4}
    for source, b in expected.items():
        got = convert_coefficient(1.0, source, "moe_jax", E=16, k=4)
        assert got == pytest.approx(b), source
    assert convert_coefficient(1.0, "v_moe", "tutel", E=16, k=4) == 1
    assert convert_coefficient(1.0, "switch", "levanter", E=16, k=1) == 1


def test_coefficients_round_trip():
    for source in BALANCED:
        for target in BALANCED:
            there = convert_coefficient(0.7, source, target, E=E, k=1, layers=1)
            back = convert_coefficient(there, target, source, E=E, k=1, layers=1)
            assert back == pytest.approx(0.7)


@pytest.mark.parametrize("loss", ["importance", "load"])
def test_an_unbiased_variance_is_converted(loss):
    leaf = f"{loss}_E"
    for source in WITH_CV:
        for target in WITH_CV:
            converted = convert_coefficient(0.3, source, target, E=E, k=2, layers=LAYERS, loss=loss)
            for seed in range(DRAWS):
                values = [
                    float(
                        over_layers(
                            lambda sums, name=name: importance_loss(
                                dataclasses.replace(sums, importance_E=getattr(sums, leaf)),
                                variance=CODEBASES[name].cv_variance,
                            ),
                            random_sums(seed, 2),
                            CODEBASES[name].over_layers,
                        )
                    )
                    for name in (source, target)
                ]
                np.testing.assert_allclose(0.3 * values[0], converted * values[1], rtol=2e-6)
    assert convert_coefficient(1.0, "v_moe", "tutel", E=5, k=1, loss="load") == pytest.approx(0.8)


def test_a_z_loss_differs_over_layers_only():
    for source in CODEBASES:
        for target in CODEBASES:
            how = [CODEBASES[name].over_layers for name in (source, target)]
            converted = convert_coefficient(
                0.3, source, target, E=E, k=2, layers=LAYERS, loss="router_z"
            )
            values = [float(over_layers(router_z_loss, random_sums(0, 2), side)) for side in how]
            np.testing.assert_allclose(0.3 * values[0], converted * values[1], rtol=2e-6)


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ("gshard", "megatron_core", {"k": 2}, "first choices, the other all"),
        ("maxtext", "hugging_face", {"k": 2, "layers": 12}, "neither the sum nor the mean"),
        ("gshard", "tutel", {"k": 3}, "k <= 2"),
        ("shazeer", "moe_jax", {"k": 2}, "has no load-balance loss"),
        ("levanter", "v_moe", {"k": 2, "loss": "importance"}, "has no importance"),
        ("v_moe", "tutel", {"k": 1, "E": 1, "loss": "load"}, "E = 1"),
        ("megatron", "moe_jax", {"k": 2}, "did you mean megatron_core"),
        ("maxtext", "moe_jax", {"k": 9}, "k at most E"),
        ("maxtext", "moe_jax", {"k": 2, "layers": 0}, "at least 1"),
        ("maxtext", "moe_jax", {"k": 2, "loss": "load_balanc"}, "did you mean load_balance"),
    ],
)
def test_what_cannot_be_converted_says_why(source, target, options, message):
    with pytest.raises(ValueError, match=message):
        convert_coefficient(0.01, source, target, **{"E": 8, **options})


def test_a_convention_of_ones_own():
    late = Convention(normalization="one", counted="after", source="mine")
    with pytest.raises(ValueError, match="counts after drops, the other before"):
        convert_coefficient(0.01, late, "moe_jax", E=8, k=1)
    assert "moe.losses.load_balance" in config_gaps(late)
    summed = dataclasses.replace(late, counted="before", over_layers="mean")
    assert convert_coefficient(0.6, summed, "moe_jax", E=8, k=2, layers=3) == pytest.approx(0.2)


PUBLISHED = {  # T = 10, E = 4, k = 2, factor 1.25
    "v_moe": 8,
    "megatron_core": 7,
    "moe_jax": 7,
    "tutel": 6,
    "megablocks": 6,
    "maxtext": 6,
    "flaxformer": 4,
    "switch": 3,
    "gshard": 4,
    "deepspeed": 7,
}


def test_published_capacities():
    assert set(PUBLISHED) == WITH_CAPACITY
    for name, slots in PUBLISHED.items():
        assert slots_of(1.25, name, T=10, E=4, k=2) == slots, name


@pytest.mark.parametrize(
    ("name", "T", "E", "k", "factor", "slots"),
    [
        ("tutel", 11, 4, 2, 1.3, 6),  # 2 int(1.3 * 3), not int(7.15)
        ("tutel", 20, 8, 4, 1.0, 12),  # 4 int(ceil(2.5)), not 10
        ("maxtext", 9, 4, 2, 1.0, 5),  # ceil(4.5)
        ("maxtext", 11, 4, 2, 1.3, 7),  # int(6 * 1.3)
        ("flaxformer", 36, 4, 1, 1.25, 11),  # round(11.25)
        ("flaxformer", 47, 4, 2, 1.0, 12),  # round(11.75)
        ("switch", 36, 4, 1, 1.25, 11),
        ("gshard", 36, 4, 2, 1.25, 12),  # 11, up to a multiple of 4
        ("megatron_core", 36, 8, 2, 1.25, 12),  # ceil(11.25)
        ("megablocks", 36, 8, 2, 1.25, 11),
        ("v_moe", 36, 8, 2, 1.0, 12),  # 9, up
        ("deepspeed", 10, 8, 2, 1.0, 4),  # 3, its minimum is 4
        ("moe_jax", 8, 8, 2, 1e9, 8),  # no more than tokens
    ],
)
def test_capacities_by_the_formula_of_the_source(name, T, E, k, factor, slots):
    assert slots_of(factor, name, T=T, E=E, k=k) == slots


SIZES = [(10, 4, 2), (64, 8, 1), (37, 5, 3), (3, 3, 3), (2, 64, 2)]


@pytest.mark.parametrize("target", sorted(WITH_CAPACITY))
def test_converted_factors_give_the_same_slots(target):
    """Both ends of the range do, what lies beside it does not; a refusal is right."""
    grid = np.geomspace(1e-3, 300, 1000)
    for T, E, k in SIZES:
        sizes = {"T": T, "E": E, "k": k}
        possible = {slots_of(factor, target, **sizes) for factor in grid}
        for source in sorted(WITH_CAPACITY):
            for factor in (0.3, 1.1, 2.0):
                wanted = slots_of(factor, source, **sizes)
                try:
                    found = convert_capacity_factor(factor, source, target, **sizes)
                except ValueError as error:
                    assert f"{wanted} slots" in str(error)
                    assert wanted not in possible, (source, sizes, factor)
                    continue
                assert found.slots == wanted
                assert found.smallest <= found.simplest <= found.largest
                ends = [found.simplest, max(found.smallest, 1e-3), min(found.largest, 300.0)]
                assert [slots_of(f, target, **sizes) for f in ends] == [wanted] * 3
                if found.smallest > 0:
                    assert slots_of(found.smallest * (1 - 1e-12), target, **sizes) < wanted
                if found.largest < math.inf:
                    assert slots_of(found.largest * (1 + 1e-12), target, **sizes) > wanted


def test_factors_round_trip_through_slots():
    for source in WITH_CAPACITY:
        there = convert_capacity_factor(1.25, source, "moe_jax", T=96, E=8, k=2)
        back = convert_capacity_factor(there.simplest, "moe_jax", source, T=96, E=8, k=2)
        assert back.smallest <= 1.25 <= back.largest, source


def test_the_simplest_factor_is_a_plain_number():
    found = convert_capacity_factor(1.25, "megablocks", "moe_jax", T=512, E=8, k=2)
    assert (found.slots, found.simplest) == (160, 1.25)
    assert convert_capacity_factor(1.25, "v_moe", "moe_jax", T=10, E=4, k=2).simplest == 1.5


@pytest.mark.parametrize(
    ("factor", "source", "target", "message"),
    [
        (1.25, "megatron_core", "v_moe", "7 slots .* nearest are 4 or 8"),
        (1.25, "hugging_face", "moe_jax", "dropless"),
        (1.25, "moe_jax", "levanter", "dropless"),
        (0.0, "moe_jax", "v_moe", "above 0"),
        (math.nan, "moe_jax", "v_moe", "above 0"),
        (0.3, "moe_jax", "flaxformer", "2 slots .* nearest are 4"),
    ],
)
def test_a_factor_that_does_not_exist_says_why(factor, source, target, message):
    with pytest.raises(ValueError, match=message):
        convert_capacity_factor(factor, source, target, T=10, E=4, k=2)


def test_our_own_row_is_what_a_config_has_by_default():
    row = CODEBASES["moe_jax"]
    for path, value in config_overrides(row).items():
        assert value_at(Experiment(), path) == value, path
    assert config_gaps(row) == {}
    assert row.counted == "before"


@pytest.mark.parametrize("name", CODEBASES)
def test_a_config_that_follows_a_codebase_has_its_losses(name):
    """The overrides are valid settings, and the coefficient then is the codebase's own: the run's
    loss is coefficient * theirs wherever no gap is told."""
    row = CODEBASES[name]
    overrides = {path: str(value) for path, value in config_overrides(name).items()}
    overrides["moe.losses.load_balance.coefficient"] = "0.3"
    followed = apply_overrides(Experiment(), overrides)
    for path, value in config_overrides(name).items():
        assert value_at(followed, path) == value
    if row.normalization is None or "moe.losses.over_layers" in config_gaps(name):
        return
    sums_L = random_sums(0, 2)
    sums_LG = jax.tree.map(lambda leaf: leaf[:, None], sums_L)
    got = scoped_loss(followed.moe.losses, Mixtral(), sums_LG, (row.scope,), 1)
    np.testing.assert_allclose(got, 0.3 * balance_of(name, 2)[0][0], rtol=2e-6)


def test_gaps_are_told():
    assert set(config_gaps("hugging_face")) == {"moe.losses.over_layers"}
    assert set(config_gaps("megatron_core")) == {"moe.router.drop_order"}
    for name, row in CODEBASES.items():
        lacking = row.capacity_rounding is not None and row.capacity_rounding not in ROUNDINGS
        assert ("moe.capacity_rounding" in config_gaps(name)) == lacking


def test_every_rounding_grows_with_the_factor():
    """What the search for a range of factors relies on."""
    for name, rounding in ROUNDINGS.items():
        for T, E, k in SIZES:
            slots = [rounding(T, E, float(k), factor) for factor in np.linspace(0.01, 5, 500)]
            assert slots == sorted(slots), name
