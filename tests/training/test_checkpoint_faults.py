"""What a machine or another process may do to checkpoints: nothing that was saved is lost."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from moe_jax.config.errors import UserError
from moe_jax.training import checkpoint as module
from moe_jax.training.checkpoint import CheckpointConfig, Checkpoints
from moe_jax.training.warm_start import warm_start
from tests.drawn import some


def state(step, dtype=jnp.float32):
    return {"w": jnp.full((8, 4), step, dtype), "count": jnp.int32(step)}


def abstract(dtype=jnp.float32):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        "w": jax.ShapeDtypeStruct((8, 4), dtype, sharding=device),
        "count": jax.ShapeDtypeStruct((), jnp.int32, sharding=device),
    }


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, state(step), data_index=step, config={}, fingerprint={})


def opened(folder, read_only=False, **config):
    return Checkpoints(folder, CheckpointConfig(**config), read_only=read_only)


def newest(folder, **config):
    """The step that would be resumed, having checked its arrays."""
    with opened(folder, **config) as checkpoints:
        restored = checkpoints.restore(abstract())
    if restored is None:
        return None
    np.testing.assert_array_equal(restored.state["w"], np.full((8, 4), restored.step))
    return restored.step


def spoil(folder):
    """Flips a bit of the largest file."""
    file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


WRITER = """
    import sys
    import jax.numpy as jnp
    from moe_jax.training.checkpoint import CheckpointConfig, Checkpoints

    with Checkpoints(sys.argv[1], CheckpointConfig(keep_last=2)) as checkpoints:
        print("open", flush=True)
        step = (checkpoints.steps() or [0])[-1]
        for step in range(step + 1, step + 1000):
            state = {"w": jnp.full((8, 4), step, jnp.float32), "count": jnp.int32(step)}
            state["ballast"] = jnp.arange(2_000_000) + step
            checkpoints.save(step, state, data_index=step, config={}, fingerprint={})
            print(step, flush=True)
"""


def test_killed_while_saving(tmp_path):
    """kill -9 at random moments of a process that does nothing but save."""
    random_ = random.Random(0)
    last = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3):  # the second save has begun, so the first is whole
            said = process.stdout.readline().strip()
        time.sleep(random_.uniform(0, 0.3))
        process.kill()
        said = process.communicate()[0].split() or [said]
        with opened(tmp_path) as checkpoints:
            found = checkpoints.read_metadata().step
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            shape = jax.ShapeDtypeStruct((2_000_000,), jnp.int32, sharding=device)
            restored = checkpoints.restore(abstract() | {"ballast": shape})
            np.testing.assert_array_equal(
                restored.state["ballast"], np.arange(2_000_000, dtype=np.int32) + found
            )
            assert checkpoints.problem(found) is None
        # What was announced as begun may be lost, the one before it never.
        assert found >= int(said[-1]) - 1 > last
        last = found
        assert not list(tmp_path.glob("*.saving*")) and not list(tmp_path.glob("*.deleted"))


KILLED = """
    import os, sys
    import jax.numpy as jnp
    from moe_jax.training import checkpoint

    left = int(sys.argv[2])  # operations on the file system before the end

    def deadly(function):
        def counted(*args, **kwargs):
            global left
            left -= 1
            if left < 0:
                os._exit(137)
            return function(*args, **kwargs)
        return counted

    checkpoint._write = deadly(checkpoint._write)
    checkpoint.sha256 = deadly(checkpoint.sha256)
    checkpoint.Path.rename = deadly(checkpoint.Path.rename)
    checkpoint.Path.unlink = deadly(checkpoint.Path.unlink)
    checkpoint.os.replace = deadly(checkpoint.os.replace)
    config = checkpoint.CheckpointConfig(keep_last=1)
    with checkpoint.Checkpoints(sys.argv[1], config) as checkpoints:
        for step in (1, 2):
            state = {"w": jnp.full((8, 4), step, jnp.float32), "count": jnp.int32(step)}
            checkpoints.save(step, state, data_index=step, config={}, fingerprint={})
            checkpoints.wait()
            print(step, flush=True)
