"""The compiled training step of a run, on every mesh: where arrays lie, what is sent, what memory
it takes. The program is the one that `moe_jax.train` runs."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from moe_jax.parallel.mesh import AXES
from tests.drawn import some
from tests.training.programs import (
    FACTOR,
    LAYERS,
    MESHES,
    B,
    D,
    E,
    F,
    K,
    T,
    compiled,
    exchanges,
    moves_no_weight,
    program_of,
    sent,
)
from tests.training.steps import S

FULL = "fsdp 2, expert 2, tensor 2"


@pytest.mark.grid
@pytest.mark.parametrize("mesh", MESHES)
def test_every_array_of_the_state_lies_where_the_rules_say(mesh):
    """Parameters and both moments, after the compiled step: none is silently replicated."""
    program, sizes = program_of(mesh), dict.fromkeys(AXES, 1) | MESHES[mesh]
    state_out, _ = compiled(mesh).output_shardings
    state = program.abstract_state
    flat = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), where in zip(flat, jax.tree.leaves(state_out), strict=True):
        assert where.is_equivalent_to(leaf.sharding, leaf.ndim), jax.tree_util.keystr(path)
    split = sizes["fsdp"] * sizes["tensor"]
    rules = dict.fromkeys(("w_gate", "w_up", "w_down"), split * sizes["expert"])
    rules |= dict.fromkeys(("wq", "wk", "wv", "wo", "embedding", "head"), split)
    rules |= {"kernel": sizes["fsdp"], "scale": 1}
    seen = []
    for path, leaf in flat:
        if leaf.ndim == 0 or "params" not in jax.tree_util.keystr(path[:1]):
            continue
        name = path[-1].key
        share = leaf.size // math.prod(leaf.sharding.shard_shape(leaf.shape))
        assert share == rules[name], (jax.tree_util.keystr(path), share)
        seen.append(leaf)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    placed = [(leaf.shape, str(leaf.sharding.spec)) for leaf in seen]
    assert sorted((m.shape, str(m.sharding.spec)) for m in moments) == sorted(2 * placed)


@pytest.mark.parametrize("mesh", some(MESHES, ["data 2, expert 4", FULL]))
def test_exchanges_of_rows_are_those_of_the_formula(mesh):
    """2 all-to-alls forward and 2 backward a layer, of n * ceil(factor * M / n) rows of D / tensor
    columns; one of counts; weights over fsdp alone."""
    found = sent(mesh)
    moves_no_weight(found)
    sizes = dict.fromkeys(AXES, 1) | MESHES[mesh]
    n = sizes["expert"]
    M = B * S * K // (8 // sizes["tensor"])
    columns = D // (sizes["tensor"] if n > 1 else 1)
    rows = n * min(M, math.ceil(FACTOR * M / n)) * columns * 4
    assert exchanges(found) == ({rows: 4 * LAYERS} if n > 1 else {})
    counts = [c for c in found if c.op == "all-to-all" and c.arrays[0][0] == "s32"]
    assert {c.result_bytes for c in counts} == ({E * 4} if n > 1 else set())
    weights = [c for c in found if any({F, F // 2} & set(shape) for _, shape in c.arrays)]
    gathered = [c for c in weights if c.op == "all-gather"]
    assert all(c.axes == {"fsdp"} for c in gathered)
    assert bool(gathered) == (sizes["fsdp"] > 1)


def test_exchanges_of_slots():
    C = T * K // E
    found = sent("data 2, expert 4", "slots_scatter")
    moves_no_weight(found)
    groups = B * S // T // 8
    assert exchanges(found) == {groups * E * C * D * 4: 4 * LAYERS}


@pytest.mark.grid
def test_exchanges_of_gather():
    """All-gathers of tokens and reduce-scatters of outputs, forward and backward; weights of the
    plan and their gradients beside them."""
    found = sent("data 2, expert 4", "rows", "gather")
    moves_no_weight(found)
    tokens = B * S // 8
    assert not exchanges(found)
    gathers = exchanges(found, "all-gather")
    assert gathers.pop(4 * tokens * D * 4) == 2 * LAYERS
    assert max(gathers) == 4 * tokens * K * 4  # combine weights


@pytest.mark.grid
def test_recomputation_communicates_again_unless_rows_are_kept():
    """Full: 2 more all-to-alls a layer. Rows kept by name: none more."""
    mesh = "data 2, expert 4"
    (none,) = exchanges(sent(mesh)).values()
    assert none == 4 * LAYERS
    for remat, times in (("received", 4), ("expert_hidden", 4), ("full", 6)):
        (found,) = exchanges(sent(mesh, remat=remat)).values()
        assert found == times * LAYERS, remat


@pytest.mark.grid
def test_memory_falls_as_the_expert_axis_grows():
    """Experts that dominate: temporary memory, and the state, of one device."""
    meshes = ("data 8", "data 4, expert 2", "data 2, expert 4", "expert 8")
    found = [compiled(mesh, expert_dim=220).memory_analysis() for mesh in meshes]
    for field in ("temp_size_in_bytes", "argument_size_in_bytes"):
        sizes = [getattr(memory, field) for memory in found]
        assert sizes == sorted(set(sizes), reverse=True), (field, sizes)


def test_the_vocabulary_stays_split():
    """Embedding and head are gathered over `fsdp` at most, V / tensor rows of them."""
    V = program_of(FULL).experiment.model.vocab_size
    for c in sent(FULL):
        assert all(V not in shape for _, shape in c.arrays), c


@pytest.mark.grid
def test_attention_gathers_keys_and_values_over_sequence():
    """Over `sequence` go K and V and sums of gradients, no logits and no queries."""
    N, M, H = 4, 2, 4
    sequence = 2
    moved = [c for c in sent("expert 4, sequence 2") if c.axes == {"sequence"}]
    gathers = [c for c in moved if c.op == "all-gather" and c.arrays[0][0] == "f32"]
    rows = B // 4
    assert gathers
    for c in gathers:
        assert c.result_bytes <= rows * S * 2 * M * H * 4, c
    assert not any(
        math.prod(shape) >= rows * N * S * S // sequence for c in moved for _, shape in c.arrays
    )
    assert np.sum([c.times for c in gathers]) >= 2 * LAYERS
