"""A sweep on the terminal: its plan, what runs now, and what came out."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from moe_jax.config.activity import doing, heard, spoken_by
from moe_jax.config.json_files import JsonObject, parsed
from moe_jax.sweeps.engine import Job, State, last_words, run_jobs
from moe_jax.sweeps.matching import counts_of
from moe_jax.sweeps.points import SweepPoint, short_names
from moe_jax.sweeps.search import Study, best_trials
from moe_jax.sweeps.statistics import Interval
from moe_jax.sweeps.table import MANY, Arm, Row, costs_of

REFRESH = 1.0  # seconds between two looks at the metrics of what runs
MAX_ROWS = 40  # of a table on the terminal
PLAIN_WIDTH = 120
TAIL = 1 << 16  # bytes of metrics.jsonl that are looked at
SIGNS = {
    State.WAITING: "dim",
    State.RUNNING: "cyan",
    State.ELSEWHERE: "magenta",
    State.DONE: "green",
    State.PRUNED: "blue",
    State.STOPPED: "yellow",
    State.FAILED: "bold red",
}


def wide_console() -> Console:
    """Of the terminal's width; where there is none, wide enough for a table. Texts are shown as
    they are: brackets and colons in names of arms, paths and errors are no markup."""
    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(width=PLAIN_WIDTH, markup=False, emoji=False)


def plan_table(points: Sequence[SweepPoint]) -> Table:
    """Each arm's parameters and FLOPs, and the sum over all runs."""
    table = Table(title="The sweep", title_justify="left")
    table.add_column("arm", overflow="fold", min_width=24)
    for name in ("seeds", "steps", "parameters", "active", "MFLOP/token", "PFLOP"):
        table.add_column(name, justify="right")
    groups: dict[str, list[SweepPoint]] = {}
    for point in points:
        groups.setdefault(point.arm, []).append(point)
    total = 0.0
    for number, (arm, group) in enumerate(groups.items()):
        counts = counts_of(group[0].experiment)
        flops = sum(costs_of(point, 0.0)["training_flops"] for point in group)
        total += flops
        if number < MAX_ROWS:
            table.add_row(
                arm,
                str(len(group)),
                f"{group[0].experiment.steps:,}",
                _short(counts.total),
                _short(counts.active),
                f"{counts.flops_per_token / 1e6:,.1f}",
                f"{flops / 1e15:,.3g}",
            )
    if len(groups) > MAX_ROWS:
        table.add_row(f"... and {len(groups) - MAX_ROWS} more", *[""] * 6)
    table.add_section()
    runs = "1 run" if len(points) == 1 else f"{len(points)} runs"
    table.add_row(runs, "", "", "", "", "", f"{total / 1e15:,.3g}")
    return table


def arms_table(arms: Sequence[Arm], metric: str) -> Table:
    """The metric of each arm over its seeds, and the paired difference to the baseline."""
    table = Table(title=f"{metric} (mean and 95 % interval over seeds)", title_justify="left")
    table.add_column("arm", overflow="fold")
    for name in ("seeds", metric, f"difference to {arms[0].baseline}"):
        table.add_column(name, justify="right")
    for arm in arms[:MAX_ROWS]:
        value = f"{arm.value.mean:.4f}{_margin(arm.value)}" if arm.value else "-"
        gap = f"{arm.difference.mean:+.4f}{_margin(arm.difference)}" if arm.difference else ""
        if arm.difference and arm.difference.n < len(arm.rows):
            gap += f" ({arm.difference.n} pairs)"
        seeds = f"{arm.value.n if arm.value else 0} of {len(arm.rows)}"
        name = f"{arm.name}\n  {arm.note}" if arm.note else arm.name
        table.add_row(name, seeds, value, gap)
    if len(arms) > MAX_ROWS:
        table.add_row(f"... and {len(arms) - MAX_ROWS} more", "", "", "")
    return table


def row_problems(rows: Sequence[Row]) -> list[str]:
    """What keeps points that ended out of the tables, a line each."""
    return [f"{row.point.name}: {row.problem}" for row in rows if row.problem]


def trials_table(study: Study, metric: str, shares: Mapping[str, float]) -> Table:
    """The best trials of a search, how many there were of each kind, and below each setting its
    share of `importances`, where there are any."""
    trials = study.get_trials(deepcopy=False)
    states = Counter(trial.state.name.lower() for trial in trials)
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    best = best_trials(study)
    if skipping := sum(trial.user_attrs.get("skipped", 0.0) > MANY for trial in trials):
        counted += f"; {skipping} skipped many updates, and is none of the best"
    title = f"The best trials ({counted})"
    table = Table(title=title, title_justify="left", show_footer=bool(shares))
    table.add_column("trial", justify="right")
    table.add_column(metric, "importance", justify="right")
    for path, name in short_names(dict.fromkeys(best[0].params if best else ())).items():
        table.add_column(name, f"{shares.get(path, 0):.0%}", justify="right")
    for trial in best:
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial.params.values()]
        table.add_row(str(trial.number), f"{trial.value:.4f}", *values)
    return table


