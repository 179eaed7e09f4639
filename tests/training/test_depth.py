"""A model with a mixture of depths: meshes, layouts, counts, the estimate, rules, metrics."""

from __future__ import annotations

import dataclasses
import itertools
import types

import jax
import numpy as np
import optax
import pytest

from moe_jax.config.errors import UserError
from moe_jax.data.tokenizer import ByteTokenizer
from moe_jax.models.counts import count
from moe_jax.models.decoder import DecoderConfig
from moe_jax.models.layout import layout_of
from moe_jax.models.network import flat
from moe_jax.models.types import IO
from moe_jax.nn.depth import MixtureOfDepths
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.notebook import LoadedRun
from moe_jax.parallel.collectives import collectives
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.planning.estimate import estimate
from moe_jax.routing.losses import LoadBalance, RoutingLosses
from moe_jax.training.build import build
from moe_jax.training.evaluation import depth_report
from moe_jax.training.parameters import group_of
from moe_jax.training.rules import cross_check, warnings
from tests.drawn import some
from tests.training.experiments import experiment
from tests.training.programs import program_of
from tests.training.steps import MIXTRAL, B, S, gap, make, raw_batch

DEPTH = MixtureOfDepths(every=2, capacity=0.25)
C = 8
# A balance of each row: a loss that would see the choice of other rows.
MOE = dataclasses.replace(
    MIXTRAL,
    group_size=None,
    losses=RoutingLosses(load_balance=LoadBalance(coefficient=0.1, scope="row")),
)


def one_step(moe=MOE, **options):
    step, state = make(moe, optimizer=optax.sgd(1.0), depth=DEPTH, **options)
    after, result = jax.jit(step.train)(state, raw_batch(), {})
    return jax.device_get((after.params, result.loss, result.sums.depth, result.sums.traffic))


@pytest.fixture(scope="module")
def on_one_device():
    return one_step()


def test_what_is_counted(on_one_device):
    """Layer 1 alone; of row 7 only 5 tokens are valid, so no more take part."""
    _, _, depth, traffic = on_one_device
    segments = raw_batch()["segments"][:, :-1]
    np.testing.assert_array_equal(depth.valid, [(segments > 0).sum()])
    np.testing.assert_array_equal(depth.chosen, [15 * C + 5])
    served = traffic.accepted_E.sum(1)
    np.testing.assert_array_equal(served, [2 * (segments > 0).sum(), 2 * (15 * C + 5)])


DEPTH_MESHES = {
    "data": MeshConfig(data=8),
    "expert": MeshConfig(data=2, expert=4),
    "fsdp expert tensor": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
    "fsdp tensor": MeshConfig(data=1, fsdp=4, tensor=2),
}


@pytest.mark.grid
@pytest.mark.parametrize("name", some(DEPTH_MESHES, ["fsdp expert tensor"]))
def test_mesh(name, on_one_device):
    params, loss, depth, traffic = one_step(mesh=DEPTH_MESHES[name])
    np.testing.assert_allclose(loss, on_one_device[1], rtol=1e-5)
    assert gap(params, on_one_device[0]) < 2e-5
    np.testing.assert_array_equal(depth.chosen, on_one_device[2].chosen)
    np.testing.assert_array_equal(traffic.accepted_E, on_one_device[3].accepted_E)


@pytest.mark.grid
def test_accumulation_and_recomputation(on_one_device):
    for options in (dict(accumulation=4), dict(remat="full")):
        params, loss, depth, _ = one_step(**options)
        np.testing.assert_allclose(loss, on_one_device[1], rtol=1e-5)
        assert gap(params, on_one_device[0]) < 2e-5
        np.testing.assert_array_equal(depth.chosen, on_one_device[2].chosen)


def test_metrics(on_one_device):
    sums = types.SimpleNamespace(depth=on_one_device[2])
    layout = layout_of(2, MOE, DEPTH)
    found = depth_report(types.SimpleNamespace(layout=layout), sums)
    valid = (raw_batch()["segments"][:, :-1] > 0).sum()
    assert found["depth/passed_fraction"] == pytest.approx(1 - (15 * C + 5) / valid)
    assert found["depth/layer_01/weight"] == found["depth/weight"] > 0
    assert set(found) == {
        f"depth/{layer}{name}"
        for layer in ("", "layer_01/")
        for name in ("passed_fraction", "weight")
    }
    assert depth_report(None, types.SimpleNamespace(depth=None)) == {}


def test_layouts_of_two_periods():
    """Each layer once, in its order, of its kinds; the pattern is their least common multiple."""
    for layers, every, first, deep, start in itertools.product(
        (1, 4, 7, 12), (0, 1, 2, 3), (0, 1, 4), (0, 1, 2), (0, 1, 3)
    ):
        depth = MixtureOfDepths(every=deep, first=start)
        moe = MoEConfig(every=every, first=first)
        layout = layout_of(layers, moe, depth)
        assert layout.moe_layers == (tuple(range(first, layers, every)) if every else ())
        assert layout.depth_layers == (tuple(range(start, layers, deep)) if deep else ())
        order = [stack.first for stack in layout.prologue]
        repeats = {stack.count for stack in layout.pattern} or {0}
        for i in range(repeats.pop()):
            order += [stack.layers[i] for stack in layout.pattern]
        assert order == list(range(layers))
        for stack in layout.stacks:
            assert {depth.chooses_in(layer) for layer in stack.layers} == {stack.depth}
    layout = layout_of(12, MoEConfig(every=3), MixtureOfDepths(every=2))
    assert (len(layout.prologue), len(layout.pattern)) == (0, 6)


