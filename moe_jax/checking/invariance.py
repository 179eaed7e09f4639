"""The whole check: shrink the config, run the reference and the variants, compare."""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np

from moe_jax.checking.accumulators import narrow_sums
from moe_jax.checking.compare import Difference, blame, check_finite, compare, compare_rounding
from moe_jax.checking.shrink import ROWS, Change, shrink
from moe_jax.checking.trial import (
    Arrays,
    Trial,
    initial_state,
    lower_quick,
    program_of,
    run,
    synthetic_rows,
)
from moe_jax.checking.variants import Skipped, Variant, reference, variants
from moe_jax.config.activity import doing, heard
from moe_jax.config.errors import ConfigError, UserError
from moe_jax.config.schedules import Schedules
from moe_jax.training.build import Program
from moe_jax.training.experiment import Experiment
from moe_jax.training.rules import cross_check, layout_problem

Scalars = Mapping[str, np.float32]
# Tokens of a step in bfloat16: a sum that is kept in it goes wrong with the number of its terms,
# while other rounding averages out.
MANY = 2**14


@dataclass(frozen=True, kw_only=True)
class VariantOutcome:
    """What became of one variant. left_out: loss terms that were switched off in it and in the
    reference it is held to. failed: the error that it ended with, in one line, None for most.
    narrow: in bfloat16, the sums that it keeps in fewer bits than float32."""

    variant: Variant
    trial: Trial | None
    differences: tuple[Difference, ...] = ()
    left_out: tuple[str, ...] = ()
    failed: str | None = None
    traceback: str = ""
    narrow: tuple[str, ...] = ()

    @property
    def worst(self) -> Difference | None:
        """The difference that exceeds what is allowed most; the first of several infinite ones."""
        return max(self.differences, key=lambda d: d.excess, default=None)

    @property
    def first(self) -> Difference | None:
        """The first quantity of a run that differs more than allowed."""
        return next((d for d in self.differences if d.excess > 1), None)

    @property
    def equal(self) -> bool:
        return self.failed is None and self.first is None


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Everything that a check found. references: with all losses and, where some depend on
    micro-batches, without those."""

    changes: tuple[Change, ...]
    skipped: tuple[Skipped, ...]
    references: tuple[VariantOutcome, ...]
    outcomes: tuple[VariantOutcome, ...]

    @property
    def equal(self) -> bool:
        return all(outcome.equal for outcome in self.outcomes)

    @property
    def blame(self) -> list[str]:
        return blame([(o.variant.name, o.variant.factors, o.equal) for o in self.outcomes])


@dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """A check that is about to run: what it takes, before anything is compiled."""

    original: Experiment
    small: Experiment
    changes: tuple[Change, ...]
    reference: Variant
    variants: tuple[Variant, ...]
    skipped: tuple[Skipped, ...]
    devices: tuple[jax.Device, ...]
    steps: int
    tolerance: float


def plan(
    experiment: Experiment,
    devices: Sequence[jax.Device],
    *,
    steps: int = 3,
    tolerance: float = 1e-5,
    only: str = "",
    keep: Collection[str] = (),
) -> CheckPlan:
    """Chooses what to run. only: a part of the names of the variants; keep: see `shrink`.

    Raises ConfigError where the config itself is wrong, UserError where `keep` makes it so or where
    nothing is left to run.
    """
    problems = cross_check(reference(experiment).apply(experiment), 1)
    if (problem := layout_problem(experiment)) is not None:
        problems.append(problem)
    if problems:
        raise ConfigError(problems)
    small, changes = shrink(experiment, steps, keep)
    _fits(small, changes, keep)
    found, skipped = variants(small, len(devices))
    chosen = tuple(variant for variant in found if only in variant.name)
    if not found:
        reasons = "\n  ".join(f"{variant.name}: {variant.reason}" for variant in skipped)
        raise UserError(f"there is nothing to compare: no variant can run\n  {reasons}")
    if not chosen:
        names = "\n  ".join(variant.name for variant in found)
        raise UserError(f"--only={only}: no variant has this in its name; there are\n  {names}")
    return CheckPlan(
        original=experiment,
        small=small,
        changes=changes,
        reference=reference(small),
        variants=chosen,
        skipped=tuple(skipped),
        devices=tuple(devices),
        steps=steps,
        tolerance=tolerance,
    )


def _fits(small: Experiment, changes: Sequence[Change], keep: Collection[str]) -> None:
    """UserError where the values that were kept do not fit those that were made small."""
    problems = cross_check(reference(small).apply(small), 1)
    if not problems:
        return
    message = "\n  ".join(map(str, problems))
    kept = f" with --keep={','.join(keep)}" if keep else ""
    made = ", ".join(str(change) for change in changes)
    raise UserError(
        f"the config is right, but made small{kept} it is not:\n  {message}\n"
        f"made small: {made}\n--keep takes paths that do not shrink"
    )


def check(
    plan: CheckPlan, on_outcome: Callable[[VariantOutcome], None] = lambda outcome: None
) -> CheckReport:
    """Runs the plan. on_outcome: called with the references, then with each variant, when done.

    Compiling takes most of the time: while some variants compile, the next are traced.
    """
    with doing("computing the reference"):
        running = _Check(plan)
        references = running.references()
    for outcome in references:
        on_outcome(outcome)
        heard()
    outcomes: list[VariantOutcome] = []
    started: deque[Callable[[], VariantOutcome]] = deque()
    workers = min(os.cpu_count() or 1, 4)  # the table shall grow as variants are done

    def finish() -> None:
        outcomes.append(started.popleft()())
        on_outcome(outcomes[-1])
        heard()
        comparing.advance()

    with (
        doing("compiling and comparing", len(plan.variants), "variants") as comparing,
        ThreadPoolExecutor(workers) as pool,
    ):
        for variant in plan.variants:
            started.append(running.start(variant, pool))
            if len(started) > workers:
                finish()
        while started:
            finish()
    return CheckReport(
        changes=plan.changes,
        skipped=plan.skipped,
        references=references,
        outcomes=tuple(outcomes),
    )


class _Check:
    """What the variants share: batches, scalars, the initial state and the reference's trials."""

    def __init__(self, plan: CheckPlan):
        self.plan = plan
        self.batches = synthetic_rows(plan.small, plan.steps)
        self.scalars = scalars_over_the_run(plan.original, plan.steps)
        self.varying = micro_batch_terms(plan.original)
        program = self._program(plan.reference)
        self.state = initial_state(program)
        self.trials: dict[tuple[str, ...], Trial] = {}

    def references(self) -> tuple[VariantOutcome, ...]:
        """The reference with all losses and, where some depend on micro-batches, without them."""
        variant = self.plan.reference
        program = self._program(variant)
        step = lower_quick(program, self.batches[0], self.scalars[0]).compile()
        found = []
        for left_out in dict.fromkeys([(), self.varying]):
            scalars = self._scalars_without(left_out)
            trial = run(program, step, self.state, self.batches, scalars)
            if (problem := check_finite(trial)) is not None:
                raise UserError(f"{problem}: there is nothing to compare (a lower learning rate?)")
            self.trials[left_out] = trial
            found.append(VariantOutcome(variant=variant, trial=trial, left_out=left_out))
        return tuple(found)

    def start(self, variant: Variant, pool: Executor) -> Callable[[], VariantOutcome]:
        """Traces the variant's step and has it compiled; the result waits, runs and compares.

        An error in the variant is its outcome: a router from outside may raise anything.
        """
        if variant.dtype != "float32":
            return self._start_rounding(variant, pool)
        left_out = self.varying if variant.accumulation > 1 else ()
        try:
            program = self._program(variant)
            lowered = lower_quick(program, self.batches[0], self.scalars[0])
        except Exception as error:
            failed = _failed(variant, error)
            return lambda: failed
        compiling = pool.submit(lowered.compile)

        def finish() -> VariantOutcome:
            try:
                scalars = self._scalars_without(left_out)
                trial = run(program, compiling.result(), self.state, self.batches, scalars)
            except Exception as error:
                return _failed(variant, error)
            differences = compare(trial, self.trials[left_out], self.plan.tolerance)
            return VariantOutcome(
                variant=variant, trial=trial, differences=tuple(differences), left_out=left_out
            )

        return finish

    def _start_rounding(self, variant: Variant, pool: Executor) -> Callable[[], VariantOutcome]:
        """`start` of a variant in bfloat16: one step on MANY tokens, held to the same in float32 on
        the same device and layout."""
        many = with_tokens(self.plan.small, MANY)
        batches = synthetic_rows(many, 1)
        try:
            programs = [
                self._program(v, many)
                for v in (variant, dataclasses.replace(variant, dtype="float32"))
            ]
            narrow = narrow_in(programs[0], batches[0], self.scalars[0])
            lowered = [lower_quick(program, batches[0], self.scalars[0]) for program in programs]
        except Exception as error:
            failed = _failed(variant, error)
            return lambda: failed
        compiling = [pool.submit(one.compile) for one in lowered]

        def finish() -> VariantOutcome:
            try:
                trial, reference = (
                    run(program, step.result(), self.state, batches, self.scalars[:1])
                    for program, step in zip(programs, compiling, strict=True)
                )
            except Exception as error:
                return _failed(variant, error)
            differences = tuple(compare_rounding(trial, reference))
            return VariantOutcome(
                variant=variant, trial=trial, differences=differences, narrow=narrow
            )

        return finish

    def _program(self, variant: Variant, experiment: Experiment | None = None) -> Program:
        devices = self.plan.devices[: variant.devices]
        return program_of(variant.apply(experiment or self.plan.small), devices)

    def _scalars_without(self, names: Collection[str]) -> list[Scalars]:
        off = {f"moe.losses.{name}.coefficient": np.float32(0) for name in names}
        return [{**values, **off} for values in self.scalars]


