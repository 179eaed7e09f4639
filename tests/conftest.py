"""Eight host devices, strict types, checked annotations. Runs before anything imports jax."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

DEVICES = 8

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        f"--xla_force_host_platform_device_count={DEVICES}",
        # Eight device threads on a busy machine with two cores may wait long for each other.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
).strip()

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jaxtyping.install_import_hook(
    ["moe_jax.routing", "moe_jax.dispatch", "moe_jax.ops", "moe_jax.parallel"], "beartype.beartype"
)


def pytest_sessionstart() -> None:
    if jax.device_count() != DEVICES:
        pytest.exit(f"the tests need {DEVICES} CPU devices, found {jax.devices()}", returncode=1)