MODEL = DecoderConfig(
    vocab_size=24, num_layers=4, model_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24
)


def test_counts_by_hand():
    """Raposo et al. section 3.1: with half of the tokens the products of queries and keys take
    25 % of their FLOPs. All else in such a block takes its share of the tokens."""
    dense = MoEConfig(every=0)
    plain = count(MODEL, dense, IO(length=64))
    half = count(
        dataclasses.replace(MODEL, depth=MixtureOfDepths(every=2, capacity=0.5)),
        dense,
        IO(length=64),
    )
    assert half.attention_flops == plain.attention_flops * (2 + 2 * 0.25) / 4
    layer = 16 * 4 * (2 * 4 + 2 * 2) + 3 * 16 * 24
    assert half.matmul_flops == plain.matmul_flops - 6 * (2 * layer * 0.5 - 2 * 16)
    assert half.total == plain.total + 2 * 16
    assert half.router == 2 * 16
    sparse = MoEConfig(num_experts=4, expert_dim=12)
    eighth = count(
        dataclasses.replace(MODEL, depth=MixtureOfDepths(every=2)), sparse, IO(length=64)
    )
    layer = 16 * 4 * (2 * 4 + 2 * 2) + 2 * 3 * 16 * 12 + 4 * 16
    before = count(MODEL, sparse, IO(length=64))
    assert eighth.matmul_flops == before.matmul_flops - 6 * (2 * layer * 7 / 8 - 2 * 16)
    assert eighth.router == before.router + 2 * 16


def test_router_is_of_the_routers_group():
    step, state = make(MOE, depth=DEPTH)
    assert state.params["layers"]["01"]["router"]["kernel"].shape == (1, 16, 1)
    assert "router" not in state.params["layers"]["00"]
    assert group_of("layers/01/router/kernel") == "router"
    assert flat(step.network.forms)["layers/01/router/kernel"].sizes((1, 16, 1)) == (16, 1)


@pytest.mark.grid
def test_bytes_over_expert_are_those_of_the_compiled_step():
    """One layer sends the rows of all tokens, the other those of the chosen."""
    base = program_of("data 2, expert 4").experiment
    deep = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, depth=DEPTH),
        moe=dataclasses.replace(base.moe, group_size=None),
    )
    program = build(deep, ByteTokenizer())

    def rows(*shape):
        return jax.ShapeDtypeStruct(shape, np.int32, sharding=program.batch_sharding)

    raw = {"tokens": rows(B, S + 1), "segments": rows(B, S + 1), "row": rows(B)}
    text = (
        program.train_step.lower(program.abstract_state, raw, program.scalars(0))
        .compile()
        .as_text()
    )
    sizes = {}
    for c in collectives(text, program.mesh):
        if c.op == "all-to-all" and c.arrays[0][0] == "f32":
            sizes[c.bytes_sent] = sizes.get(c.bytes_sent, 0) + c.times
    assert sorted(sizes.values()) == [4, 4]
    (message,) = (t.bytes_sent for t in estimate(deep, 8).traffic if t.what == "tokens to experts")
    assert message == sum(size * times for size, times in sizes.items())
    assert max(sizes) / min(sizes) == 4
    found = estimate(deep, 8)  # rows have no empty slots, nothing is computed twice
    assert found.hardware_flops == found.counts.flops_per_token * B * S / 8


def test_generation_is_refused():
    run = types.SimpleNamespace(config=experiment(model__depth=DEPTH), tokenizer=None)
    with pytest.raises(UserError, match=r"config\.model\.depth"):
        LoadedRun.generate(run, "Once")


def test_rules():
    whole = dict(model__depth=DEPTH, mesh=MeshConfig(data=16), moe__group_size=None)
    good = experiment(**whole, batch_size=32)
    assert cross_check(good, 16) == []
    dense = experiment(**whole, batch_size=32, moe__every=0)
    assert cross_check(dense, 16) == []
    for e in (good, dense):
        assert "which tokens take part" in " ".join(warnings(e)) and not e.model.causal
    assert "which tokens" not in " ".join(warnings(experiment()))
    late = dataclasses.replace(DEPTH, first=4)
    for changes, path, message in (
        (dict(moe__group_size=64, moe__every=1), "moe.group_size", "must be none"),
        (dict(model__depth=late), "model.depth.first", "num_layers = 4"),
    ):
        (problem,) = cross_check(experiment(**(whole | changes), batch_size=32), 16)
        assert problem.path == path and message in str(problem)
    # Sparse layers 0 and 2, depths 1 and 3: groups stay groups.
    per_member = experiment(**(whole | dict(moe__group_size=32)), batch_size=32)
    assert cross_check(per_member, 16) == []
    cut = experiment(
        **(whole | dict(mesh=MeshConfig(data=1, sequence=2), moe__every=0)), batch_size=32
    )
    (problem,) = cross_check(cut, 2)
    assert problem.path == "model.depth.every" and "mesh.sequence = 1, not 2" in str(problem)
