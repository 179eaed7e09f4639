"""The mesh axes that a sparse layer works with, by what it uses them for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Int

from moe_jax.parallel.mesh import ROW_AXES


@dataclass(frozen=True, kw_only=True)
class MeshAxes:
    """Names of a mesh's axes; None, or (): nothing is split so.

    rows: over which the rows of a batch are split. sequence: the positions of a row. expert: the
    experts; rows are split over it too. tensor: the hidden width F of an expert. fsdp: the width D
    of an expert's matrices, gathered before use; rows are split over it too.
    """

    rows: tuple[str, ...] = ()
    sequence: str | None = None
    expert: str | None = None
    tensor: str | None = None
    fsdp: str | None = None

    @property
    def tokens(self) -> PartitionSpec:
        """Of (rows, positions, ...)."""
        return PartitionSpec(self.rows or None, self.sequence)

    @property
    def by_row(self) -> PartitionSpec:
        return PartitionSpec(self.rows or None)

    def names(self) -> tuple[str, ...]:
        """All axes that are used."""
        others = (self.sequence, self.expert, self.tensor, self.fsdp)
        return tuple(dict.fromkeys((*self.rows, *(name for name in others if name is not None))))

    def there(self, names: Collection[str]) -> MeshAxes:
        """As far as a mesh has these names."""

        def known(name: str | None) -> str | None:
            return name if name in names else None

        return MeshAxes(
            rows=tuple(name for name in self.rows if name in names),
            sequence=known(self.sequence),
            expert=known(self.expert),
            tensor=known(self.tensor),
            fsdp=known(self.fsdp),
        )

    def with_all_rows(self) -> MeshAxes:
        """Rows are split over the axes of experts and of fsdp too."""
        others = [name for name in (self.fsdp, self.expert) if name is not None]
        return replace(self, rows=tuple(dict.fromkeys((*self.rows, *others))))

    def of_weights(self, logical: tuple[str | None, ...]) -> PartitionSpec:
        """Of an expert's weight by the logical names of its axes."""
        names = {"expert": self.expert, "embed": self.fsdp, "mlp": self.tensor}
        return PartitionSpec(*(names.get(name or "") for name in logical))


@dataclass(frozen=True, kw_only=True)
class Place:
    """A mesh, which may be the abstract one of `jax.set_mesh`, and what its axes are for. No mesh:
    nothing is split, and no shard_map is needed."""

    mesh: Mesh | AbstractMesh | None = None
    axes: MeshAxes = MeshAxes()

    @property
    def platform(self) -> str | None:
        """Of its devices, which may be absent ones; None: of those that JAX runs on."""
        return self.mesh.devices.flat[0].platform if isinstance(self.mesh, Mesh) else None


# Those of the mesh that moe_jax makes for its own runs.
OURS = MeshAxes(rows=ROW_AXES, sequence="sequence", expert="expert", tensor="tensor", fsdp="fsdp")


def axis_size(name: str | None) -> int:
    """Devices along an axis, inside a shard_map; 1 where there is none."""
    return 1 if name is None else int(jax.lax.axis_size(name))


def axis_index(name: str | None) -> Int[Array, ""] | int:
    """Which of them this device is; 0 where there is none."""
    return 0 if name is None else jax.lax.axis_index(name)
