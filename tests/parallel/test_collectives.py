"""Collectives read off HLO, against programs whose traffic is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from moe_jax.parallel.collectives import collectives, groups_of

MESH = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def compiled(body, shape=(8, 16)):
    spec = PartitionSpec(("a", "b"))
    function = jax.shard_map(body, mesh=MESH, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((shape[0] * 8, *shape[1:]), jnp.float32)
    return jax.jit(function).lower(x).compile().as_text()


def test_each_operation_its_axes_and_bytes():
    """Of an (8, 16) float32 shard, 512 bytes."""

    def body(x):
        x = jax.lax.all_to_all(x, "b", 0, 0, tiled=True)
        x = jax.lax.psum(x, "a")
        x = jax.lax.all_gather(x, "b", tiled=True)
        x = jax.lax.psum_scatter(x, ("a", "b"), tiled=True)
        return jax.lax.ppermute(x, "a", [(0, 1), (1, 0)])

    found = {c.op: c for c in collectives(compiled(body), MESH)}
    axes = {op: set(c.axes) for op, c in found.items()}
    assert axes.pop("all-to-all") == {"b"} and found["all-to-all"].bytes_sent == 512 * 3 / 4
    assert axes.pop("all-gather") == {"b"} and found["all-gather"].bytes_sent == 512 * 3
    # 2048 bytes over 8 devices leave 256 on each.
    if "reduce-scatter" in axes:
        assert axes.pop("reduce-scatter") == {"a", "b"}
        assert found["reduce-scatter"].bytes_sent == 7 * 256
    assert axes.pop("collective-permute") == {"a"}
    assert found["collective-permute"].bytes_sent == 256
    assert axes.pop("all-reduce") == {"a"} and found["all-reduce"].bytes_sent == 512
    assert not axes
    assert all(c.times == 1 for c in found.values())


def test_loops_count():
    def inner(x, _):
        return jax.lax.psum(x, "a") / 2, None

    def outer(x, _):
        x, _ = jax.lax.scan(inner, x, length=5)
        return jax.lax.all_to_all(x, "b", 0, 0, tiled=True), None

    found = collectives(compiled(lambda x: jax.lax.scan(outer, x, length=3)[0]), MESH)
    times = {c.op: c.times for c in found}
    assert times == {"all-reduce": 15, "all-to-all": 3}


def test_groups_of_devices():
    """The same groups in six ways of writing them."""
    expected = [[0, 2], [1, 3], [4, 6], [5, 7]]
    for text in (
        "replica_groups={{0,2},{1,3},{4,6},{5,7}}, x",
        "replica_groups=[4,2]<=[2,2,2]T(0,2,1), x",
        "replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_1'}, x",
        "replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,2,2]T(0,2,1)) {'axis_1'}, x",
        "replica_groups=mesh['data'=2,'expert'=4] {'expert':(1)2}, x",
        "replica_groups=mesh['data'=2,'expert'=2,'tensor'=2] {'expert'}, x",
    ):
        np.testing.assert_array_equal(groups_of(text, 8), expected)
    np.testing.assert_array_equal(groups_of("replica_groups={}", 8), [np.arange(8)])
    parts = groups_of("replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}, x", 8)
    np.testing.assert_array_equal(parts, [[0, 2, 4, 6], [1, 3, 5, 7]])
    parts = groups_of("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, x", 8)
    np.testing.assert_array_equal(parts, [[0, 1], [2, 3], [4, 5], [6, 7]])


def test_split_operations_of_an_accelerator():
    """Starts of all-gathers carry their operand too; others wrap the operation in a computation."""
    hlo = """
%wrapped (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4] parameter(0)
  ROOT %a = bf16[8,4] all-to-all(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

ENTRY %main (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4] parameter(0)
  %g = (bf16[8,4], bf16[16,4]) all-gather-start(%p), replica_groups={{0,4},{1,5},{2,6},{3,7}}
  %gd = bf16[16,4] all-gather-done(%g)
  %s = ((bf16[8,4]), bf16[8,4]) async-start(%p), calls=%wrapped
  ROOT %d = bf16[8,4] async-done(%s), calls=%wrapped
}
"""
    gather, exchange = collectives(hlo, MESH)
    assert (gather.op, gather.axes, gather.size) == ("all-gather", {"a"}, 2)
    assert gather.bytes_sent == 16 * 4 * 2 / 2 and gather.asynchronous
    assert (exchange.axes, exchange.size, exchange.asynchronous) == ({"b"}, 4, True)


def test_trip_counts_come_from_the_condition_where_the_compiler_does_not_tell():
    """Two loops inside each other, 5 x 3, as the TPU compiler writes them."""
    text = """
%inner_cond (p: (s32[])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%i, %three), direction=LT
}
%inner (p: (s32[])) -> (s32[]) {
  %all-to-all.1 = f32[8,4]{1,0} all-to-all(%x), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}
