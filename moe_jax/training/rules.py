"""The rules that span several parts of a config: sizes against the mesh, groups, losses."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from moe_jax.config.errors import Problem
from moe_jax.config.schedules import parse_schedules
from moe_jax.config.tree import value_at
from moe_jax.data.types import columns_of
from moe_jax.dispatch import SOFT_LAYOUTS
from moe_jax.models.text import TextConfig
from moe_jax.ops.attention_splash import TILE, splash_fits
from moe_jax.parallel.mesh import row_shards
from moe_jax.routing.losses import global_terms
from moe_jax.routing.types import Router
from moe_jax.training.experiment import Experiment


def cross_check(experiment: Experiment, num_devices: int) -> list[Problem]:
    """Everything that is wrong between parts of the config on `num_devices` devices.

    Values that have no sense by themselves (a size below 1) are left to their part's own check.
    Raises UserError where the mesh itself does not fit.
    """
    experiment, sizes = experiment.completed(), experiment.mesh.sizes(num_devices)
    if problems := list(_parts(experiment)):
        return problems  # the others ask what these say
    rules = (
        _routing,
        _gates,
        _ensemble,
        _groups,
        _written,
        _depth,
        _attention,
        _batches,
        _chunks,
        _divisions,
        _profile,
    )
    return [problem for rule in rules for problem in rule(experiment, sizes)]


def _parts(experiment: Experiment) -> Iterator[Problem]:
    """Task, data and model fit each other."""
    there = columns_of(experiment.data)
    missing = [name for name in experiment.task.reads(there) if name not in there]
    if missing:
        kind = type(experiment.task).__name__
        rule = f"reads {', '.join(missing)}, and the data has {', '.join(there)}"
        yield Problem("task.kind", kind, rule)
        return
    for name, rule in experiment.model.fits(experiment.io):
        value = getattr(experiment.model, name, type(experiment.model).__name__)
        yield Problem(f"model.{name}", value, rule)


def _divides(path: str, value: int, parts: int, by: str) -> Iterator[Problem]:
    if value > 0 and parts > 0 and value % parts:
        message = f"{value} = {value // parts} x {parts} + {value % parts}"
        yield Problem(path, value, f"must be divisible by {by} = {parts} ({message})")


def _routing(experiment: Experiment, sizes: dict[str, int]) -> Iterator[Problem]:
    moe = experiment.moe
    if not moe.every:
        return
    router: Router = moe.router
    k = router.choices(max(moe.num_experts, 1))
    if k > moe.num_experts:
        limits = [n for n in ("k", "k_max", "max_experts") if getattr(router, n, None) == k]
        path = f"moe.router.{limits[0] if limits else 'kind'}"
        yield Problem(path, k, f"must be at most the number of experts, {moe.num_experts}")
    else:
        for name, rule in router.check_experts(moe.num_experts):
            yield Problem(f"moe.router.{name}", getattr(router, name), rule)
    if router.own_capacity and moe.capacity_factor is not None:
        rule = "must be none: this router gives every expert its number of tokens itself"
        yield Problem("moe.capacity_factor", moe.capacity_factor, rule)
    rows, ids = getattr(router, "vocab_size", None), experiment.vocabulary
    if router.reads_ids and ids is None:
        rule = "routes by the ids of tokens, and this model knows none"
        yield Problem("moe.router.kind", type(router).__name__, rule)
    if rows is not None and ids is not None and 0 < rows < ids:
        rule = f"must be at least model.vocab_size = {ids}: each id has a row of the table"
        yield Problem("moe.router.vocab_size", rows, rule)
    layout = experiment.model.layout(moe)
    if not layout.moe_layers:
        each = max((sum(s.count for s in part.stacks) for part in layout.parts), default=0)
        names = " and ".join(part.name for part in layout.parts if part.name)
        of = f"the layers of {names}, {each}" if names else f"model.num_layers = {each}"
        yield Problem("moe.first", moe.first, f"must be below {of}")
    yield from _divides("moe.num_experts", moe.num_experts, sizes["expert"], "mesh.expert")
    groups = moe.losses.device_balance.groups
    if groups > 0 and moe.num_experts > 0 and moe.num_experts % groups:
        rule = f"must divide moe.num_experts = {moe.num_experts}"
        yield Problem("moe.losses.device_balance.groups", groups, rule)
    if moe.transport == "ragged" and moe.layout != "rows":
        yield Problem("moe.layout", moe.layout, 'must be "rows" with moe.transport = "ragged"')
    if (problem := layout_problem(experiment)) is not None:
        yield problem
    if sizes["expert"] > 1:
        if moe.layout == "dense":
            yield Problem("moe.layout", moe.layout, "needs mesh.expert = 1: it moves no tokens")
        if moe.transport == "local":
            yield Problem("moe.transport", moe.transport, "needs mesh.expert = 1")


def layout_problem(experiment: Experiment) -> Problem | None:
    """A router that mixes tokens into slots needs a layout that carries mixtures."""
    moe = experiment.moe
    if not moe.every or not moe.router.soft or moe.layout in SOFT_LAYOUTS:
        return None
    names = " or ".join(f'"{name}"' for name in SOFT_LAYOUTS)
    return Problem(
        "moe.layout", moe.layout, f"this router mixes tokens into slots: must be {names}"
    )


def _gates(experiment: Experiment, sizes: dict[str, int]) -> Iterator[Problem]:
    """The gates are those that the model has; and what holds once their number is known."""
    moe = experiment.moe
    for path, rule in experiment.model.gate_rules(moe, experiment.io):
        yield Problem(f"moe.{path}", value_at(moe, path), rule)


def _ensemble(experiment: Experiment, sizes: dict[str, int]) -> Iterator[Problem]:
    """Each member chooses among E / M experts of its own."""
    moe = experiment.moe
    if not moe.every:
        return
    if moe.ensemble > 1 and len(experiment.model.layout(moe).parts) > 1:
        rule = "must be 1: a model of several parts has no ensembles"
        yield Problem("moe.ensemble", moe.ensemble, rule)
        return
    rules = moe.members.fits(
        moe.num_experts, moe.router, moe.losses, moe.group_size, experiment.row_length
    )
    for path, rule in rules:
        yield Problem(f"moe.{path}", value_at(moe, path), rule)


def _row(experiment: Experiment) -> str:
    """What sets the tokens of a row, in messages."""
    io = experiment.io
    if io.table is not None:
        return "the one token of a row of a table"
    return "data.sequence_length" if io.length else "the tokens of an image"


def rows_per_group(experiment: Experiment) -> int:
    """Whole rows that one routing group spans; 1 where a group is a row or a piece of one."""
    S, T = experiment.row_length, experiment.moe.group_size
    if not experiment.moe.every or T is None or S < 1:
        return 1
    return max(T // S, 1)


def _groups(experiment: Experiment, sizes: dict[str, int]) -> Iterator[Problem]:
    moe, S = experiment.moe, experiment.row_length
    T = moe.group_size
    if not moe.every or T is None:
        if moe.every and sizes["sequence"] > 1:
            rule = (
                f"must be set, to at most {S // sizes['sequence']} tokens: a group lies wholly in "
                f"one token shard, and mesh.sequence = {sizes['sequence']} cuts rows of {S}"
            )
            yield Problem("moe.group_size", T, rule)
        return
    if min(S, T) < 1:
        return
    if T % S and S % T:
        rule = f"must divide {_row(experiment)} = {S} or be a multiple of it"
        yield Problem("moe.group_size", T, rule)
        return
    piece = S // sizes["sequence"]
    if sizes["sequence"] > 1 and (piece < T or piece % T):
        rule = f"must divide the {piece} = {S} / {sizes['sequence']} positions of a token shard"
        yield Problem("moe.group_size", T, rule)
    for name, term in moe.losses.terms().items():
        if term.scope == "row" and T > S:
            rule = f"needs groups no larger than a row of {S}, but moe.group_size = {T}"
            yield Problem(f"moe.losses.{name}.scope", "row", rule)


def _written(experiment: Experiment, sizes: dict[str, int]) -> Iterator[Problem]:
    """What a model writes by itself it writes token by token, without drops."""
    written, moe = getattr(experiment.task, "written", 0), experiment.moe
    if written and moe.every and not moe.router.causal_choice:
        rule = "must be 0: with this router a token's experts depend on later ones"
        yield Problem("task.written", written, rule)


def _depth(experiment: Experiment, sizes: dict[str, int]) -> Iterator[Problem]:
    """A mixture of depths chooses among the tokens of a whole row."""
    model, moe = experiment.model, experiment.moe
    for name, rule in model.depth.fits(model.num_layers, sizes["sequence"]):
        yield Problem(f"model.depth.{name}", getattr(model.depth, name), rule)
    layout = model.layout(moe)
    if moe.group_size is not None and set(layout.moe_layers) & set(layout.depth_layers):
        rule = "must be none: in a block of model.depth a group is the chosen tokens of a row"
        yield Problem("moe.group_size", moe.group_size, rule)


def _attention(experiment: Experiment, sizes: dict[str, int]) -> Iterator[Problem]:
    """The splash kernel takes rows of whole tiles, also of the tokens that a depth chooses."""
    model, S = experiment.model, experiment.row_length
    if model.attention != "splash":
        return
    if not splash_fits(S):
        rule = f"must be a multiple of {TILE} for model.attention = splash"
        yield Problem(_row(experiment), S, rule)
    elif model.depth.every and not splash_fits(chosen := model.depth.tokens(S)):
        rule = f"a depth chooses {chosen} tokens of a row, not a multiple of {TILE}"
        yield Problem("model.attention", model.attention, rule)


def _batches(experiment: Experiment, sizes: dict[str, int]) -> Iterator[Problem]:
    shards = row_shards(sizes)
    rows = rows_per_group(experiment)
    message = f"data x fsdp x expert x rows of a group = {shards} x {rows}"
    parts = shards * rows * experiment.accumulation
    by = f"{message} x accumulation {experiment.accumulation}"
    yield from _divides("batch_size", experiment.batch_size, parts, by)
    evaluation = experiment.evaluation
    if evaluation.batch_size is not None:
        yield from _divides("evaluation.batch_size", evaluation.batch_size, shards * rows, message)


def _chunks(experiment: Experiment, sizes: dict[str, int]) -> Iterator[Problem]:
    """The groups of one device in one micro-batch fall into moe.overlap_chunks equal parts."""
    moe, S = experiment.moe, experiment.row_length
    if not moe.every or moe.overlap_chunks < 2 or experiment.batch_size < 1 or S < 1:
        return
    shards = row_shards(sizes) * sizes["sequence"]
    tokens = experiment.batch_size * S // (shards * max(experiment.accumulation, 1))
    groups = tokens // (moe.group_size or S)
    if groups % moe.overlap_chunks:
        rule = f"must divide the {groups} routing groups of one device in one micro-batch"
        yield Problem("moe.overlap_chunks", moe.overlap_chunks, rule)


def _divisions(experiment: Experiment, sizes: dict[str, int]) -> Iterator[Problem]:
    model, moe = experiment.model, experiment.moe
    layout = model.layout(moe)
    for division in model.divisions(sizes):
        yield from _divides(*division)
    vocabulary = experiment.vocabulary or 0
    yield from _divides("model.vocab_size", vocabulary, sizes["tensor"], "mesh.tensor")
    if isinstance(model, TextConfig) and model.logits_chunks and sizes["tensor"] > 1:
        parts = model.logits_chunks * sizes["tensor"]
        by = "model.logits_chunks * mesh.tensor"
        yield from _divides("model.vocab_size", model.vocab_size, parts, by)
    if len(layout.moe_layers) < model.num_layers:
        yield from _divides("model.mlp_dim", model.mlp_dim, sizes["tensor"], "mesh.tensor")
    if layout.moe_layers:
        yield from _divides("moe.expert_dim", moe.expert_dim, sizes["tensor"], "mesh.tensor")
    parts, by = sizes["fsdp"], "mesh.fsdp"
    if layout.moe_layers:
        for part in moe.surroundings(model.activation).values():
            for division in part.divisions(sizes):
                yield from _divides(*division)
        sends_columns = sizes["expert"] > 1 and sizes["tensor"] > 1
        if sends_columns and moe.width(model.model_dim) == model.model_dim:
            # Each device along `tensor` sends its own columns of a token.
            parts = math.lcm(parts, sizes["tensor"])
            by = "lcm(mesh.fsdp, mesh.tensor)"
    yield from _divides("model.model_dim", model.model_dim, parts, by)
    S = experiment.row_length
    yield from _divides(_row(experiment), S, sizes["sequence"], "mesh.sequence")


def _profile(experiment: Experiment, sizes: dict[str, int]) -> Iterator[Problem]:
    steps, profiled = experiment.steps, experiment.logging.profile_steps
    if len(profiled) == 2 and profiled[1] >= steps > 0:
        rule = f"must end below steps = {steps} (steps are counted from 0)"
        yield Problem("logging.profile_steps", profiled, rule)


def warnings(experiment: Experiment) -> list[str]:
    """What is allowed but perhaps not meant; printed at the start of a run."""
    moe, found = experiment.moe, []
    warmup = getattr(getattr(experiment.optimizer, "schedule", None), "warmup_steps", 0)
    if warmup > experiment.steps:
        found.append(
            f"optimizer.schedule.warmup_steps = {warmup} is longer than the run: in its "
            f"{experiment.steps} steps the learning rate does not reach its peak"
        )
    predicts_next = experiment.io.predicts_next
    if predicts_next and not experiment.model.causal:
        found.append(
            "model.depth lets a token see later ones (which tokens take part), so the validation "
            "loss of a causal model is flattered, and moe_jax.generate will refuse the model"
        )
    if not moe.every:
        return found
    found += moe.router.warn()
    if moe.router.reads_tasks and experiment.row_tasks() is None:
        found.append(
            "moe.router.kind routes by the task of a row, and the rows of this task and data are "
            "of none: all tokens have the same experts"
        )
    if predicts_next and not moe.causal:
        found.append(
            "this routing lets a token see later ones (drop order or router), so the validation "
            "loss of a causal model is flattered, and moe_jax.generate will refuse the model"
        )
    M = experiment.accumulation
    for name, term in moe.losses.terms().items():
        if term.scope == "micro_batch" and M > 1:
            found.append(
                f"moe.losses.{name}.scope = 'micro_batch' with accumulation {M}: the loss depends "
                "on the number of micro-batches; scope 'global_batch' does not"
            )
    scheduled = parse_schedules(experiment)
    found += _idle_losses(experiment, scheduled)
    if M > 1 and global_terms(moe.losses, moe.router, moe.num_experts, scheduled):
        found.append(
            "routing losses over the global batch under accumulation take one more forward pass "
            "per micro-batch (about a third more FLOPs)"
        )
    return found


def _idle_losses(experiment: Experiment, scheduled: Collection[str]) -> Iterator[str]:
    """Losses of a router that has nothing to train."""
    moe = experiment.moe
    if moe.router.params(experiment.model.model_dim, moe.num_experts):
        return
    for name, term in moe.losses.terms().items():
        path = f"moe.losses.{name}.coefficient"
        if name != "router" and (term.coefficient or path in scheduled):
            yield f"{path} does nothing: the router has no parameters, so this loss is a constant"
