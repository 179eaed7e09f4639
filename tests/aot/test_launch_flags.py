"""The TPU compiler knows the flags that launchers set."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import pytest

from moe_jax.planning.hardware import topology_of
from moe_jax.planning.topologies import absent_devices

xla_flags = importlib.import_module("launch.xla_flags")
FLAGS = {flag.name: flag.value for flag in (*xla_flags.TPU, *xla_flags.TPU_SLICES)}


def lowered():
    device = absent_devices(topology_of("v5e:2x2"))[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    shape = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=sharding)
    return jax.jit(lambda x: x @ x).lower(shape)


def test_every_flag_is_known():
    lowered().compile(compiler_options=FLAGS)


def test_an_unknown_flag_is_refused():
    with pytest.raises(Exception, match="No such compile option"):
        lowered().compile(compiler_options={"xla_tpu_no_such_flag": "true"})
