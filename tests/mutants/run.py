"""Puts faults into a copy of the package, one at a time, and asks whether the tests notice.

    python -m tests.mutants.run [--only=WORDS] [--drawn=PARTS:WORD] [--json=FILE] [--workers=2]

First all named tests run without a fault: a test that fails anyway would "catch" everything. Then
each fault of `faults.py` and `statistics.py` is written into a copy of the tree, and its own tests
run there. Outcomes:

  caught    pytest ended with code 1 and a test failed in its own body
  survived  the tests passed
  stale     the fragment does not stand exactly once in the file: the code has changed
  error     anything else: no test, a crash, an exception which says that the fault is no program

Exit code 0 only where every fault is caught.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.drawn import HELP, Drawn
from tests.mutants.faults import FAULTS as FAULTS_OF_PARTS
from tests.mutants.faults import Fault
from tests.mutants.guard import REPORT
from tests.mutants.statistics import STATISTICS

FAULTS = FAULTS_OF_PARTS + STATISTICS
ROOT = Path(__file__).parents[2]
COPIED = (
    *("moe_jax", "tests", "configs", "experiments", "launch", "docs"),
    *("pyproject.toml", "setup.py", "README.md"),
)
TIMEOUT = 600
# A fault that is no working program proves nothing.
BROKEN = re.compile(r"(ImportError|ModuleNotFoundError|SyntaxError|IndentationError|NameError)\b")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one fault. seconds: of its tests. by: the test that failed, and how."""

    name: str
    result: str  # caught, survived, stale, error
    seconds: float = 0.0
    by: str = ""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One run of pytest."""

    code: int
    seconds: float
    failed: dict[str, str]
    passed: list[str]
    output: str


def copy_tree(target: Path) -> Path:
    """The parts of the tree that the tests need, without what was compiled."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignore)
        else:
            shutil.copy2(source, target / name)
    return target


def run_tests(tree: Path, tests: tuple[str, ...], *options: str) -> Ran:
    """pytest in the copy and on the copy's moe_jax, whatever package is installed."""
    report = tree.parent / f"{tree.name}.json"
    report.unlink(missing_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        # A file may change twice within a second, which compiled files would not notice.
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get(
            "JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax")
        ),
        REPORT: str(report),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # The named ones may be of the grids too.
    command += ["-p", "tests.mutants.guard", "-m", "not lab and not browser", *options, *tests]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
        code, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, output = -1, f"more than {TIMEOUT} s"
    found = json.loads(report.read_text("utf-8")) if report.exists() else {}
    package = found.get("package")
    # Without a test that ran there may be no package: the exit code tells of that.
    if package and not Path(package).resolve().is_relative_to(tree.resolve()):
        raise SystemExit(f"the tests of the copy imported another moe_jax: {package}")
    return Ran(
        code=code,
        seconds=time.monotonic() - start,
        failed=found.get("failed", {}),
        passed=found.get("passed", []),
        output=output,
    )


def try_fault(fault: Fault, tree: Path) -> Outcome:
    """Writes the fault into the copy, runs its tests, takes it out again."""
    path = tree / fault.file
    text = path.read_text("utf-8") if path.exists() else ""
    times = text.count(fault.old)
    if times != 1 or fault.old == fault.new:
        return Outcome(name=fault.name, result="stale", by=f"{times} times in {fault.file}")
    path.write_text(text.replace(fault.old, fault.new), "utf-8")
    try:
        ran = run_tests(tree, fault.tests, "-x")
    finally:
        path.write_text(text, "utf-8")
    return judge(fault.name, ran)


def judge(name: str, ran: Ran) -> Outcome:
    """Caught: exit code 1, and a test failed in its own body, by an exception of a program."""
    in_body = [(test, why) for test, why in ran.failed.items() if why.startswith("call: ")]
    result, by = "error", ran.output.strip()[-300:]
    if ran.code == 0 and ran.passed:
        result, by = "survived", ""
    elif ran.code == 1 and in_body:
        test, why = in_body[0]
        by = f"{test.rpartition('/')[2]} ({why.removeprefix('call: ')[:70]})"
        result = "error" if BROKEN.match(why.removeprefix("call: ")) else "caught"
    return Outcome(name=name, result=result, seconds=round(ran.seconds, 1), by=by)


