"""Sends runs to SLURM by submitit: one run on several nodes, or an array of independent ones."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch.command import STOPPED, Command, split, with_stopped_code
from launch.xla_flags import merged, variables
from moe_jax.cli import Arguments, command_flags, run_command
from moe_jax.config.environment import PROCESS_VARIABLES
from moe_jax.config.errors import UserError
from moe_jax.sweeps.slots import Slot

USAGE = """
usage: python -m launch.slurm --logs=DIR [--nodes=N ...] -- ARGUMENTS
       python -m launch.slurm --logs=DIR --commands=FILE

Submits moe_jax.train with the arguments behind --, on all nodes as one run; or each line of FILE
(as `moe_jax.sweep --commands=FILE` writes it) as a task of a job array. Before its time is over, or
when it is preempted, a run saves, is queued again and goes on. --dry_run only prints the script.
  python -m launch.slurm --logs=runs/logs --nodes=4 --tasks_per_node=8 --gpus_per_node=8 \\
    --partition=gpu --minutes=1440 -- --config=configs/olmoe_1b_7b.py --workdir=/shared/olmoe
"""
FLAGS = command_flags()
flags.DEFINE_string(
    "logs", None, "folder of scripts and logs, on a shared disk", flag_values=FLAGS, required=True
)
flags.DEFINE_string("commands", None, "a file, a command line a line: an array", flag_values=FLAGS)
flags.DEFINE_string("name", "moe_jax", "of the job", flag_values=FLAGS)
flags.DEFINE_string("module", "moe_jax.train", "the module that is run", flag_values=FLAGS)
flags.DEFINE_enum(
    "cluster", "slurm", ["slurm", "local"], "local: this machine, without SLURM", flag_values=FLAGS
)
flags.DEFINE_integer("nodes", 1, "nodes of one run", 1, flag_values=FLAGS)
flags.DEFINE_integer("tasks_per_node", 1, "processes a node", 1, flag_values=FLAGS)
flags.DEFINE_integer("gpus_per_node", 0, "GPUs a node", 0, flag_values=FLAGS)
flags.DEFINE_integer("cpus_per_task", None, "cores a process", 1, flag_values=FLAGS)
flags.DEFINE_string("memory", None, "a node's, as 200G", flag_values=FLAGS)
flags.DEFINE_integer("minutes", 60, "time until the run is queued again", 1, flag_values=FLAGS)
flags.DEFINE_integer("grace", 120, "seconds before that in which it saves", 1, flag_values=FLAGS)
flags.DEFINE_integer("max_requeues", 100, "times that time may run out", 0, flag_values=FLAGS)
flags.DEFINE_integer("parallel", 256, "tasks of an array at a time", 1, flag_values=FLAGS)
for option in ("partition", "account", "qos", "constraint"):
    flags.DEFINE_string(option, None, "of sbatch", flag_values=FLAGS)
flags.DEFINE_boolean("wckey", True, "mark the job, which some sites refuse", flag_values=FLAGS)
flags.DEFINE_multi_string(
    "setup", [], "a shell line before the run, as 'module load cuda'", flag_values=FLAGS
)
flags.DEFINE_boolean("dry_run", False, "print the script", flag_values=FLAGS)

POLL = 0.2  # seconds
# A run that was stopped, or, while it starts, was ended by the signal that stops it.
LEAVING = (STOPPED, -signal.SIGUSR2, -signal.SIGTERM)
PATIENCE = 600.0  # seconds that SLURM, or process 0, has to queue the job again


class Run:
    """A command as a function for submitit, which calls `checkpoint` when the job must leave.

    The command runs as a process of its own; it is told by SIGUSR2, saves, and ends with STOPPED.
    SLURM sends its signals to that process too. SIGTERM, which submitit passes over, stops it
    therefore as well; the job then waits, because SLURM queues a preempted job again only if it
    has not ended by itself.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str]):
        self.command, self.environment = list(command), environment
        self._process: subprocess.Popen[bytes] | None = None
        self._waiter: threading.Thread | None = None

    def __call__(self) -> str:
        """Runs to the end. Raises RuntimeError, which fails the job, where the command fails."""
        self._process = subprocess.Popen(
            Slot().command(self.command), env=merged(os.environ, self.environment)
        )
        # submitit's handler interrupts whatever waits here, and then waits itself: for a thread,
        # since the locks of Popen.wait are not made for that.
        self._waiter = threading.Thread(target=self._process.wait, daemon=True)
        self._waiter.start()
        self._wait()
        code = self._process.returncode
        if code in LEAVING:
            time.sleep(PATIENCE)
        if code:
            what = "was stopped before its end" if code in LEAVING else "failed"
            raise RuntimeError(f"exit code {code}: {shlex.join(self.command)} {what}")
        return shlex.join(self.command)

    def _wait(self) -> None:
        while self._waiter is not None and self._waiter.is_alive():
            time.sleep(POLL)

    def checkpoint(self) -> Any:
        """Lets the command save, and gives what is to be queued again: the same command, which goes
        on by itself."""
        if self._process is not None:
            self._process.send_signal(signal.SIGUSR2)
            self._wait()
        return _submitit().helpers.DelayedSubmission(Run(self.command, self.environment))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_waiter": None}


