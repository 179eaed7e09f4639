"""Command: writes text with a trained model, and shows which experts wrote it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from absl import flags

from moe_jax.cli import Arguments, command_flags, importing, run_command
from moe_jax.config.activity import counted
from moe_jax.config.errors import UserError

if TYPE_CHECKING:
    from moe_jax.models.generation import Token
    from moe_jax.notebook import LoadedRun

USAGE = """
usage: python -m moe_jax.generate --workdir=DIR --prompt=TEXT [--max_tokens=N]

Continues the prompt with the newest checkpoint of the run in DIR.
  python -m moe_jax.generate --workdir=runs/quickstart --prompt="def " --show_routing
Or, where the run translates, puts it into another language by beam search:
  python -m moe_jax.generate --workdir=runs/translation --prompt="a small editor" --into=de
"""
FLAGS = command_flags("workdir")
flags.DEFINE_string("prompt", None, "the text to go on from", flag_values=FLAGS, required=True)
flags.DEFINE_integer("max_tokens", 200, "tokens to write", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "seed of the drawing", flag_values=FLAGS)
flags.DEFINE_float("temperature", 0.8, "0 takes the most probable token", flag_values=FLAGS)
flags.DEFINE_float("top_p", 0.95, "draw from the most probable tokens only", flag_values=FLAGS)
flags.DEFINE_integer("step", None, "checkpoint (default: the newest)", flag_values=FLAGS)
flags.DEFINE_string("into", None, "the language to translate into", flag_values=FLAGS)
flags.DEFINE_integer("beams", 4, "hypotheses of a translation; 1: greedy", flag_values=FLAGS)
flags.DEFINE_boolean(
    "show_routing", False, "each token with its experts and weights", flag_values=FLAGS
)


def main(arguments: Arguments) -> int:
    problems = []
    if FLAGS.max_tokens < 0:
        problems.append("--max_tokens must be at least 0")
    if FLAGS.temperature < 0:
        problems.append("--temperature must be at least 0")
    if FLAGS.beams < 1:
        problems.append("--beams must be at least 1")
    if not 0 < FLAGS.top_p <= 1:
        problems.append("--top_p must be above 0 and at most 1")
    if not FLAGS.prompt:
        problems.append("--prompt is empty: give at least one character to go on from")
    try:
        (FLAGS.prompt or "").encode("utf-8")
    except UnicodeEncodeError:
        problems.append("--prompt is not UTF-8")
    if problems:
        raise UserError("\n  ".join(problems))
    with importing():
        from moe_jax.notebook import load
        from moe_jax.parallel.compiler import keep_compiled_programs

    keep_compiled_programs()
    run = load(FLAGS.workdir, step=FLAGS.step)
    if FLAGS.into is not None:
        print(*run.translate([FLAGS.prompt], FLAGS.into, beams=FLAGS.beams), sep="\n")
        return 0
    tokens = written(run)
    tokenizer = run.tokenizer
    print(tokenizer.decode([token.id for token in tokens]))  # a character may span several tokens
    if FLAGS.show_routing:
        show(run, tokens)
    return 0


def written(run: LoadedRun) -> list[Token]:
    """The prompt's tokens and those that the model writes."""
    tokens = run.generate(
        FLAGS.prompt,
        FLAGS.max_tokens,
        seed=FLAGS.seed,
        temperature=FLAGS.temperature,
        top_p=FLAGS.top_p,
        show_routing=FLAGS.show_routing,
    )
    return list(counted("writing", tokens, "tokens"))


def show(run: LoadedRun, tokens: list[Token]) -> None:
    """A line for each token: its experts and their weights. UserError for a dense model."""
    layers = run.program.layout.moe_layers
    print(
        "\ntoken    "
        + "  ".join(f"layer {layer:02d}".ljust(17) for layer in layers)
        + "  (expert:weight)"
    )
    for token in tokens:
        if token.expert_LK is None or token.weight_LK is None:
            raise UserError("this is a dense model: it has no routing to show")
        cells = []
        for experts_K, weights_K in zip(token.expert_LK, token.weight_LK, strict=True):
            pairs = zip(experts_K, weights_K, strict=True)
            cells.append(" ".join(f"{e}:{w:.2f}" for e, w in pairs).ljust(17))
        print(f"{run.tokenizer.decode([token.id])!r:8} " + "  ".join(cells))


if __name__ == "__main__":
    sys.exit(run_command(main, usage=USAGE, flags=FLAGS))
