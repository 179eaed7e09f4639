"""All that needs a GPU, in one call: stages with limits of their own, one JSON, one table.

    python -m experiments.benchmarks.gpu OUT [--dry-run] [--only=STAGE,...] [--seconds=S]

Use gpu.sh, which unpacks what is carried. After each stage OUT/gpu.json is written whole; a stage
that fails or runs into its limit leaves what it had found by then, with the end of what it said.
Without a GPU, and with --dry-run, all stages run at tiny sizes. Only the standard library is
needed here, so that nothing a stage needs can stop the script.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.gpu.stage import PACKAGE, STAGES, write_whole
from experiments.benchmarks.tables import show

SCHEMA = "moe_jax.gpu/1"
# Seconds, in the order of worth; together they are what one call has.
LIMITS = {
    "device": 40,
    "correctness": 80,
    "mixtral": 70,
    "olmoe": 70,
    "deepseek": 65,
    "step": 90,
    "quickstart": 55,
}
SLOWER = 4  # times as long has a dry run, which compiles on few and shared cores
SECONDS = 470
TAIL, LOG = 2000, 200_000  # bytes of what a stage said: in the JSON, in the log
GRACE = 3.0  # seconds for a stage to end after it is told to
MIN_SECONDS = 10.0  # seconds that are worth beginning a stage


@dataclass
class Stopped(Exception):
    """The whole script is told to end."""

    number: int


class Script:
    """The stages one after the other, and the file that they fill."""

    def __init__(self, out: Path, seconds: float, dry: bool):
        self.out, self.dry = out, dry
        self.end = time.monotonic() + seconds
        self.found: dict[str, Any] = {
            "schema": SCHEMA,
            "begun": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            "commit": commit(),
            "dry_run": dry,
            "machine": {"python": platform.python_version()},
            "stages": {},
        }
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.log").write_bytes(b"")

    def save(self) -> None:
        write_whole(self.out / "gpu.json", json.dumps(self.found, indent=1) + "\n")

    def run(self, name: str) -> None:
        """One stage; its record is saved before and after it."""
        own = LIMITS[name] * (SLOWER if self.dry else 1)
        limit = min(float(own), self.end - time.monotonic() - GRACE)
        record: dict[str, Any] = {"status": "skipped", "limit": round(limit, 1)}
        self.found["stages"][name] = record
        if limit < MIN_SECONDS:
            record["error"] = "no time was left"
            self.save()
            return
        record["status"] = "running"
        self.save()
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._run(name, record, limit, Path(folder))
            finally:
                self.save()
        print(f"{name}: {record['status']}, {record['seconds']:.0f} s", flush=True)

    def _run(self, name: str, record: dict[str, Any], limit: float, folder: Path) -> None:
        result, log = folder / "result.json", folder / "log"
        begun = time.monotonic()
        try:
            with log.open("wb") as stream:
                process = subprocess.Popen(
                    self.command(name, result, limit),
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=self._environment(name, folder),
                    start_new_session=True,  # a group of its own: its children end with it
                )
            record["status"] = wait(process, limit)
        finally:
            record["seconds"] = round(time.monotonic() - begun, 2)
            if record["status"] == "running":
                record["status"] = "stopped"
            said = log.read_bytes()
            with (self.out / "gpu.log").open("ab") as stream:
                stream.write(f"\n=== {name}: {record['status']}\n".encode() + said[-LOG:])
            if result.exists():
                record["result"] = json.loads(result.read_text("utf-8"))
            if record["status"] != "ok":
                record["error"] = said[-TAIL:].decode("utf-8", "replace")

    def command(self, name: str, result: Path, limit: float) -> list[str]:
        command = [sys.executable, "-m", f"{PACKAGE}.stage", name, str(result), f"{limit:.0f}"]
        return command + ["--tiny"] * self.dry

    def _environment(self, name: str, folder: Path) -> dict[str, str]:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder)}
        # PyTorch needs its part of the memory, but for the step, which is alone.
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true" if name == "step" else "false"
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"
        # What the machine has; nothing may be fetched.
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        if self.dry:
            environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        return environment

    def learn_device(self) -> None:
        """The machine's figures to the front of the file, and whether it has a GPU."""
        result = self.found["stages"]["device"].get("result", {})
        self.found["machine"] |= result.get("machine", {})
        self.found["machine"] |= result.get("versions", {})
        if result.get("machine", {}).get("platform", "gpu") != "gpu":
            self.dry = self.found["dry_run"] = True
        if config := result.get("target_config"):
            write_whole(self.out / "target_config.pbtxt", config)
        self.save()


def wait(process: subprocess.Popen[bytes], limit: float) -> str:
    """The stage's status, once it and all its children have ended."""
    try:
        code = process.wait(limit)
        return "ok" if code == 0 else f"failed ({code})"
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            try:
                os.killpg(process.pid, number)
                process.wait(seconds)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def commit() -> str | None:
    """The commit of the tree: what COMMIT says, for a copy without its history, or git."""
    if measured := os.environ.get("COMMIT"):
        return measured
    try:
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu.sh", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of gpu.json, gpu.md and gpu.log")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--only", default=",".join(LIMITS), help="stages, with commas")
    text = f"of the whole script; {SECONDS}, and {SLOWER} times that in a dry run"
    parser.add_argument("--seconds", type=float, help=text)
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if strange := [name for name in names if name not in STAGES]:
        parser.error(f"no stage {', '.join(strange)}; there are {', '.join(STAGES)}")

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    signal.signal(signal.SIGTERM, stop)
    seconds = options.seconds or SECONDS * (SLOWER if options.dry_run else 1)
    script = Script(options.out, seconds, options.dry_run)
    code = 0
    try:
        for name in names:
            script.run(name)
            if name == "device":
                script.learn_device()
    except (Stopped, KeyboardInterrupt):
        code = 1
    table = "\n".join(show(script.found)) + "\n"
    write_whole(options.out / "gpu.md", table)
    print(table, flush=True)
    bad = [stage for stage in script.found["stages"].values() if stage["status"] != "ok"]
    return 1 if bad else code


if __name__ == "__main__":
    sys.exit(main())
