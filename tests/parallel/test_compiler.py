"""Compiled programs are kept for the next process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from moe_jax.parallel.compiler import keep_compiled_programs
keep_compiled_programs()
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
"""


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, ".cache/moe_jax/programs"),
        ({"JAX_COMPILATION_CACHE_DIR": "mine"}, "mine"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "0"}, None),
    ],
)
def test_where_programs_are_kept(tmp_path: Path, variables: dict[str, str], folder: str | None):
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    python_path = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": python_path, **variables},
        check=True,
    )
    found = {path.parent.relative_to(tmp_path) for path in tmp_path.rglob("*-cache")}
    assert found == ({Path(folder)} if folder else set())
