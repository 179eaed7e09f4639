"""Search for good values with Optuna: trials are points of a sweep's folder, run as processes.

The study (a journal in the folder, or a database) knows which trials there are and what came out;
the folder what each has reached. So a search that is killed goes on: a trial that the study holds
for running, and whose lock nobody holds, was a dead worker's, and is taken up where its checkpoint
is. Several machines may search together, each with the same command.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from types import ModuleType
from typing import IO, Any

from moe_jax.analysis.read_run import read_metrics
from moe_jax.config.diff import difference
from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json
from moe_jax.sweeps.engine import (
    POLL,
    Job,
    Observer,
    State,
    finish,
    spawn,
    stop_signals,
    take_lock,
    wait_for_all,
)
from moe_jax.sweeps.folder import CONFIG, SweepFolder
from moe_jax.sweeps.points import SweepPoint
from moe_jax.sweeps.slots import Slot, slots
from moe_jax.sweeps.table import MANY, skipped_share

# Of Optuna, which comes with an extra.
Study = Any
OptunaTrial = Any

JOURNAL, ASKED = "journal.log", "asked"
LOOK = 1.0  # seconds between two looks at a run's evaluations
SAMPLERS = ("tpe", "random")
PRUNERS = ("none", "halving", "hyperband", "median")
MIN_TRIALS = 10  # completed trials from which an importance is shown


def open_study(
    folder: Path, storage: str | None, *, sampler: str, pruner: str, maximize: bool, seed: int
) -> Study:
    """The study of a folder, made or gone on with: a journal in it, or, in a database, the study
    that has the folder's path for a name. UserError where Optuna is not installed, the storage
    cannot be opened, or the study goes the other way."""
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={folder}: cannot be written ({error.strerror})") from error
    pruners = {
        "none": optuna.pruners.NopPruner,
        "halving": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
        "median": optuna.pruners.MedianPruner,
    }
    samplers = {
        # Pretends that running trials went badly, so that parallel ones differ.
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    direction = "maximize" if maximize else "minimize"
    where = folder / JOURNAL if storage is None else "--storage"
    try:
        study = optuna.create_study(
            storage=_journal(folder / JOURNAL) if storage is None else storage,
            study_name="search" if storage is None else str(folder.resolve()),
            load_if_exists=True,
            sampler=samplers[sampler](),
            pruner=pruners[pruner](),
            direction=direction,
        )
    except Exception as error:  # Optuna and SQLAlchemy tell of a bad storage in many ways
        said = str(error).partition("\n")[0]
        raise UserError(f"{where}: cannot be opened ({type(error).__name__}: {said})") from error
    if study.direction.name.lower() != direction:
        other = study.direction.name.lower()
        raise UserError(f"{folder}: its study is to {other} a metric, this one to {direction} it")
    return study


def hold_to(study: Study, asked: Mapping[str, Json]) -> None:
    """The study keeps what was asked first. UserError where it was something else: a database
    may be shared by machines whose folders do not know of each other."""
    known = study.user_attrs.get(ASKED)
    if known is None:
        study.set_user_attr(ASKED, json.loads(json.dumps(asked)))
    elif changed := difference(known, asked):
        reported = "\n  ".join(changed)
        raise UserError(f"the study was asked something else (there -> here):\n  {reported}")


def _journal(file: Path) -> object:
    """A study's file. A line that a killed process left torn at its end is taken away, since the
    next one would be written onto it, and the file could never be read again."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    lock = JournalFileSymlinkLock(str(file))
    if file.is_file() and _torn(file):
        lock.acquire()  # nobody writes it just now
        try:
            if torn := _torn(file):
                with file.open("r+b") as stream:
                    stream.truncate(file.stat().st_size - len(torn))
                print(f"{file}: a torn last line of {len(torn)} bytes was taken away")
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(file), lock))


def _torn(file: Path) -> bytes:
    """What stands behind the last line break."""
    return file.read_bytes().rpartition(b"\n")[2]


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise UserError("moe_jax.search needs pip install 'moe_jax[sweep]'") from error
    return optuna