def _margin(interval: Interval) -> str:
    half = (interval.high - interval.low) / 2
    return f" \u00b1 {half:.4f}" if math.isfinite(half) else ""


def _short(number: float) -> str:
    for size, sign in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{sign}"
    return f"{number:g}"


def run_shown(jobs: Sequence[Job], workers: int, console: Console) -> bool:
    """Runs the jobs with a live table, tells the failures, and whether all are done."""
    with LiveTable(console, jobs) as live:
        states = run_jobs(jobs, workers, live)
    live.print_failures()
    missing = sum(state != State.DONE for state in states.values())
    if missing:
        console.print(f"{missing} of {len(jobs)} runs are not done; the same command goes on")
    return not missing


class LiveTable:
    """Shows a sweep while it runs: a live table on a terminal, else a line for each change."""

    def __init__(self, console: Console, jobs: Sequence[Job]):
        self._console, self._jobs = console, jobs
        self._looked, self._began = 0.0, time.time()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._activity = contextlib.ExitStack()
        self.failures: list[Job] = []
        self._states: dict[str, State] = {}

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        else:
            self._activity.enter_context(spoken_by(self._note))
        self._doing = self._activity.enter_context(doing("running", len(self._jobs), "runs done"))
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._activity.close()

    def _note(self, text: str) -> None:
        """How far the runs are, in a line each time."""
        running = [job for job in self._jobs if self._states.get(job.name) == State.RUNNING]
        reached = [f"{job.name} {_reached(job)[0]}" for job in running]
        self._console.print(f"{text} {'; '.join(reached)}", highlight=False, soft_wrap=True)

    def changed(self, job: Job, state: State) -> None:
        if state == State.FAILED:
            self.failures.append(job)
        if self._live is None and state != State.WAITING:
            self._console.print(f"{state}: {job.name}", highlight=False, soft_wrap=True)
            heard()

    def tick(self, states: dict[str, State]) -> None:
        self._states = dict(states)
        self._doing.done = sum(s in (State.DONE, State.PRUNED) for s in states.values())
        if self._live is not None and time.time() - self._looked >= REFRESH:
            self._looked = time.time()
            self._live.update(self._drawn(states), refresh=True)

    def _drawn(self, states: Mapping[str, State]) -> Group:
        table = Table()
        table.add_column("point", overflow="fold")
        for name in ("state", "step", "loss", "evaluation", "tokens/s"):
            table.add_column(name, justify="right")
        order = sorted(self._jobs, key=lambda job: _RANK[states[job.name]])
        room = max(self._console.height - 8, 5)
        for job in order[:room]:
            state = states[job.name]
            table.add_row(job.name, Text(state, style=SIGNS[state]), *_reached(job))
        counted = Counter(states.values())
        states_text = ", ".join(f"{counted[state]} {state}" for state in State if counted[state])
        hidden = f" ({len(order) - room} not shown)" if len(order) > room else ""
        minutes = (time.time() - self._began) / 60
        return Group(table, Text(f"{states_text}{hidden}; {minutes:.1f} min"))

    def print_failures(self) -> None:
        """The end of the log of each point that failed."""
        for job in self.failures:
            message = Text.assemble(
                ("failed", "bold red"), f": {job.name} ({job.folder / 'log.txt'})"
            )
            self._console.print(message, soft_wrap=True)
            for line in last_words(job.folder):
                self._console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


_RANK = {
    state: rank
    for rank, state in enumerate(
        (
            *(State.RUNNING, State.FAILED, State.ELSEWHERE, State.STOPPED),
            *(State.WAITING, State.DONE, State.PRUNED),
        )
    )
}


def _reached(job: Job) -> list[str]:
    """Step, loss, last evaluation and speed, from the end of the run's metrics."""
    last: JsonObject = {}
    evaluation = ""
    for line in _tail(job.folder / "metrics.jsonl"):
        last |= {k: v for k, v in line.items() if k in ("step", "loss", "tokens_per_s")}
        if line.get("split") == "eval":
            named = [n for n in (*job.headlines, "cross_entropy", "accuracy") if n in line]
            evaluation = f"{line[named[0]]:.4f}" if named else ""
    if not last:
        return ["", "", "", ""]
    loss, speed = last.get("loss"), last.get("tokens_per_s")
    return [
        f"{last['step']}/{job.steps}",
        "" if loss is None else f"{loss:.3f}",
        evaluation,
        "" if speed is None else f"{speed:,.0f}",
    ]


def _tail(file: Path) -> list[JsonObject]:
    try:
        with file.open("rb") as stream:
            stream.seek(max(os.fstat(stream.fileno()).st_size - TAIL, 0))
            lines = stream.read().splitlines()
    except OSError:
        return []
    found = []
    for text in lines:
        try:
            line = parsed(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            found.append(line)
    return found
