"""Command: what a coefficient or a capacity factor of another codebase is in ours."""

from __future__ import annotations

import math
import sys

from absl import flags

from moe_jax.cli import Arguments, command_flags, run_command
from moe_jax.config.errors import UserError

USAGE = """
usage: python -m moe_jax.conventions [--codebase=NAME]
       python -m moe_jax.conventions --coefficient=C --source=NAME [--target=NAME] --experts=E --k=K
       python -m moe_jax.conventions --capacity_factor=F --source=NAME [--target=NAME] --tokens=T
           --experts=E --k=K

Lists the conventions of MoE codebases, shows the settings that follow one of them, or translates
a number from one to another.
  python -m moe_jax.conventions --codebase=v_moe
  python -m moe_jax.conventions --coefficient=0.02 --source=maxtext --experts=8 --k=2 --layers=12
  python -m moe_jax.conventions --capacity_factor=1.25 --source=tutel --tokens=512 --experts=8 --k=2
"""
FLAGS = command_flags()
flags.DEFINE_string("codebase", None, "show the settings that follow this one", flag_values=FLAGS)
flags.DEFINE_float("coefficient", None, "the coefficient of a loss", flag_values=FLAGS)
flags.DEFINE_float("capacity_factor", None, "the factor of a capacity", flag_values=FLAGS)
flags.DEFINE_string("source", None, "the codebase that the number is from", flag_values=FLAGS)
flags.DEFINE_string("target", "moe_jax", "the codebase that it is for", flag_values=FLAGS)
flags.DEFINE_integer("experts", None, "E, experts of a layer", flag_values=FLAGS)
flags.DEFINE_integer("k", None, "experts per token", flag_values=FLAGS)
flags.DEFINE_integer("layers", 1, "sparse layers", flag_values=FLAGS)
flags.DEFINE_integer("tokens", None, "T, tokens of a routing group", flag_values=FLAGS)
flags.DEFINE_string(
    "loss", "load_balance", "load_balance, importance, load or router_z", flag_values=FLAGS
)

ASKS = {
    "codebase": (),
    "coefficient": ("source", "experts", "k"),
    "capacity_factor": ("source", "tokens", "experts", "k"),
}


def main(arguments: Arguments) -> int:
    asked = [name for name in ASKS if FLAGS[name].value is not None]
    if len(asked) > 1:
        raise UserError(f"one at a time: {', '.join('--' + name for name in asked)}")
    if not asked:
        if FLAGS.source is not None:
            raise UserError("--source needs --coefficient or --capacity_factor")
        print(table())
        return 0
    missing = [f"--{name}" for name in ASKS[asked[0]] if FLAGS[name].value is None]
    if missing:
        raise UserError(f"--{asked[0]} needs {', '.join(missing)} too")
    try:
        print(DO[asked[0]]())
    except ValueError as error:
        raise UserError(str(error)) from error
    return 0


def table() -> str:
    """The conventions, a line each."""
    from moe_jax.routing.conventions import CODEBASES

    columns = {
        "codebase": lambda name, row: name,
        "balanced": lambda name, row: _balanced(row.normalization),
        "counts": lambda name, row: row.count if row.normalization else "-",
        "layers": lambda name, row: row.over_layers,
        "scope": lambda name, row: row.scope,
        "capacity": lambda name, row: row.capacity_rounding or "dropless",
        "drop order": lambda name, row: row.drop_order or "-",
        "after a drop": lambda name, row: "renormalised" if row.renormalize_after_drop else "-",
        "CV variance": lambda name, row: row.cv_variance or "-",
    }
    lines = [list(columns)]
    lines += [[cell(name, row) for cell in columns.values()] for name, row in CODEBASES.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join([*rows, "", "--codebase=NAME shows one with its source and its settings here"])


def _balanced(normalization: str | None) -> str:
    if normalization is None:
        return "-"
    return {"one": "1", "levanter": "1/k"}.get(normalization, "k")


def settings() -> str:
    """One codebase: its source, the flags that follow it, and what they cannot."""
    from moe_jax.routing.conventions import config_gaps, config_overrides, convention

    row = convention(FLAGS.codebase)
    lines = [f"{FLAGS.codebase}: {row.source}", f"noise: {row.noise}"]
    lines += [f"note: {row.note}"] if row.note else []
    lines += ["", "settings:"]
    lines += [
        f"  --config.{path}={_flag(value)}"
        for path, value in config_overrides(FLAGS.codebase).items()
    ]
    gaps = config_gaps(FLAGS.codebase)
    lines += ["", "differs still:"] if gaps else []
    lines += [f"  {path}: {why}" for path, why in gaps.items()]
    return "\n".join(lines)


def _flag(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def coefficient() -> str:
    from moe_jax.routing.conventions import convention, convert_coefficient

    value = convert_coefficient(
        FLAGS.coefficient,
        FLAGS.source,
        FLAGS.target,
        E=FLAGS.experts,
        k=FLAGS.k,
        layers=FLAGS.layers,
        loss=FLAGS.loss,
    )
    scope, target_scope = convention(FLAGS.source).scope, convention(FLAGS.target).scope
    lines = [
        f"{FLAGS.loss} {FLAGS.coefficient:g} of {FLAGS.source} is {value:.9g} in {FLAGS.target}"
    ]
    if scope != target_scope:
        scopes = f"{scope} in {FLAGS.source}, {target_scope} in {FLAGS.target}"
        lines.append(f"over the same tokens; the scope is {scopes}")
    return "\n".join(lines)


def capacity() -> str:
    from moe_jax.routing.conventions import convert_capacity_factor

    found = convert_capacity_factor(
        FLAGS.capacity_factor,
        FLAGS.source,
        FLAGS.target,
        T=FLAGS.tokens,
        E=FLAGS.experts,
        k=FLAGS.k,
    )
    lines = [
        f"capacity factor {FLAGS.capacity_factor:g} of {FLAGS.source} is {found.simplest:.9g} in "
        f"{FLAGS.target}: {found.slots} slots per expert"
    ]
    # Rounded into the range, so that both ends may be used.
    low = math.ceil(found.smallest * 1e6) / 1e6
    if found.largest == math.inf:
        lines.append(f"any factor from {low:.9g} gives as many")
    elif low < (high := math.floor(found.largest * 1e6) / 1e6):
        lines.append(f"any factor from {low:.9g} to {high:.9g} gives as many")
    return "\n".join(lines)


DO = {"codebase": settings, "coefficient": coefficient, "capacity_factor": capacity}

if __name__ == "__main__":
    sys.exit(run_command(main, usage=USAGE, flags=FLAGS))