def trial_name(number: int) -> str:
    return f"trial-{number:04d}"


@dataclass
class _Trial:
    trial: OptunaTrial
    job: Job
    process: Popen[bytes]
    slot: Slot
    lock: IO[bytes]
    since: float
    reported: set[int] = field(default_factory=set)  # steps whose evaluation was reported
    pruned: bool = False
    looked: float = 0.0


@dataclass
class Search:
    """A search as one process sees it.

    build: the point of (parameters, name), which raises UserError where they fit no config.
    job_of: what runs it. metric: of its evaluations. prunes: whether to report on the way.
    """

    study: Study
    folder: SweepFolder
    distributions: Mapping[str, object]
    build: Callable[[Mapping[str, object], str], SweepPoint]
    job_of: Callable[[SweepPoint], Job]
    metric: str
    prunes: bool

    def run(self, trials: int, workers: int, observer: Observer, jobs: list[Job]) -> None:
        """Goes on until the study has `trials` trials that are over. jobs: filled with those of
        this process, for the observer. Ctrl-C and SIGTERM let the runs save, and raise
        KeyboardInterrupt."""
        free, running = slots(workers), list[_Trial]()
        self._states: dict[str, State] = {}
        with stop_signals() as stop:
            try:
                while not stop:
                    for one in [*running]:
                        if self._look(one, observer):
                            running.remove(one)
                            free.append(one.slot)
                    while free and (started := self._next(trials, free[0], observer, jobs)):
                        free.pop(0)
                        running.append(started)
                    observer.tick(self._states)
                    if not running and self._over(trials):
                        break
                    time.sleep(POLL)
            finally:
                wait_for_all([one.process for one in running])
                for one in running:
                    one.lock.close()
        if stop:
            raise KeyboardInterrupt

    def _over(self, trials: int) -> bool:
        """Whether there is nothing left to do, for any process."""
        found = self.study.get_trials(deepcopy=False)
        return len(found) >= trials and all(trial.state.is_finished() for trial in found)

    def _next(self, trials: int, slot: Slot, observer: Observer, jobs: list[Job]) -> _Trial | None:
        """A dead worker's trial, else a new one; None where there is none (just now)."""
        # One search asks at a time: two that count at once would both ask for the last trial.
        if (asking := take_lock(self.folder.path)) is None:
            return None
        with asking:
            return self._ask(trials, slot, observer, jobs)

    def _ask(self, trials: int, slot: Slot, observer: Observer, jobs: list[Job]) -> _Trial | None:
        optuna = _optuna()
        found = self.study.get_trials(deepcopy=False)
        for frozen in found:
            if frozen.state == optuna.trial.TrialState.RUNNING:
                trial = optuna.trial.Trial(self.study, frozen._trial_id)
                if (started := self._start(trial, slot, observer, jobs, adopted=True)) is not None:
                    return started
        for _ in range(trials - len(found)):
            trial = self.study.ask(dict(self.distributions))
            if (started := self._start(trial, slot, observer, jobs)) is not None:
                return started
        return None

    def _start(
        self,
        trial: OptunaTrial,
        slot: Slot,
        observer: Observer,
        jobs: list[Job],
        adopted: bool = False,
    ) -> _Trial | None:
        """Starts a trial; None where its parameters fit no config (the study is told), or where
        another process runs it."""
        name = trial_name(trial.number)
        lock = take_lock(self.folder.path / "points" / name)
        if lock is None:
            return None
        if adopted and _finished(self.study, trial):  # by its worker, since we looked
            lock.close()
            return None
        try:
            point = self.build(trial.params, name)
        except UserError as error:
            trial.set_user_attr("problem", str(error))
            self.study.tell(trial, state=_optuna().trial.TrialState.FAIL)
            lock.close()
            return None
        if changed := self.folder.changes(point):
            lock.close()
            reported = "\n  ".join(changed)
            raise UserError(f"{self.folder.path} holds trials of another study:\n  {reported}")
        if not (self.folder.point_folder(point) / CONFIG).is_file():
            self.folder.write_config(point)
        job = self.job_of(point)
        if all(known.name != name for known in jobs):
            jobs.append(job)
        self._set(job, State.RUNNING, observer)
        return _Trial(trial, job, spawn(job, slot, lock), slot, lock, time.time())

    def _look(self, one: _Trial, observer: Observer) -> bool:
        """Reports what a run has reached, and what became of it; whether it has ended."""
        code = one.process.poll()
        if code is None:
            if time.time() - one.looked >= LOOK:
                one.looked = time.time()
                self._report(one)
            return False
        TrialState = _optuna().trial.TrialState
        self._report(one, prune=False)
        values = self._evaluations(one.job)
        if code == 0 and one.job.whole() and values:
            finish(one.job.folder, one.since)
            if skipped := skipped_share(read_metrics(one.job.folder)):
                one.trial.set_user_attr("skipped", skipped)
            self.study.tell(one.trial, values[max(values)])
            self._set(one.job, State.DONE, observer)
        elif one.pruned:
            self.study.tell(one.trial, state=TrialState.PRUNED)
            self._set(one.job, State.PRUNED, observer)
        else:
            one.trial.set_user_attr("problem", f"ended with exit code {code}")
            self.study.tell(one.trial, state=TrialState.FAIL)
            self._set(one.job, State.FAILED, observer)
        one.lock.close()
        return True

    def _report(self, one: _Trial, prune: bool = True) -> None:
        for step, value in sorted(self._evaluations(one.job).items()):
            if step not in one.reported:
                one.reported.add(step)
                one.trial.report(value, step)
        if prune and self.prunes and one.reported and not one.pruned and one.trial.should_prune():
            one.pruned = True
            one.process.terminate()  # it saves, and may be gone on with by hand

    def _evaluations(self, job: Job) -> dict[int, float]:
        """step -> the metric."""
        try:
            lines = read_metrics(job.folder)
        except UserError:
            return {}
        return {
            line["step"]: float(line[self.metric])
            for line in lines
            if line.get("split") == "eval" and line.get(self.metric) is not None
        }

    def _set(self, job: Job, state: State, observer: Observer) -> None:
        self._states[job.name] = state
        observer.changed(job, state)

    def points(self) -> list[SweepPoint]:
        """Of the trials that have a config, in their order."""
        found = []
        for trial in self.study.get_trials(deepcopy=False):
            try:
                found.append(self.build(trial.params, trial_name(trial.number)))
            except UserError:
                continue
        return found