def with_tokens(small: Experiment, tokens: int) -> Experiment:
    """As many rows as have so many tokens; the state keeps its shapes."""
    rows = max(tokens // small.row_length // ROWS, 1) * ROWS
    probed = dataclasses.replace(
        small.evaluation, batch_size=small.evaluation.batch_size or small.batch_size
    )
    return dataclasses.replace(small, batch_size=rows, evaluation=probed)


def narrow_in(program: Program, batch: Arrays, scalars: Scalars) -> tuple[str, ...]:
    """The sums of the training step that are kept in fewer bits than float32, in words."""
    traced = jax.make_jaxpr(program.step.train)(program.abstract_state, program.put(batch), scalars)
    return tuple(str(found) for found in sorted(narrow_sums(traced)))


def scalars_over_the_run(experiment: Experiment, steps: int) -> list[Scalars]:
    """The scheduled scalars at the middles of `steps` equal parts of the run, so that schedules
    are exercised."""
    schedules = Schedules(experiment)
    return [schedules(int((i + 0.5) * experiment.steps / steps)) for i in range(steps)]


def micro_batch_terms(experiment: Experiment) -> tuple[str, ...]:
    """The losses in use that depend on the number of micro-batches by definition."""
    if not experiment.moe.every:
        return ()
    scheduled = Schedules(experiment).scheduled
    return tuple(
        name
        for name, term in experiment.moe.losses.terms().items()
        if term.scope == "micro_batch"
        and (term.coefficient or f"moe.losses.{name}.coefficient" in scheduled)
    )


def _failed(variant: Variant, error: Exception) -> VariantOutcome:
    lines = str(error).strip().splitlines() or [""]
    return VariantOutcome(
        variant=variant,
        trial=None,
        failed=f"{type(error).__name__}: {lines[0]}",
        traceback="".join(traceback.format_exception(error)),
    )
