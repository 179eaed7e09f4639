"""What environment.json holds."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import pytest

from moe_jax.config.environment import environment, git_revision
from moe_jax.parallel.mesh import MeshConfig, make_mesh


def test_it_is_json_and_tells_versions_devices_and_mesh():
    message = environment(make_mesh(MeshConfig(data=2, expert=4)))
    assert json.loads(json.dumps(message)) == message
    assert message["python"] == ".".join(map(str, sys.version_info[:3]))
    assert message["versions"]["jax"] == jax.__version__
    assert message["devices"] == {"platform": "cpu", "kind": "cpu", "count": 8}
    assert message["processes"] == 1
    assert message["mesh"] == {"data": 2, "fsdp": 1, "expert": 4, "tensor": 1, "sequence": 1}
    assert "xla_force_host_platform_device_count=8" in message["variables"]["XLA_FLAGS"]
    assert environment({"data": 1})["mesh"] == {"data": 1}
    assert environment()["mesh"] is None


@pytest.fixture
def git(tmp_path):
    def run(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    return run


def test_revision_and_changes_of_a_checkout(git, tmp_path):
    assert git_revision(tmp_path) is None
    git("init")
    assert git_revision(tmp_path) == {"revision": None, "dirty": False}
    (tmp_path / "a.py").write_text("1\n")
    git("add", "a.py")
    git("commit", "-m", "one")
    revision = git("rev-parse", "HEAD")
    assert git_revision(tmp_path) == {"revision": revision, "dirty": False}
    (tmp_path / "a.py").write_text("2\n")
    assert git_revision(tmp_path) == {"revision": revision, "dirty": True}


def test_an_environment_inside_some_other_checkout_has_no_revision(git, tmp_path):
    git("init")
    (tmp_path / "site-packages").mkdir()
    assert git_revision(tmp_path / "site-packages") is None