def _finished(study: Study, trial: OptunaTrial) -> bool:
    return study.get_trials(deepcopy=False)[trial.number].state.is_finished()


def best_trials(study: Study, most: int = 10) -> Sequence[OptunaTrial]:
    """Those that came to an end without many skipped updates, the best first."""
    complete = [t for t in study.get_trials(deepcopy=False) if t.value is not None]
    complete = [t for t in complete if t.state.name == "COMPLETE" and math.isfinite(t.value)]
    complete = [t for t in complete if t.user_attrs.get("skipped", 0.0) <= MANY]
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    return sorted(complete, key=lambda t: sign * t.value)[:most]


def command_of(
    config: str, common: Sequence[tuple[str, object]], parameters: Mapping[str, object]
) -> str:
    """The command that trains a trial again: what the user set for all of them, and its own."""
    given = [f"--config.{path}={value}" for path, value in [*common, *parameters.items()]]
    return shlex.join(
        ["python", "-m", "moe_jax.train", f"--config={config}", "--workdir=DIR", *given]
    )


def importances(study: Study) -> dict[str, float]:
    """path -> the share of a setting in what sets the best trials apart, the largest first.

    PED-ANOVA (2304.10255) of the completed trials: how far the values of the best tenth (two at
    the least) differ from those of all; rough below some 50 trials. Shares sum to 1. Nothing while
    fewer than MIN_TRIALS are complete.
    """
    optuna = _optuna()
    if len(best_trials(study, MIN_TRIALS)) < MIN_TRIALS:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {path: float(share) for path, share in found.items()}
