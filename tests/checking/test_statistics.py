"""Every statistic of a run against float64 numpy: summed (or, one, its largest) over groups, rows,
micro-batches and devices, never over layers; in evaluation over batches too."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.checking.invariance import plan, scalars_over_the_run
from moe_jax.checking.trial import (
    initial_state,
    lower_quick,
    program_of,
    run,
    synthetic_rows,
)
from moe_jax.config.overrides import load_config
from moe_jax.routing.plan import add_sums, reduce_sums
from moe_jax.routing.types import Sums, Traffic
from moe_jax.training.evaluation import evaluate
from moe_jax.training.experiment import Experiment
from tests.checking.routers import ByIds
from tests.layers import of_all_layers

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
E, K, FACTOR = 8, 2, 0.75
SETTINGS = (
    ("moe.router.kind", "tests.checking.routers:ByIds"),
    ("moe.capacity_factor", FACTOR),
    ("evaluation.capacity_factor", FACTOR),
)
VARIANTS = (
    "1 device dense",
    "1 device rows",
    "1 device rows accumulation=4",
    "data=8 rows",
    "tensor=4 rows",
)
MIXED = "data=2 expert=2 sequence=2 rows/all_to_all accumulation=2 remat=full"


def statistics(batches, offset_E, T):
    """All counts and sums of one layer over all groups of T tokens of all batches, by name."""
    total = {"largest_logit": 0.0}

    def add(name, value):
        total[name] = total.get(name, 0) + np.asarray(value)

    places = 8
    for batch in batches:
        id_GT, segment_GT = (batch[n][:, :-1].reshape(-1, T) for n in ("tokens", "segments"))
        B, S = batch["tokens"][:, :-1].shape
        row_part_GT = np.tile(np.arange(S) * places // S, B).reshape(-1, T)
        for id_T, valid_T, row_part_T in zip(id_GT, segment_GT > 0, row_part_GT, strict=True):
            z_TE = ByIds.table()[id_T] + offset_E
            power_TE = np.exp(z_TE)
            prob_TE = power_TE / power_TE.sum(1, keepdims=True)
            best_TK = np.argsort(-z_TE, axis=1)[:, :K]
            best_power_TK = np.take_along_axis(power_TE, best_TK, axis=1)
            weight_TK = best_power_TK / best_power_TK.sum(1, keepdims=True)
            wanted_KE, kept_TK, left_E = np.zeros((K, E), int), np.zeros((T, K), bool), [C] * E
            for k in range(K):  # first choices are served first
                for t in np.flatnonzero(valid_T):
                    wanted_KE[k, best_TK[t, k]] += 1
                    kept_TK[t, k] = left_E[best_TK[t, k]] > 0
                    left_E[best_TK[t, k]] -= kept_TK[t, k]
            lost_TK = valid_T[:, None] & ~kept_TK
            gate_TE = np.zeros((T, E))
            np.put_along_axis(gate_TE, best_TK, weight_TK, axis=1)
            add("wanted_E", wanted_KE.sum(0))
            add("first_E", wanted_KE[0])
            add("prob_E", prob_TE[valid_T].sum(0))
            add("importance_E", gate_TE[valid_T].sum(0))
            add("load_E", (prob_TE[valid_T] ** 2).sum(0))
            add("z", np.sum(np.log(power_TE[valid_T].sum(1)) ** 2))
            add("entropy", -np.sum((prob_TE * np.log(prob_TE))[valid_T]))
            add("valid", valid_T.sum())
            add("own.ids", id_T[valid_T].sum())
            largest = np.abs(z_TE[valid_T]).max(initial=0)
            total["largest_logit"] = max(total["largest_logit"], largest)
            add("accepted_E", C - np.array(left_E))
            add("dropped", lost_TK.sum())
            add("dropped_tokens", (valid_T & ~kept_TK.any(1)).sum())
            add("overflow", 0)
            add("slots", E * C * valid_T.any())
            add("wanted_K", wanted_KE.sum(1))
            add("dropped_K", lost_TK.sum(0))
            add("wanted_N", K * np.bincount(row_part_T[valid_T], minlength=places))
            add("dropped_N", np.bincount(row_part_T, lost_TK.sum(1), places))
            add("served_H", np.bincount(kept_TK.sum(1)[valid_T], minlength=K + 1))
    return total


C = math.ceil(16 * K * FACTOR / E)  # of groups of half a row


@cache
def planned():
    found = plan(load_config(QUICKSTART, SETTINGS, Experiment), jax.devices(), steps=1)
    assert found.small.moe.group_size == 16
    program = program_of(found.reference.apply(found.small), found.devices[:1])
    return found, program, initial_state(program)


def trial_of(name):
    """One step of the variant of this name."""
    found, _, state = planned()
    (variant,) = (v for v in (found.reference, *found.variants) if v.name == name)
    program = program_of(variant.apply(found.small), found.devices[: variant.devices])
    batches, scalars = synthetic_rows(found.small, 1), scalars_over_the_run(found.original, 1)
    step = lower_quick(program, batches[0], scalars[0]).compile()
    return run(program, step, state, batches, scalars), batches


def offsets(start):
    """(L, E): the row of the kernel that each layer adds to its logits."""
    kernels = [start[name] for name in sorted(start) if name.endswith("moe/router/kernel")]
    return np.concatenate(kernels).astype(np.float64)[:, 0]


@pytest.mark.grid
@pytest.mark.parametrize("variant", [*VARIANTS, MIXED])
def test_every_statistic_of_a_step_against_float64(variant):
    trial, batches = trial_of(variant)
    by_layer = [statistics(batches, offset_E, 16) for offset_E in offsets(trial.start)]
    record = trial.steps[0]
    names = {f.name for kind in (Sums, Traffic) for f in dataclasses.fields(kind)} - {"own"}
    assert by_layer[0].keys() == names | {"own.ids"}
    assert (record.counts | record.sums).keys() == by_layer[0].keys() | {"tokens", "bytes"}
    for name in by_layer[0]:
        expected_L = np.stack([layer[name] for layer in by_layer])
        if name in record.counts:
            np.testing.assert_array_equal(record.counts[name], expected_L, err_msg=name)
        else:
            np.testing.assert_allclose(record.sums[name], expected_L, rtol=1e-5, err_msg=name)
        # Layers differ, so that none can stand for the other.
        if name not in ("valid", "own.ids", "overflow", "slots", "wanted_K", "wanted_N"):
            assert np.any(expected_L[0] != expected_L[1]), name
    assert all(layer["dropped"] > 100 and layer["dropped_tokens"] > 10 for layer in by_layer)


def test_metrics_of_a_step_and_of_an_evaluation_against_float64():
    """Over three batches of other sizes of load: ratios of the sums, not means of ratios; over
    layers the worst for two, the mean for the others."""
    found, program, state = planned()
    batches = synthetic_rows(found.small, 3)
    batches[1]["segments"][4:] = 0
    found = evaluate(program, jax.device_put(state, program.state_shardings), batches)
    router = of_all_layers(state.params["layers"])["moe"]["router"]
    kernel = {"moe/router/kernel": router["kernel"]}
    by_layer = []
    for number, offset_E in enumerate(offsets(kernel)):
        s = statistics(batches, offset_E, 16)
        wanted, share_E = s["wanted_E"].sum(), s["wanted_E"] / s["wanted_E"].sum()
        by_layer.append(
            {
                "load_balance_loss": E * np.sum(share_E * s["prob_E"] / s["valid"]),
                "router_z_loss": s["z"] / s["valid"],
                "router_entropy": s["entropy"] / s["valid"],
                "largest_logit": s["largest_logit"],
                "experts_per_token": wanted / s["valid"],
                "max_violation": E * share_E.max() - 1,
                "load_cv": share_E.std() / share_E.mean(),
                "dropped_fraction": s["dropped"] / wanted,
                "dropped_token_fraction": s["dropped_tokens"] / s["valid"],
                "capacity_utilization": s["accepted_E"].sum() / s["slots"],
            }
        )
        lists = {
            "load": share_E,
            "gate_mass": s["importance_E"] / s["importance_E"].sum(),
            "dropped_by_rank": s["dropped_K"] / s["wanted_K"],
            "dropped_by_position": s["dropped_N"] / s["wanted_N"],
            "experts_histogram": s["served_H"] / s["served_H"].sum(),
        }
        for name, expected in {**by_layer[-1], **lists}.items():
            value = found[f"moe/layer_{number:02d}/{name}"]
            np.testing.assert_allclose(value, expected, rtol=1e-5, err_msg=name)
    for name in by_layer[0]:
        values = [layer[name] for layer in by_layer]
        worst = name in ("largest_logit", "max_violation")
        expected = max(values) if worst else np.mean(values)
        np.testing.assert_allclose(found[f"moe/{name}"], expected, rtol=1e-5, err_msg=name)


def of_numbers(kind, seed):
    """A Sums or Traffic of 4 x 5 groups, of random leaves, negative ones among them: a largest
    that starts from 0, or a sum of absolute values, is another number."""
    rng = np.random.default_rng(seed)

    def draw(name):
        shape = (4, 5, 3) if name[-2:-1] == "_" else (4, 5)
        whole = name not in FLOATS
        return jnp.asarray(rng.integers(-9, 9, shape), jnp.int32 if whole else jnp.float32)

    values = {f.name: draw(f.name) for f in dataclasses.fields(kind) if f.name != "own"}
    own = {"own": {"a": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)}} if kind is Sums else {}
    return kind(**values, **own)


FLOATS = {"prob_E", "importance_E", "load_E", "z", "entropy", "largest_logit"}


@pytest.mark.parametrize("kind", [Sums, Traffic])
@pytest.mark.parametrize("axis", [0, 1, (0, 1)], ids=str)
def test_leaves_reduce_by_their_kind(kind, axis):
    """reduce_sums over each axis, add_sums of arrays on the device and on the host; types stay."""
    trees = [of_numbers(kind, seed) for seed in (0, 1)]
    reduced, added = reduce_sums(trees[0], axis), add_sums(*trees)
    on_host = add_sums(*jax.device_get(trees))

    def leaf_of(tree, name):
        return getattr(tree, name)["a"] if name == "own" else getattr(tree, name)

    for field in dataclasses.fields(kind):
        one, two = (np.asarray(leaf_of(tree, field.name)) for tree in trees)
        largest = field.name == "largest_logit"
        wide = one.astype(np.float64)
        expected = wide.max(axis) if largest else wide.sum(axis)
        both = np.maximum(one, two) if largest else one + two
        for result, value in ((reduced, expected), (added, both), (on_host, both)):
            result = leaf_of(result, field.name)
            np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-5, err_msg=field.name)
            assert result.dtype == one.dtype
