"""What an optimizer does with each parameter, as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax

from moe_jax.config.errors import ConfigError
from moe_jax.models.network import Network, flat
from moe_jax.nn.param import Form
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.training.experiment import Experiment
from moe_jax.training.optimizer import Optimizer
from moe_jax.training.parameters import group_of
from moe_jax.training.rules import cross_check

HEADER = ("parameter", "shape", "group", "one of its parts", "decay", "rate", "optimizer")


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One parameter. decay: its weight decay, with the group's multiplier; rate: the group's
    multiplier of the learning rate; both 0 where the group is frozen."""

    path: str
    shape: tuple[int, ...]
    group: str
    form: Form
    decay: float
    rate: float
    description: str

    @property
    def part(self) -> str:
        """Of what the parameter is a stack."""
        rows, columns = self.form.sizes(self.shape)
        if self.form.is_matrix:
            return f"{rows:,} x {columns:,}"
        return f"vector of {columns:,}" if columns > 1 else "scalar"


def optimizer_table(config: Optimizer, network: Network) -> list[TableRow]:
    """A line for each parameter, in the order of their paths."""
    found = []
    forms = flat(network.forms)
    for path, leaf in flat(network.abstract).items():
        form, name = forms[path], group_of(path)
        group = getattr(config.groups, name)
        decay = config.weight_decay * group.weight_decay_multiplier * form.decays
        line = TableRow(
            path=path,
            shape=leaf.shape,
            group=name,
            form=form,
            decay=0.0 if group.frozen else decay,
            rate=0.0 if group.frozen else group.learning_rate_multiplier,
            description="frozen" if group.frozen else config.description(path, form, leaf.shape),
        )
        found.append(line)
    return found


def table_of(experiment: Experiment) -> list[TableRow]:
    """The table of a config, on whatever mesh it will run. ConfigError for a broken one."""
    # A line for each stack of layers.
    looped = replace(experiment.model, unrolled_layers=0)
    alone = replace(experiment, mesh=MeshConfig(), model=looped)
    if problems := cross_check(alone, 1):
        raise ConfigError(problems)
    mesh = make_mesh(alone.mesh, jax.devices()[:1])
    network = Network(lambda rngs: alone.model.build(alone.moe, alone.io, mesh, rngs=rngs), mesh)
    return optimizer_table(alone.optimizer, network)


def as_text(lines: Sequence[TableRow]) -> str:
    """The table in columns; no decay: -."""
    cells = [HEADER] + [
        (
            line.path,
            " x ".join(f"{size:,}" for size in line.shape),
            line.group,
            line.part,
            f"{line.decay:g}" if line.form.decays else "-",
            f"{line.rate:g}",
            line.description,
        )
        for line in lines
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
