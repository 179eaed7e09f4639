"""Sums of bfloat16 runs are kept in float32: of every router, layer kind and optimizer, in the
traced and in the compiled step."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.checking.accumulators import NarrowSum, narrow_sums
from moe_jax.checking.shrink import shrink
from moe_jax.checking.trial import program_of, synthetic_rows
from moe_jax.config.overrides import load_config
from moe_jax.ops.embedding import rows_of_table
from moe_jax.parallel.collectives import collectives
from moe_jax.parallel.compiler import quick_options
from moe_jax.routing import ROUTERS
from moe_jax.training.experiment import Experiment
from moe_jax.training.optimizer import OPTIMIZERS
from tests.drawn import some

# (file, function): why a sum of activations may be in their own type. All are sums over few
# devices, of values that are rounded to that type before and after.
ALLOWED = {
    ("moe_jax/nn/moe_layer.py", "_on_the_mesh"): "the gradient of a layer's inputs over tensor",
    ("moe_jax/dispatch/sharded.py", "_split"): "the experts' partial sums over tensor",
    ("moe_jax/dispatch/sharded.py", "_whole"): "the gradient of received rows over tensor",
    ("moe_jax/dispatch/sharded.py", "sharded_dispatch"): "outputs and their gradients over tensor",
    ("moe_jax/dispatch/transport/gather.py", "gather"): "at most k of a token's terms are not 0",
}
FULL = ("mesh.data=1", "mesh.fsdp=2", "mesh.expert=2", "mesh.tensor=2")


@cache
def program(*overrides: str):
    """The check's small experiment in bfloat16, on as many devices as the mesh has."""
    pairs = tuple(text.split("=", 1) for text in overrides)
    experiment, _ = shrink(load_config("configs/quickstart.py", pairs, Experiment), steps=1)
    model = dataclasses.replace(experiment.model, dtype="bfloat16")
    experiment = dataclasses.replace(experiment, model=model)
    sizes = experiment.mesh.sizes(math.prod(int(v) for k, v in pairs if k.startswith("mesh.")))
    devices = jax.devices()[: math.prod(sizes.values())]
    built = program_of(experiment, devices)
    return built, built.put(synthetic_rows(experiment, 1)[0])


def found(*overrides: str) -> Counter[NarrowSum]:
    built, batch = program(*overrides)
    return narrow_sums(
        jax.make_jaxpr(built.step.train)(built.abstract_state, batch, built.scalars(0))
    )


def named(sums: Counter[NarrowSum]) -> set[tuple[str, str]]:
    return {(found.file, found.function) for found in sums}


@pytest.mark.parametrize("router", some(ROUTERS, list(ROUTERS)[::6]))
def test_every_router(router: str):
    layout = "slots_einsum" if ROUTERS[router].soft else "rows"
    assert not named(found("mesh.data=1", f"moe.router.kind={router}", f"moe.layout={layout}"))


SETTINGS_OF_KINDS = [
    ("moe.latent_dim=8", "moe.num_shared=1"),
    ("moe.every=0",),
    ("model.depth.every=2", "model.unrolled_layers=0"),
    ("moe.ensemble=2", "moe.num_experts=8"),
    ("accumulation=2", "model.remat=full"),
    ("model.logits_chunks=2", "model.tie_embeddings=True", "model.qk_norm=True"),
    ("moe.layout=slots_einsum", "moe.capacity_factor=1.25"),
    ("moe.layout=slots_scatter", "moe.router.kind=expert_choice"),
    ("moe.matmul=ragged_dot", "model.activation=gelu"),
    ("moe.matmul=batched",),
    ("moe.matmul=megablox",),
    ("moe.matmul=triton",),
    *((f"optimizer.kind={name}",) for name in OPTIMIZERS),
]


@pytest.mark.parametrize("settings", some(SETTINGS_OF_KINDS, SETTINGS_OF_KINDS[::4]), ids=" ".join)
def test_every_layer_kind_and_optimizer(settings: tuple[str, ...]):
    assert not named(found("mesh.data=1", *settings))


@pytest.mark.parametrize("transport", ["all_to_all", "gather", "ragged"])
def test_on_a_mesh_only_activations_are_summed_in_their_own_type(transport: str):
    sums = found(*FULL, f"moe.transport={transport}", "moe.latent_dim=8", "moe.num_shared=1")
    assert named(sums) <= set(ALLOWED)


def test_the_allowed_ones_are_there():
    """Else the list above is stale."""
    sums = found(*FULL, "moe.transport=gather", "moe.latent_dim=8", "moe.num_shared=1")
    sums += found(*FULL[:-1], "mesh.tensor=2", "moe.transport=all_to_all")
    sums += found("mesh.data=1", "mesh.expert=1", "mesh.tensor=2")
    assert named(sums) == set(ALLOWED)
    assert all(found.terms == 2 for found in sums)


def test_gradients_of_parameters_cross_devices_in_float32():
    """What the partitioner adds is only in the compiled step."""
    built, batch = program("mesh.data=2", "mesh.fsdp=2", "mesh.expert=2")
    lowered = jax.jit(
        built.step.train, donate_argnums=0, out_shardings=(built.state_shardings, None)
    ).lower(built.abstract_state, batch, built.scalars(0))
    compiled = lowered.compile(compiler_options=quick_options(built.mesh))
    sums = [
        c
        for c in collectives(compiled.as_text(), built.mesh)
        if c.op in ("all-reduce", "reduce-scatter")
    ]
    assert sums and {dtype for c in sums for dtype, _ in c.arrays} <= {"f32", "s32", "pred", "u32"}


def test_what_the_walk_finds():
    """Each kind of sum, in bfloat16 and in float32."""

    def sums(x, w, index):
        total = jnp.zeros((4, 8), x.dtype).at[index].add(x)
        last, _ = jax.lax.scan(lambda c, row: (c + row, None), x[0], x)
        mixed = jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=x.dtype)
        _, of_copies = jax.vjp(lambda row: jnp.broadcast_to(row, x.shape), x[0])
        return total, last, of_copies(x), mixed

    index = np.zeros(16, np.int32)
    w = jnp.ones((8, 8), jnp.float32)
    narrow = narrow_sums(jax.make_jaxpr(sums)(jnp.ones((16, 8), jnp.bfloat16), w, index))
    assert {found.primitive: found.terms for found in narrow} == {
        "scatter-add": 128,
        "scan carry": 16,
        "reduce_sum": 16,
        "dot_general": 0,
    }
    assert {found.dtype for found in narrow} == {"bfloat16"}
    assert not narrow_sums(jax.make_jaxpr(sums)(jnp.ones((16, 8), jnp.float32), w, index))


def test_an_embedding_counts_thousands_of_tokens():
    """4,096 equal ids: with sums in bfloat16 the gradient was 256."""
    ids = jnp.full(4096, 1)

    def total(table_VD):
        return jnp.sum(rows_of_table(table_VD, ids, jnp.bfloat16).astype(jnp.float32))

    gradient = jax.grad(total)(jnp.ones((4, 8)))
    np.testing.assert_array_equal(gradient, np.array([0, 4096, 0, 0])[:, None] * np.ones((1, 8)))
