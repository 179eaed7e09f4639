"""Checkpoints: exact, on any mesh, and never silently wrong."""

from __future__ import annotations

import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config.errors import UserError
from moe_jax.training import checkpoint as module
from moe_jax.training.checkpoint import CheckpointConfig, Checkpoints
from moe_jax.training.warm_start import warm_start
from tests.training.saved import abstract, mesh, restore, state


def save(folder, *steps, **config):
    with Checkpoints(folder, CheckpointConfig(**config)) as checkpoints:
        for step in steps:
            checkpoints.save(
                step,
                state(step),
                data_index=10 * step,
                config={"a": step},
                fingerprint={"rows": 5},
            )


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_round_trip_and_metadata(tmp_path):
    assert restore(tmp_path) is None
    save(tmp_path, 1, 2)
    found = restore(tmp_path)
    assert found.step == 2 and found.data_index == 20
    assert found.config == {"a": 2} and found.fingerprint == {"rows": 5}
    assert same(found.state, state(2))
    assert jax.tree.structure(found.state) == jax.tree.structure(state(2))
    assert restore(tmp_path, step=1).config == {"a": 1}
    with pytest.raises(UserError, match=r"no checkpoint of step 7; there are 1, 2"):
        restore(tmp_path, step=7)


@pytest.mark.parametrize("shape", [(2, 4), (8, 1), (2, 1), (1, 1)])
def test_other_mesh(tmp_path, shape):
    save(tmp_path, 3)
    found = restore(tmp_path, mesh(*shape))
    assert same(found.state, state(3))
    assert found.state["params"]["w"].sharding.mesh.shape == {"a": shape[0], "b": shape[1]}


def test_donation_right_after_save_is_safe(tmp_path):
    original = state(5)
    expected = jax.tree.map(np.array, original)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(5, original, data_index=0, config={}, fingerprint={})
        overwrite(original)
    assert same(restore(tmp_path).state, expected)


def test_retention(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, 6, keep_last=2, keep_every=3)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        assert checkpoints.steps() == [3, 5, 6]


def data_files(folder):
    return [f for f in folder.rglob("*") if f.is_file() and f.stat().st_size > 0]


def test_every_flipped_bit_is_noticed(tmp_path, capfd):
    save(tmp_path, 1, 2)
    rng = np.random.default_rng(0)
    for file in data_files(tmp_path / "2"):
        content = file.read_bytes()
        broken = bytearray(content)
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
        file.write_bytes(broken)
        with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
            assert file.name in checkpoints.problem(2)
            assert checkpoints.read_metadata().step == 1
        assert file.name in capfd.readouterr().err
        file.write_bytes(content)
    assert restore(tmp_path).step == 2


@pytest.mark.parametrize("fault", ["truncated", "missing", "empty", "no manifest"])
def test_bad_newest_step_is_told_and_the_one_before_is_used(tmp_path, fault, capfd):
    save(tmp_path, 1, 2)
    file = max(data_files(tmp_path / "2"), key=lambda f: f.stat().st_size)
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:-3])
    elif fault == "missing":
        file.unlink()
    elif fault == "empty":
        shutil.rmtree(tmp_path / "2")
        (tmp_path / "2").mkdir()
    else:
        (tmp_path / "manifests" / "2.json").unlink()
    found = restore(tmp_path)
    assert found.step == 1 and same(found.state, state(1))
    err = capfd.readouterr().err
    assert "warning" in err and str(tmp_path / "2") in err
    with pytest.raises(UserError, match="is bad"):
        restore(tmp_path, step=2)
    # The bad step is kept under another name when its number is saved again.
    save(tmp_path, 2)
    assert restore(tmp_path).step == 2
    assert (tmp_path / "2.bad").exists()


def test_all_bad(tmp_path):
    save(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "manifests")
    with pytest.raises(UserError, match="no good checkpoint") as error:
        restore(tmp_path)
    assert "/1 is bad" in str(error.value) and "/2 is bad" in str(error.value)


def test_other_shapes_are_told(tmp_path):
    save(tmp_path, 1)
    wanted = abstract(state())
    w = wanted["params"].pop("w")
    wanted["params"]["v"] = w
    wanted["half"] = jax.ShapeDtypeStruct((5,), jnp.bfloat16)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    with pytest.raises(UserError) as error:
        checkpoints.restore(wanted)
    message = str(error.value)
    assert "params.w: stored with shape (16, 8), not in the model" in message
    assert "params.v: wanted with shape (16, 8), not stored" in message
    assert "half: stored with shape (4,), wanted (5,)" in message


def test_full_disk_is_told_and_older_steps_stay(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        monkeypatch.setattr(module, "sha256", full)
        checkpoints.save(2, state(2), data_index=0, config={}, fingerprint={})
        with pytest.raises(UserError, match="no space left") as error:
            checkpoints.wait()
        assert error.value.exit_code == 1
        monkeypatch.undo()
        assert checkpoints.read_metadata().step == 1
        checkpoints.save(3, state(3), data_index=0, config={}, fingerprint={})
    assert restore(tmp_path).step == 3


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    save(tmp_path, 1)
    for name in ("2.saving.orbax-checkpoint-tmp", "2.saving"):
        (tmp_path / name).mkdir()
    assert restore(tmp_path).step == 1
    assert not list(tmp_path.glob("2*"))


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Checkpoints(tmp_path / "file" / "checkpoints", CheckpointConfig())


def test_warm_start_by_path_and_shape():
    def params(experts, width):
        return {
            "layers": {
                "moe": {
                    "router": {"kernel": np.arange(2 * 4 * experts).reshape(2, 4, experts) * 1.0},
                    "experts": {"w_up": np.arange(2.0 * experts * 4 * 5).reshape(2, experts, 4, 5)},
                },
                "mlp": {"w_up": np.ones((2, 4, width))},
            },
            "head": np.full((4, 7), 3.0),
        }

    old = jax.tree.map(np.float32, params(3, 6))
    new = jax.tree.map(lambda leaf: np.zeros_like(leaf, np.float32), params(5, 8))
    old["old_only"] = np.ones(2, np.float32)
    new["bias"] = np.zeros(1, np.float32)
    found, report = warm_start(new, old, grow="copy")
    up = old["layers"]["moe"]["experts"]["w_up"]
    np.testing.assert_array_equal(found["layers"]["moe"]["experts"]["w_up"], up[:, [0, 1, 2, 0, 1]])
    kernel = old["layers"]["moe"]["router"]["kernel"]
    np.testing.assert_array_equal(
        found["layers"]["moe"]["router"]["kernel"], kernel[..., [0, 1, 2, 0, 1]]
    )
    np.testing.assert_array_equal(found["head"], old["head"])
    assert np.all(found["layers"]["mlp"]["w_up"] == 0)
    assert report.used == ["head"]
    assert report.unused == ["layers.mlp.w_up (2, 4, 6), now (2, 4, 8)", "old_only"]
    assert report.new == ["bias", "layers.mlp.w_up"]
    assert len(report.adapted) == 2 and "warm start" in str(report)


def test_manifest_lists_every_file(tmp_path):
    save(tmp_path, 1)
    manifest = json.loads((tmp_path / "manifests" / "1.json").read_text())
    files = {f.relative_to(tmp_path / "1").as_posix() for f in (tmp_path / "1").rglob("*")}
    assert set(manifest) == {name for name in files if (tmp_path / "1" / name).is_file()}
