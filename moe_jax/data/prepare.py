"""Prepares a dataset: reads its text, tokenises it, writes it where training looks for it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from absl import flags
from rich.console import Console

from moe_jax.cli import Arguments, command_flags, run_command
from moe_jax.config.checks import require
from moe_jax.config.errors import UserError
from moe_jax.config.fields import kind
from moe_jax.config.overrides import apply_overrides, read_config_file
from moe_jax.config.tree import from_json_dict
from moe_jax.data.datasets import DATASETS, Dataset, StdlibText
from moe_jax.data.progress import ConsoleReporter, Reporter
from moe_jax.data.types import SPLITS, Rows

USAGE = f"""
usage: python -m moe_jax.data.prepare --dataset=KIND [--dataset.x=VALUE ...]
       python -m moe_jax.data.prepare --config=FILE.py[:arg] [--config.data.x=VALUE ...]

Prepares a dataset by its kind and settings, or the one of a config; says where it was written.
Kinds: {", ".join(DATASETS)}.
  python -m moe_jax.data.prepare --dataset=stdlib_text --dataset.data_dir=/data
  python -m moe_jax.data.prepare --dataset=folder --dataset.path=texts --dataset.tokenizer.kind=bpe
"""
FLAGS = command_flags()
flags.DEFINE_string("dataset", None, "kind of the dataset", flag_values=FLAGS)
flags.DEFINE_string("config", None, "FILE.py[:arg]: the dataset of a config", flag_values=FLAGS)


def prepare(dataset: Dataset, reporter: Reporter) -> list[str]:
    """Prepares a dataset, unless that is done. Returns lines on what is where.

    Raises UserError where its source is missing or wrong, or no split of it can be opened.
    """
    require(dataset)
    do_prepare = getattr(dataset, "prepare", None)
    if do_prepare is not None:
        do_prepare(reporter)
        lines = [f"in {folder}" for folder in dataset.stored_in()]  # type: ignore[attr-defined]
        lines += getattr(dataset, "summary", list)()
    else:
        lines = ["needs no preparation"]
    return [*lines, *_summary(dataset)]


def _summary(dataset: Dataset) -> list[str]:
    """What each split holds, or why it cannot be opened."""
    lines, errors = [], []
    for split in SPLITS:
        try:
            lines.append(f"{split}: {_contents(dataset.open(split))}")
        except UserError as error:
            lines.append(f"{split}: {error}")
            errors.append(error)
    if len(errors) == len(SPLITS):
        raise errors[0]
    return lines


def _contents(rows: Rows) -> str:
    """Sizes of an opened split, as far as they are known."""
    parts = rows.fingerprint.get("parts", [rows.fingerprint])
    contents = [part.get("content", {}) for part in parts]
    shapes = {name: array.shape for name, array in rows[0].items() if array.ndim}
    if "tokens" in shapes:
        counts = [f"{len(rows):,} rows of {shapes['tokens'][0]}"]
    else:
        columns = [f"{name} of {' x '.join(map(str, shape))}" for name, shape in shapes.items()]
        counts = [f"{len(rows):,} rows: {', '.join(columns)}"]
    if classes := getattr(rows, "classes", None):
        counts.append(f"{len(classes)} classes")
    for name, unit in (("tokens", "tokens"), ("bytes", "bytes of text")):
        if all(name in content for content in contents):
            counts.append(f"{sum(content[name] for content in contents):,} {unit}")
    return ", ".join(counts)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What the command line chooses."""

    data: Dataset = kind(DATASETS, StdlibText)


def chosen(
    dataset: str | None, config: str | None, overrides: Iterable[tuple[str, object]]
) -> Dataset:
    """The dataset that the flags name; overrides as "data.x". Raises UserError."""
    if (dataset is None) == (config is None):
        raise UserError("give either --dataset=KIND or --config=FILE; --help shows examples")
    if dataset is not None:
        pairs = [("data.kind", dataset), *overrides]
        return apply_overrides(Preparation(), pairs).data
    # The rest of the config is not ours to know: it lies above data/.
    tree = read_config_file(str(config)).to_dict()
    pairs = [(path, value) for path, value in overrides if path.startswith("data.")]
    return apply_overrides(
        from_json_dict({"data": tree["data"]}, Preparation, own=True), pairs
    ).data


def main(arguments: Arguments) -> int:
    try:
        dataset = chosen(FLAGS.dataset, FLAGS.config, arguments.overrides)
        with ConsoleReporter() as reporter:
            lines = prepare(dataset, reporter)
    except UserError as error:
        if FLAGS.dataset is None:
            raise
        raise UserError(in_flags(str(error)), exit_code=error.exit_code) from error
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for line in lines:
        console.print(line)
    return 0


def as_overrides(argv: Sequence[str]) -> list[str]:
    """--dataset.x=VALUE as --config.data.x=VALUE, which the command line of every command knows."""
    old, new = "--dataset.", "--config.data."
    return [new + text.removeprefix(old) if text.startswith(old) else text for text in argv]


def in_flags(message: str) -> str:
    """A message on settings of a config, in the flags of who gave --dataset."""
    names = {field.name for row in DATASETS.values() for field in fields(row)}
    settings = rf"\bconfig\.data\.|(?<![\w./-])data\.(?=({'|'.join(sorted(names))})\b)"
    return re.sub(settings, "--dataset.", message).replace("the config has", "--dataset has")


if __name__ == "__main__":
    argv = as_overrides(sys.argv[1:])
    sys.exit(run_command(main, usage=USAGE, flags=FLAGS, overrides=True, argv=argv))
