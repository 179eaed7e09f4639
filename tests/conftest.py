"""Eight host devices, strict types, checked annotations, one compilation cache.

Set before anything imports jax; subprocesses that a test starts inherit the environment.
"""

from __future__ import annotations

import gc
import importlib
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from moe_jax.config import xla_flags
from tests import drawn

DEVICES = 8
TESTS = Path(__file__).parent

os.environ["JAX_PLATFORMS"] = "cpu"
WANTED = (
    f"--xla_force_host_platform_device_count={DEVICES}",
    # Eight device threads on a busy machine with two cores may wait long for each other.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    # Nearly all the time goes to compiling programs that run once on a few rows; this is the
    # compiler's quick way, a third of the time. jax from 0.11 on has no such emitters to turn off.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    # One piece a program: putting pieces together again costs more than two cores win.
    "--xla_cpu_parallel_codegen_split_count=1",
)
xla_flags.add(*xla_flags.known(WANTED, warn=False))
# Workers, subprocesses and the next run share what was compiled, however small.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(TESTS.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Tracing makes very many objects that stay: looking for cycles as often as Python does by default
# took a tenth of the time.
gc.set_threshold(100_000, 20, 100)

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

import tests.annotations  # noqa: E402, F401 - named as a string below
from moe_jax.cli import run_command  # noqa: E402
from moe_jax.models import transformer  # noqa: E402

jaxtyping.install_import_hook(
    ["moe_jax.routing", "moe_jax.dispatch", "moe_jax.ops", "moe_jax.parallel"],
    "tests.annotations.check",
)
from moe_jax.routing import ROUTERS  # noqa: E402
from tests.compiled import compiled  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Here layers run as a loop, as on accelerators, which is traced and compiled once and not layer by
# layer: a quarter of these folders' time. All others have them one by one, as users on CPU do, and
# training/test_restack.py compares the two.
LOOPED = ("analysis", "checking", "models", "nn", "planning", "training")
UNROLLED_ON_CPU = transformer.UNROLLED_ON_CPU

# Not everywhere: optax multiplies integers by floats, so its callers cannot be strict.
STRICT_DTYPES = ("routing", "dispatch", "ops", "parallel", "nn", "models", "tasks")


for owner in {base for kind in ROUTERS.values() for base in kind.__mro__ if "route" in vars(base)}:
    owner.route = compiled(owner.route)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--drawn", type=drawn.Drawn.parse, help=f"tests: {drawn.HELP}")
    parser.addoption("--drawn-files", type=drawn.Drawn.parse, help=f"files: {drawn.HELP}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for option, name_of in (
        ("--drawn", lambda item: item.nodeid),
        ("--drawn-files", lambda item: item.nodeid.partition("::")[0]),
    ):
        part = config.getoption(option)
        if part is not None:
            left_out = [item for item in items if name_of(item) not in part]
            items[:] = [item for item in items if name_of(item) in part]
            config.hook.pytest_deselected(items=left_out)


def pytest_sessionstart() -> None:
    if jax.device_count() != DEVICES:
        pytest.exit(f"the tests need {DEVICES} CPU devices, found {jax.devices()}", returncode=1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    folder = item.path.relative_to(TESTS).parts[0]
    transformer.UNROLLED_ON_CPU = 0 if folder in LOOPED else UNROLLED_ON_CPU


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Behind each file its compiled programs go: each has several memory maps, a process no more
    than vm.max_map_count of them (65,530), and XLA crashes where one is refused."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def strict_dtypes(request: pytest.FixtureRequest) -> Iterator[None]:
    """No implicit promotion of dtypes in the tests of our own array code."""
    folder = request.path.relative_to(TESTS).parts[0]
    with jax.numpy_dtype_promotion("strict") if folder in STRICT_DTYPES else nullcontext():
        yield


@pytest.fixture
def one_device_flags() -> str:
    """XLA_FLAGS of a process that is to see one device, and to compile as quickly as the tests."""
    return re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])


@pytest.fixture
def cli(capsys):
    """command("train", "--flag=...") -> (exit code, stdout, stderr), in this process."""

    def call(name: str, *argv: str) -> tuple[int, str, str]:
        module = importlib.import_module(f"moe_jax.{name}")
        code = run_command(module.main, usage=module.USAGE, flags=module.FLAGS, argv=list(argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