%outer_cond (p: (s32[])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  ROOT %lt.1 = pred[] compare(%i, %five), direction=LT
}
%outer (p: (s32[])) -> (s32[]) {
  %while.1 = (s32[]) while(%t), condition=%inner_cond, body=%inner
}
%dynamic_cond (p: (s32[])) -> pred[] {
  ROOT %lt.2 = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (p: s32[]) -> (s32[]) {
  %while.2 = (s32[]) while(%t), condition=%outer_cond, body=%outer
  %while.3 = (s32[]) while(%t), condition=%dynamic_cond, body=%inner
}
"""
    found = collectives(text, MESH)
    assert sorted(c.times for c in found) == [1, 15]


def test_a_started_exchange_counts_its_results_alone():
    """As the GPU compiler writes it: 8 * 6 * 4 floats, of which 7 / 8 leave the device."""
    text = """
ENTRY %main (p: f32[8,6,4]) -> f32[8,6,4] {
  %a = ((f32[8,6,4]{2,1,0}), f32[8,6,4]{2,1,0}) all-to-all-start(%p), replica_groups={}
}
"""
    (found,) = collectives(text, MESH)
    assert (found.bytes_sent, found.asynchronous) == (7 * 6 * 4 * 4, True)


def test_a_started_exchange_and_the_products_beside_it():
    """As the TPU compiler writes it, with semaphores; the product after the end does not count."""
    text = """
%products (x: f32[8,8]) -> f32[8,8] {
  ROOT %c = f32[8,8]{1,0} convolution(%x, %x), dim_labels=bf_io->bf
}
ENTRY %main (p: f32[8,6,4], x: f32[8,8]) -> f32[8,8] {
  %a = ((f32[8,6,4]), f32[8,6,4], u32[], u32[]) all-to-all-start(%p), replica_groups={}
  %b = f32[8,8]{1,0} fusion(%x), kind=kOutput, calls=%products
  %d = f32[8,6,4]{2,1,0} all-to-all-done(%a)
  ROOT %e = f32[8,8]{1,0} dot(%b, %x)
}
"""
    (found,) = collectives(text, MESH)
    assert (found.bytes_sent, found.asynchronous, found.beside) == (7 * 6 * 4 * 4, True, 1)


def test_a_gather_fused_with_products_counts_once():
    """The TPU compiler names it in the fusion that starts it, in each one that runs beside it, and
    in the one that ends it."""
    text = """
%start (p: f32[2,4]) -> (f32[2,4], f32[16,4], u32[]) {
  %g.1 = f32[16,4]{1,0} all-gather(%p), replica_groups={}, dimensions={0}
  ROOT %s = (f32[2,4], f32[16,4]) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}
%async_collective_fusion.7 (p: f32[2,4], x: f32[8,8]) -> (f32[8,8], f32[16,4], u32[]) {
  %g.2 = f32[16,4]{1,0} all-gather(%p), replica_groups={}, dimensions={0}
  %c = f32[8,8]{1,0} convolution(%x, %x), dim_labels=bf_io->bf
  ROOT %t = (f32[8,8], f32[16,4], u32[]) tuple(%c, %g.2, %u)
}
%end (p: f32[2,4]) -> f32[16,4] {
  %g.3 = f32[16,4]{1,0} all-gather(%p), replica_groups={}, dimensions={0}
  ROOT %d = f32[16,4]{1,0} custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}
ENTRY %main (p: f32[2,4], x: f32[8,8]) -> f32[16,4] {
  %a = (f32[2,4], f32[16,4], u32[]) fusion(%p), kind=kCustom, calls=%start
  %a.1 = f32[16,4] get-tuple-element(%a), index=1
  %b = (f32[8,8], f32[16,4], u32[]) fusion(%a.1, %x), kind=kOutput, calls=%async_collective_fusion.7
  %b.1 = f32[16,4] get-tuple-element(%b), index=1
  ROOT %e = f32[16,4]{1,0} fusion(%b.1), kind=kCustom, calls=%end
}
"""
    (found,) = collectives(text, MESH)
    assert (found.op, found.times, found.asynchronous, found.beside) == ("all-gather", 1, True, 1)
    assert found.bytes_sent == 7 * 2 * 4 * 4


def test_a_reduce_scatter_as_a_fusion():
    """The TPU compiler writes it as an all-reduce of which each device keeps its part."""
    text = """
%all-reduce-scatter.4 (p: f32[256,512]) -> f32[32,512] {
  %r = f32[256,512]{1,0} all-reduce(%p), replica_groups={}, to_apply=%add
  ROOT %d = f32[32,512]{1,0} dynamic-slice(%r, %i, %z), dynamic_slice_sizes={32,512}
}
ENTRY %main (p: f32[256,512]) -> f32[32,512] {
  ROOT %f = f32[32,512]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.4
}
"""
    (found,) = collectives(text, MESH)
    assert (found.op, found.bytes_sent) == ("reduce-scatter", 7 * 32 * 512 * 4)
