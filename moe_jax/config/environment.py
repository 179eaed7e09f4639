"""What a run ran on and with: the content of environment.json; the variables that say which process
of a run this one is."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from moe_jax.config.json_files import JsonObject

LIBRARIES = (
    "moe_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain",
    "tensorflow-datasets", "array_record", "ml_collections", "numpy",
)  # fmt: skip
# Stand for the flags of the same name, in processes that something else starts.
PROCESS_VARIABLES = {
    "coordinator": "MOE_JAX_COORDINATOR",
    "processes": "MOE_JAX_PROCESSES",
    "process": "MOE_JAX_PROCESS",
}
VARIABLES = ("JAX_", "LIBTPU_", "NCCL_", "XLA_")  # prefixes of what changes how jax runs


def environment(mesh: Any = None) -> JsonObject:
    """Python, platform, versions, git revision, devices and `mesh`, ready for JSON.

    mesh: a jax Mesh or a mapping of axis to size. Starts jax's backend.
    """
    import jax  # here, so that a command tells of a bad flag at once

    devices = jax.devices()
    shape: Mapping[str, int] | None = getattr(mesh, "shape", mesh)
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "git": git_revision(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        "processes": jax.process_count(),
        "mesh": None if shape is None else dict(shape),
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)
        },
    }


def _version(name: str) -> str | None:
    """None for a library that is not installed (moe_jax itself, run from its folder)."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_revision(root: Path | None = None) -> JsonObject | None:
    """{"revision", "dirty"} of the checkout whose top is `root`, None where it is none.

    root: by default the folder that holds the package. An environment within some other checkout
    does not count. dirty: whether tracked files differ from the revision.
    """
    root = (root or Path(__file__).parents[2]).resolve()
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != root:
        return None
    revision = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision or None, "dirty": bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
