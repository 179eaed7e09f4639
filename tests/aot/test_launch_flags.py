"""The TPU compiler knows the flags that launchers set."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_jax.planning.hardware import topology_of
from moe_jax.planning.topologies import absent_devices, prepare_environment

prepare_environment()
xla_flags = importlib.import_module("launch.xla_flags")
FLAGS = {flag.name: flag.value for flag in (*xla_flags.TPU, *xla_flags.TPU_SLICES)}


def lowered(topology: str):
    """Two exchanges, each of which could run beside a product, within halves of a slice."""
    devices = np.array(absent_devices(topology_of(topology))).reshape(2, -1)
    mesh = Mesh(devices, ("data", "expert"))
    rows = P(("data", "expert"))

    def program(x, y, w):
        there = jax.lax.all_to_all(x, "expert", 0, 0, tiled=True)
        return there @ w, jax.lax.all_to_all(y @ w, "expert", 0, 0, tiled=True)

    mapped = jax.shard_map(program, mesh=mesh, in_specs=(rows, rows, P()), out_specs=(rows, rows))

    def shape(spec, *sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    x = shape(rows, devices.size**2, 2048)
    return jax.jit(mapped).lower(x, x, shape(P(), 2048, 2048))


@pytest.mark.parametrize("topology", ["v5e:8x8", "v5p:4x4x4", "v6e:8x8"])
def test_every_flag_is_known_and_possible(topology):
    lowered(topology).compile(compiler_options=FLAGS)


def test_what_is_possible_on_some_chips_is_an_option_of_the_program():
    with pytest.raises(Exception, match="not supported on limited ICI"):
        lowered("v5e:8x8").compile(compiler_options={"xla_tpu_enable_async_all_to_all": "true"})


def test_an_unknown_flag_is_refused():
    with pytest.raises(Exception, match="No such compile option"):
        lowered("v5e:2x2").compile(compiler_options={"xla_tpu_no_such_flag": "true"})
