"""The mesh: sizes, and which devices stand together."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from moe_jax.config.errors import UserError
from moe_jax.parallel.mesh import (
    MeshConfig,
    SlowLinks,
    device_grid,
    make_mesh,
    with_trivial_axes,
)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a slice, as far as a mesh looks at it."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "chip"


def chips(slices, each):
    return [Chip(i, i // each, i // each) for i in range(slices * each)]


def numbers(config, devices):
    return np.vectorize(lambda device: device.id)(device_grid(config, devices))


def test_one_axis_takes_what_remains():
    assert MeshConfig(data=-1, expert=4).sizes(8)["data"] == 2
    assert MeshConfig(data=2, expert=-1, tensor=2).sizes(16)["expert"] == 4
    with pytest.raises(UserError, match=r"data=3 .* = 3, but there are 8 devices"):
        MeshConfig(data=3).sizes(8)
    rules = dict(MeshConfig(data=-1, expert=-1, tensor=0, fsdp=3, slow=SlowLinks(fsdp=2)).check())
    assert set(rules) == {"data", "tensor", "fsdp"} and "3 = 1 x 2 + 1" in rules["fsdp"]


def test_devices_of_a_slice_stay_together():
    """data = 4 over 2 slices: the outer half of the axis is the slice; experts stay inside."""
    config = MeshConfig(data=4, expert=4, slow=SlowLinks(data=2))
    grid = device_grid(config, chips(2, 8)).reshape(4, 4)
    slices = np.vectorize(lambda chip: chip.slice_index)(grid)
    np.testing.assert_array_equal(slices, [[0] * 4] * 2 + [[1] * 4] * 2)
    assert len(set(numbers(config, chips(2, 8)).reshape(-1))) == 16


def test_an_axis_across_slices():
    config = MeshConfig(data=2, expert=8, slow=SlowLinks(expert=4))
    grid = device_grid(config, chips(4, 4)).reshape(2, 8)
    slices = np.vectorize(lambda chip: chip.slice_index)(grid)
    np.testing.assert_array_equal(slices, [[0, 0, 1, 1, 2, 2, 3, 3]] * 2)


def test_hosts_stand_for_slices_where_there_are_none():
    devices = [Chip(i, 0, process_index=i // 4) for i in range(8)]
    config = MeshConfig(data=2, expert=4, slow=SlowLinks(data=2))
    grid = device_grid(config, devices).reshape(2, 4)
    hosts = np.vectorize(lambda chip: chip.process_index)(grid)
    np.testing.assert_array_equal(hosts, [[0] * 4, [1] * 4])
    with pytest.raises(UserError, match="slow: data=2, but the devices form 1 process"):
        make_mesh(config, jax.devices())


def test_plain_order_elsewhere():
    np.testing.assert_array_equal(
        numbers(MeshConfig(data=2, expert=4), jax.devices()).reshape(2, 4),
        np.arange(8).reshape(2, 4),
    )


def test_axes_of_one_device_are_not_summed_over():
    """Mentioned, they change no layout, and a gradient has no sum over them."""
    mesh = make_mesh(MeshConfig(data=2, expert=4))
    spec = PartitionSpec("expert", None, "tensor")
    mentioned = with_trivial_axes(spec, mesh)
    assert mentioned == PartitionSpec(("expert", "fsdp", "sequence"), None, "tensor")
    assert with_trivial_axes(PartitionSpec(None), mesh)[0] == ("fsdp", "tensor", "sequence")
    x = jnp.arange(8.0).reshape(4, 1, 2)

    def summed_axes(spec):
        loss = jax.shard_map(
            lambda x: jnp.sum(x**2, keepdims=True),
            mesh=mesh,
            in_specs=spec,
            out_specs=PartitionSpec("expert", None, "data"),
            check_vma=False,
        )
        gradient = jax.grad(lambda x: jnp.sum(loss(x)))
        np.testing.assert_array_equal(gradient(x), 4 * x)
        return re.findall(r"axes=\(('[^)]*)\)", str(jax.make_jaxpr(gradient)(x)))

    (of_spec,), (of_mentioned,) = summed_axes(spec), summed_axes(mentioned)
    assert "fsdp" in of_spec
    assert of_mentioned == "'data',"
