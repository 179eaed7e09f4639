"""Whether a machine is ready for moe_jax: what is installed, what is free, and a short run."""

from __future__ import annotations

import contextlib
import io
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from moe_jax.analysis.read_run import read_metrics
from moe_jax.config import versions, xla_flags
from moe_jax.config.environment import LIBRARIES, VARIABLES
from moe_jax.config.errors import UserError
from moe_jax.data.planted import Planted
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.compiler import cache_folder, keep_compiled_programs
from moe_jax.parallel.host_memory import available_memory
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.experiment import EvalConfig, Experiment
from moe_jax.training.loop import train as train_loop
from moe_jax.training.optimizer import AdamW, WarmupCosine
from moe_jax.training.writers import LoggingConfig

GIB = 2**30
MIN_DISK, MIN_MEMORY = 2 * GIB, 2 * GIB  # for the quickstart
Say = Callable[[str], None]


def examine(*, train: bool, say: Say) -> list[str]:
    """Says what there is, line by line, and returns what would be a problem, one sentence each."""
    problems = [*_libraries(say), *_devices(say), *_variables(say), *_room(say)]
    if train and not problems:
        problems += _short_run(say)
    for problem in problems:
        say(f"problem: {problem}")
    if not problems:
        say("nothing here would be a problem")
    return problems


def _libraries(say: Say) -> Iterator[str]:
    say(f"Python {sys.version.split()[0]} on {platform.platform()}")
    found = {name: versions.installed(name) for name in LIBRARIES}
    say(", ".join(f"{name} {release}" for name, release in found.items() if release))
    for sentence in versions.newer_than_tested():
        say(f"note: {sentence}")
    yield from versions.problems()


def _devices(say: Say) -> Iterator[str]:
    try:
        devices = jax.devices()
    except RuntimeError as error:
        yield f"JAX does not start: {error}"
        return
    memory = (devices[0].memory_stats() or {}).get("bytes_limit") if devices else None
    each = f", {memory / GIB:.0f} GiB each" if memory else ""
    say(f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}){each}")
    if devices[0].platform == "cpu" and Path("/proc/driver/nvidia").exists():
        yield (
            "there is an NVIDIA GPU, but JAX sees only the CPU: "
            "pip install -e '.[gpu]' brings what is missing"
        )


def _variables(say: Say) -> Iterator[str]:
    """The environment variables that change how JAX runs."""
    for name, value in sorted(os.environ.items()):
        if name.startswith(VARIABLES):
            say(f"{name}={value}")
    try:
        xla_flags.require_known()
    except UserError as error:
        yield str(error)


def _room(say: Say) -> Iterator[str]:
    keep_compiled_programs()
    folder = cache_folder()
    say(f"compiled programs are kept in {folder}" if folder else "compiled programs are not kept")
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            yield f"nothing can be written to {folder}: {error.strerror}"
    here = shutil.disk_usage(Path.cwd()).free
    memory = available_memory()
    text = f", {memory / GIB:.1f} GiB of memory" if memory is not None else ""
    say(f"{os.cpu_count()} CPU cores{text}, {here / GIB:.1f} GiB of disk are free here")
    if here < MIN_DISK:
        yield f"less than {MIN_DISK / GIB:.0f} GiB of disk are free in {Path.cwd()}"
    if memory is not None and memory < MIN_MEMORY:
        yield f"less than {MIN_MEMORY / GIB:.0f} GiB of memory are free"


def tiny(steps: int) -> Experiment:
    """A sparse model that learns something in a moment, on data that is made here."""
    devices = math.gcd(jax.device_count(), 8)
    data = Planted(sequence_length=32, sources=2, symbols=16, rows=256, validation_rows=16)
    return Experiment(
        name="doctor",
        steps=steps,
        batch_size=8,
        data=data,
        model=DecoderConfig(
            vocab_size=16, num_layers=1, model_dim=32, num_heads=2, num_kv_heads=2, head_dim=16
        ),
        moe=MoEConfig(num_experts=4, expert_dim=32),
        optimizer=AdamW(learning_rate=1e-2, schedule=WarmupCosine(warmup_steps=2)),
        mesh=MeshConfig(data=devices),
        evaluation=EvalConfig(every=0, batches=1),
        checkpoint=CheckpointConfig(every=steps),
        logging=LoggingConfig(every=1, probe_every=0, load_every=0),
    )


def _short_run(say: Say) -> Iterator[str]:
    """Trains, saves, and takes the run up again from what was saved."""
    if jax.device_count() != math.gcd(jax.device_count(), 8):
        say("no short run: it takes 1, 2, 4 or 8 devices")
        return
    steps, start = 20, time.perf_counter()
    say("training a tiny sparse model ...")
    with tempfile.TemporaryDirectory(prefix="moe_jax_doctor_") as folder:
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                train_loop(tiny(steps), folder)
                again = train_loop(tiny(steps), folder)
        except Exception as error:  # whatever it is: that is what is asked here
            yield f"a tiny model cannot be trained: {type(error).__name__}: {error}"
            return
        lines = [line for line in read_metrics(Path(folder)) if line["split"] == "train"]
    first, last = lines[0]["loss"], lines[-1]["loss"]
    seconds = time.perf_counter() - start
    say(f"{steps} steps in {seconds:.1f} s, loss {first:.3f} -> {last:.3f}, saved and read again")
    if not last < first:
        yield f"a tiny model does not learn: its loss went from {first} to {last}"
    if again.step != steps:
        yield f"a saved run was taken up at step {again.step} instead of {steps}"
