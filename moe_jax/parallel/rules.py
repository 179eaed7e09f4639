"""One table from logical array axes to mesh axes. Nothing is replicated without a row here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe_jax.config.errors import UserError
from moe_jax.parallel.mesh import ROW_AXES, axis_names

MeshAxes = str | tuple[str, ...] | None

RULES: Mapping[str, MeshAxes] = {
    # parameters
    "expert": "expert",
    "embed": "fsdp",
    "mlp": "tensor",
    "latent": "tensor",  # of the projections around latent experts; inside experts it is "embed"
    "heads": "tensor",
    "kv_heads": "tensor",
    "vocab": "tensor",
    "head_dim": None,
    "norm": None,
    "layers": None,  # the stack that scan runs over
    "router_embed": None,  # routers are small and needed whole on every device
    "router_expert": None,
    # activations
    "batch": ROW_AXES,
    "position": "sequence",
    "model": None,
}


def partition_spec(
    mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int], name: str = "array"
) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions have the logical names `axes`.

    Raises UserError on an unknown name, on two dimensions on one mesh axis, and where the mesh
    axes' size does not divide the dimension (with the arithmetic).
    """
    if len(axes) != len(shape):
        raise UserError(f"{name}: {len(shape)} dimensions {tuple(shape)}, but axes {tuple(axes)}")
    used: set[str] = set()
    spec: list[MeshAxes] = []
    for logical, size in zip(axes, shape, strict=True):
        if logical is not None and logical not in RULES:
            raise UserError(f"{name}: no sharding rule for the axis {logical!r}")
        target = RULES[logical] if logical is not None else None
        for axis in axis_names(target):
            if axis in used:
                raise UserError(f"{name}: two dimensions on the mesh axis {axis!r} ({axes})")
            used.add(axis)
        parts = mesh_size(mesh, target)
        if size % parts:
            raise UserError(
                f"{name}: dimension {logical!r} of size {size} is not divisible by mesh axis "
                f"{target!r} of size {parts} ({size} = {size // parts} x {parts} + {size % parts})"
            )
        spec.append(target)
    return PartitionSpec(*spec)


def mesh_size(mesh: Mesh, axes: MeshAxes) -> int:
    """The number of shards over one or several mesh axes."""
    size = 1
    for axis in axis_names(axes):
        size *= mesh.shape[axis]
    return size


def sharding(
    mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int], name: str = "array"
) -> NamedSharding:
    """The NamedSharding of an array by its logical axes; raises as `partition_spec`."""
    return NamedSharding(mesh, partition_spec(mesh, axes, shape, name))