def main(arguments: Arguments, command: Sequence[str]) -> int:
    runs = planned(FLAGS.commands, FLAGS.module, command)
    parameters = sbatch_parameters()
    if FLAGS.dry_run:
        print(script(parameters, FLAGS.logs, len(runs) if len(runs) > 1 else None))
        print("# Each task runs:")
        for run in runs:
            print(f"# {shlex.join(run.command)}")
        return 0
    if FLAGS.cluster == "local":
        for run in runs:
            job = start_here(run, parameters, FLAGS.logs)
            print(job.job_id, flush=True)
            wait_for(job)
        return 0
    for job in submit(runs, parameters, FLAGS.logs):
        print(job.job_id, flush=True)
    return 0


def wait_for(job: Any) -> None:
    """Until a local job has ended. UserError where it failed, with what it said."""
    try:
        job.result()
    except Exception as error:
        own = (job.stderr() or "").partition("Traceback")[0].splitlines()
        said = [line for line in own if line.strip() and not line.startswith("submitit ")][-5:]
        message = "\n  ".join([f"job {job.job_id} failed ({job.paths.stderr}):", *said])
        raise UserError(message, exit_code=1) from error


def planned(file: str | None, module: str, arguments: Sequence[str]) -> list[Run]:
    """The runs that the flags ask for."""
    if (file is None) == (not arguments):
        raise UserError("give either --commands=FILE, or -- and the arguments of a run")
    environment = variables("cuda") if FLAGS.gpus_per_node else {}
    if file is None:
        argv = Command.of(module, arguments).argv(sys.executable)
        return [Run(argv, environment)]
    # Independent runs, each a process by itself, whatever SLURM's variables say.
    environment |= {PROCESS_VARIABLES["processes"]: "1"}
    try:
        lines = [line for line in Path(file).read_text("utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise UserError(f"--commands={file}: no such file") from error
    if not lines:
        raise UserError(f"--commands={file}: is empty")
    if FLAGS.nodes * FLAGS.tasks_per_node > 1:
        raise UserError("a task of an array is one process: --nodes=1 --tasks_per_node=1")
    return [Run(with_stopped_code(shlex.split(line)), environment) for line in lines]


def sbatch_parameters() -> dict[str, Any]:
    """Of the job, by the names of sbatch."""
    # One process that dies ends all of them. What sbatch is told of cores, srun does not hear in
    # SLURM 22.05 and 23.02.
    cores = [f"--cpus-per-task={FLAGS.cpus_per_task}"] if FLAGS.cpus_per_task else []
    found = {
        "job_name": FLAGS.name,
        "time": FLAGS.minutes,
        "nodes": FLAGS.nodes,
        "ntasks_per_node": FLAGS.tasks_per_node,
        "gpus_per_node": FLAGS.gpus_per_node or None,
        "cpus_per_task": FLAGS.cpus_per_task,
        "mem": FLAGS.memory,
        "partition": FLAGS.partition,
        "account": FLAGS.account,
        "qos": FLAGS.qos,
        "constraint": FLAGS.constraint,
        "signal_delay_s": FLAGS.grace,
        "array_parallelism": FLAGS.parallel,
        "setup": list(FLAGS.setup) or None,
        "srun_args": ["--kill-on-bad-exit=1", *cores],
        "additional_parameters": {"requeue": True},  # the job may be queued again
    }
    given = {name: value for name, value in found.items() if value is not None}
    return given if FLAGS.wckey else {**given, "wckey": None}


def script(parameters: dict[str, Any], logs: str, tasks: int | None = None) -> str:
    """What sbatch is given. tasks: of an array."""
    slurm = _submitit().slurm.slurm
    python = shlex.quote(sys.executable)
    folder = Path(logs).expanduser().absolute()
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return slurm._make_sbatch_string(command, folder=folder, map_count=tasks, **parameters)


def submit(runs: Sequence[Run], parameters: dict[str, Any], logs: str) -> list[Any]:
    """Submits the runs, several as an array, and returns submitit's jobs."""
    try:
        executor = _submitit().SlurmExecutor(logs, max_num_timeout=FLAGS.max_requeues)
    except RuntimeError as error:
        raise UserError(f"no SLURM here ({error}); --dry_run prints the script") from error
    executor.update_parameters(**parameters)
    return executor.submit_array(runs)


def start_here(run: Run, parameters: dict[str, Any], logs: str) -> Any:
    """Starts the run on this machine, queued again as SLURM does, and returns submitit's job."""
    if parameters["nodes"] * parameters["ntasks_per_node"] > 1:
        raise UserError("--cluster=local: one process; launch.local starts several")
    executor = _submitit().LocalExecutor(logs, max_num_timeout=FLAGS.max_requeues)
    executor.update_parameters(
        timeout_min=parameters["time"],
        signal_delay_s=parameters["signal_delay_s"],
        gpus_per_node=parameters.get("gpus_per_node", 0),
    )
    return executor.submit(run)


def _submitit() -> Any:
    try:
        import submitit
        import submitit.slurm.slurm
    except ImportError as error:
        raise UserError("launch.slurm needs pip install 'moe_jax[slurm]'") from error
    return submitit


if __name__ == "__main__":
    # Under this name what is submitted can be read again by the job.
    from launch.slurm import FLAGS, USAGE, main

    own, command = split(sys.argv[1:])
    body = functools.partial(main, command=command)
    sys.exit(run_command(body, usage=USAGE, flags=FLAGS, argv=own))