def baseline(faults: list[Fault], trees: list[Path]) -> None:
    """All named tests without a fault, shared out by file; SystemExit where one fails."""
    by_file: dict[str, set[str]] = {}
    for test in sorted({test for fault in faults for test in fault.tests}):
        by_file.setdefault(test.partition("::")[0], set()).add(test)
    waiting: queue.SimpleQueue[tuple[str, ...]] = queue.SimpleQueue()
    for tests in by_file.values():
        waiting.put(tuple(sorted(tests)))
    found: list[Ran] = []
    in_parallel(trees, waiting, lambda tree, tests: found.append(run_tests(tree, tests)))
    bad = [ran for ran in found if ran.code != 0 or not ran.passed]
    if bad or len(found) < len(by_file):
        output = "\n".join(ran.output[-3000:] for ran in bad)
        raise SystemExit(f"{output}\nthe tests fail without a fault, so that they prove nothing")
    passed = sum(len(ran.passed) for ran in found)
    print(f"{passed} tests pass without a fault", flush=True)


def in_parallel(trees, waiting, work) -> None:
    """One thread for each copy of the tree, until nothing waits. The first error ends it."""
    errors: list[BaseException] = []

    def worker(tree: Path) -> None:
        while not errors:
            try:
                work(tree, waiting.get_nowait())
            except queue.Empty:
                return
            except BaseException as error:  # shown by the main thread
                errors.append(error)

    threads = [threading.Thread(target=worker, args=(tree,), daemon=True) for tree in trees]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def try_all(faults: list[Fault], workers: int) -> list[Outcome]:
    """The outcome of each fault, in their order; one line is printed as each is known."""
    outcomes: dict[str, Outcome] = {}
    width = max(len(fault.name) for fault in faults)

    def work(tree: Path, fault: Fault) -> None:
        outcome = outcomes[fault.name] = try_fault(fault, tree)
        line = f"{outcome.result:8}  {outcome.seconds:6.1f} s  {outcome.name:{width}}  {outcome.by}"
        print(line.rstrip(), flush=True)

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [copy_tree(Path(folder) / str(i)) for i in range(workers)]
        baseline(faults, trees)
        waiting: queue.SimpleQueue[Fault] = queue.SimpleQueue()
        for fault in faults:
            waiting.put(fault)
        in_parallel(trees, waiting, work)
    return [outcomes[fault.name] for fault in faults]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Do the tests notice faults in the package?")
    parser.add_argument("--only", help="faults whose name has these words", default="")
    parser.add_argument("--drawn", type=Drawn.parse, help=HELP)
    parser.add_argument("--json", type=Path, help="file for the outcomes")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(argv)
    names = [fault.name for fault in FAULTS]
    if len(set(names)) < len(names):
        raise SystemExit(
            f"two faults of one name: {sorted({n for n in names if names.count(n) > 1})}"
        )
    faults = [
        fault
        for fault in FAULTS
        if options.only in fault.name and (options.drawn is None or fault.name in options.drawn)
    ]
    if not faults:
        raise SystemExit(f"no fault has {options.only!r} in its name")
    start = time.monotonic()
    outcomes = try_all(faults, max(1, min(options.workers, len(faults))))
    if options.json:
        table = [dataclasses.asdict(outcome) for outcome in outcomes]
        options.json.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    counts = dict.fromkeys(("caught", "survived", "stale", "error"), 0)
    for outcome in outcomes:
        counts[outcome.result] += 1
    output = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    print(f"{len(outcomes)} faults: {output}; {(time.monotonic() - start) / 60:.1f} minutes")
    return 0 if counts["caught"] == len(outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