"""


@pytest.mark.parametrize("number", some([*range(36), 1000], [*range(0, 36, 9), 1000]))
def test_no_moment_between_two_operations_is_a_bad_one(tmp_path, number):
    """The process ends just before its n-th operation: what is there is whole, and the newest that
    was announced is there; nothing is called bad, in the very first save neither."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(number)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    announced = [0, *map(int, process.stdout.split())][-1]
    assert process.returncode == (0 if announced == 2 else 137)
    with opened(tmp_path) as checkpoints:
        for step in checkpoints.steps():
            assert checkpoints.problem(step) is None
    found = newest(tmp_path)
    assert (found or 0) >= announced
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 5)
    assert newest(tmp_path) == 5


def test_disk_that_is_really_full(tmp_path, caplog):
    """A file system of 1 MiB, where root may mount one; elsewhere a write that fails as there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    patch = pytest.MonkeyPatch()
    try:
        with opened(disk) as checkpoints:
            save(checkpoints, 1)
            checkpoints.wait()
            noise = np.random.default_rng(0).integers(0, 2**31, 1_000_000, np.int32)
            if not mounted:
                patch.setattr(module, "_write", _no_space)
            large = state(2) | {"noise": jnp.asarray(noise)}
            with pytest.raises(UserError, match="no space left") as error:
                checkpoints.save(2, large, data_index=0, config={}, fingerprint={})
                checkpoints.wait()
            assert error.value.exit_code == 1
            patch.undo()
            save(checkpoints, 3)  # what was half written is gone and takes no space
        assert newest(disk) == 3
        with opened(disk) as checkpoints:
            assert checkpoints.restore(abstract(), step=1).step == 1
        assert not any(record.exc_info for record in caplog.records)  # no traceback for users
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def _no_space(*_):
    raise OSError(28, "No space left on device")


def test_failure_of_the_last_save_is_told_when_another_error_ends_the_run(
    tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(module, "_write", _no_space)
    with pytest.raises(ZeroDivisionError), opened(tmp_path) as checkpoints:
        save(checkpoints, 1)
        raise ZeroDivisionError
    assert "no space left" in capfd.readouterr().err


def test_save_under_way_survives_an_error_of_the_run(tmp_path):
    with pytest.raises(ZeroDivisionError), opened(tmp_path) as checkpoints:
        save(checkpoints, 1)
        raise ZeroDivisionError
    assert newest(tmp_path) == 1


def test_retention_keeps_the_good_when_a_later_step_is_bad(tmp_path):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 8, 12)
    spoil(tmp_path / "12")
    with opened(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.read_metadata().step == 8
        save(checkpoints, 10)
        checkpoints.wait()
        assert checkpoints.steps() == [10, 12]
        save(checkpoints, 12)
    assert newest(tmp_path) == 12
    assert (tmp_path / "12.bad").is_dir() and (tmp_path / "manifests" / "12.bad.json").exists()


def test_removal_that_was_killed_is_finished(tmp_path):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1, 2)
    (tmp_path / "1").rename(tmp_path / "1.deleted")
    with opened(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2]
    assert not (tmp_path / "1.deleted").exists()


def test_reader_leaves_a_running_save_alone(tmp_path):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1)
    (tmp_path / "2.saving.orbax-checkpoint-tmp").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with opened(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.restore(abstract()).step == 1
    assert sorted(tmp_path.rglob("*")) == before
    with opened(tmp_path / "typo", read_only=True) as checkpoints:
        assert checkpoints.read_metadata() is None
    assert not (tmp_path / "typo").exists()


def test_saving_a_good_step_again_does_nothing(tmp_path):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1)
        checkpoints.save(1, state(9), data_index=9, config={}, fingerprint={})
    assert newest(tmp_path) == 1
    assert not (tmp_path / "1.bad").exists()


def test_reading_waits_for_the_save(tmp_path):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1)
        assert checkpoints.restore(abstract()).step == 1


@pytest.mark.parametrize("content", ["", "{}", "[]", "7", '{"meta.json": 3}', "\xff"])
def test_spoilt_manifest(tmp_path, content):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1, 2)
    (tmp_path / "manifests" / "2.json").write_text(content, encoding="latin-1")
    assert newest(tmp_path) == 1


def test_bad_step_is_told_once(tmp_path, capfd):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1, 2, 3)
    spoil(tmp_path / "3")
    (tmp_path / "manifests" / "2.json").unlink()
    capfd.readouterr()
    with opened(tmp_path) as checkpoints:
        checkpoints.read_metadata()
        checkpoints.restore(abstract())
    message = capfd.readouterr().err
    assert message.count("3 is bad") == message.count("2 is bad") == 1
    assert "sha256" in message and "no manifest" in message


@pytest.mark.parametrize("file", ["arrays", "meta.json"])
def test_without_verification_unreadable_steps_are_passed_over_too(tmp_path, file):
    """verify=False reads no file twice; what then cannot be loaded is bad all the same."""
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1, 2)
    folder = tmp_path / "2"
    for path in [folder / file] if file != "arrays" else (folder / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff" * path.stat().st_size)
    assert newest(tmp_path, verify=False) == 1
    for path in (tmp_path / "1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(UserError, match="no good checkpoint"):
        newest(tmp_path, verify=False)


def test_other_dtype_is_refused_not_cast(tmp_path):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1)
        with pytest.raises(UserError, match="w: stored as float32, wanted as bfloat16"):
            checkpoints.restore(abstract(jnp.bfloat16))


def test_every_kind_of_leaf_comes_back(tmp_path):
    """bfloat16, int8, empty arrays, typed keys, and a real optimizer state with masked parts."""
    import optax

    from moe_jax.nn.param import Form
    from moe_jax.training.optimizer import Muon, make_optimizer

    params = {
        "layers": {"00": {"mlp": {"w_up": jnp.ones((2, 4, 4))}}},
        "embedding": jnp.ones((3, 4)),
    }
    forms = jax.tree.map(lambda leaf: Form.of(leaf.ndim, ((-2,), (-1,)), True), params)
    optimizer, _ = make_optimizer(Muon(), params, forms, 10)
    full = {
        "opt_state": optimizer.init(params),
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "bytes": jnp.arange(3, dtype=jnp.int8),
        "probe": jnp.full((0,), -1, jnp.int32),
        "key": jax.random.key(3),
        "router_state": {},
    }
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, full, data_index=0, config={}, fingerprint={})
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), full
        )
        found = checkpoints.restore(wanted).state
    assert jax.tree.structure(found) == jax.tree.structure(full)
    masked = optax.tree_utils.tree_get_all_with_path(found["opt_state"], "mu")
    assert masked
    for here, there in zip(jax.tree.leaves(found), jax.tree.leaves(full), strict=True):
        assert here.dtype == there.dtype
        if jnp.issubdtype(here.dtype, jax.dtypes.prng_key):
            here, there = jax.random.key_data(here), jax.random.key_data(there)
        np.testing.assert_array_equal(here, there)


def test_folder_that_cannot_be_written(tmp_path):
    if os.geteuid() == 0:  # root may write anywhere; a file in the way stops everybody
        (tmp_path / "checkpoints").write_text("")
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        opened(tmp_path / "checkpoints")


@pytest.mark.parametrize(("number", "exit_code"), [(errno.EROFS, 2), (errno.ENOSPC, 1)])
def test_folder_that_takes_no_folders(tmp_path, monkeypatch, number, exit_code):
    """Found out before Orbax starts, whose threads would hold up the end for five minutes."""
    real = Path.mkdir

    def mkdir(self, *args, **kwargs):
        if ".saving" in self.name:
            raise OSError(number, os.strerror(number), str(self))
        real(self, *args, **kwargs)

    def started(*_):
        pytest.fail("Orbax was started")

    with opened(tmp_path) as checkpoints:
        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(ocp, "save_checkpointables_async", started)
        with pytest.raises(UserError, match=str(tmp_path)) as error:
            save(checkpoints, 1)
        assert error.value.exit_code == 1
    with pytest.raises(UserError, match="cannot be written") as error:
        opened(tmp_path)
    assert error.value.exit_code == exit_code


def test_only_folders_named_like_steps_are_steps(tmp_path):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 0, 1)
        checkpoints.wait()
        for name in ("007", "\u0664", "8.bad", "9.saving"):
            (tmp_path / name).mkdir()
        (tmp_path / "3").write_text("a file in the way")
        assert checkpoints.steps() == [0, 1]
        save(checkpoints, 3)
        checkpoints.wait()
        assert checkpoints.steps() == [0, 1, 3] and (tmp_path / "3.bad").is_file()
    assert newest(tmp_path) == 3


def test_warm_start_tells_what_became_of_tensors_of_another_shape():
    new = {"mlp": {"w": np.zeros((2, 3), np.float32)}}
    old = {"mlp": {"w": np.ones((2, 4), np.float32)}}
    found, report = warm_start(new, old)
    np.testing.assert_array_equal(found["mlp"]["w"], 0)
    assert report.new == ["mlp.w"] and report.unused == ["mlp.w (2, 4), now (2, 3)"]
