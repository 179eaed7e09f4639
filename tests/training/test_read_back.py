"""Nothing counts as saved before its files were read."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from moe_jax.config.errors import UserError
from moe_jax.training import read_back
from moe_jax.training.checkpoint import CheckpointConfig, Checkpoints
from tests.training.saved import abstract, restore, state

TYPES = ("float32", "bfloat16", "float16", "int8", "int32", "uint32", "bool", "complex64")


def value(dtype: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(16, 8)) * 100
    return (numbers > 0 if dtype == "bool" else numbers).astype(jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_checksum_is_the_same_wherever_it_is_taken(dtype):
    array = value(dtype)
    expected = read_back.checksum(array)
    assert read_back.checksum(jnp.asarray(array)) == expected
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for spec in (("a", "b"), ("b", None), (None, ("a", "b"))):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        assert read_back.checksum(jax.device_put(array, sharding)) == expected


@pytest.mark.parametrize("dtype", TYPES)
def test_the_checksum_sees_bits_and_places(dtype):
    array = value(dtype)
    expected = read_back.checksum(array)
    for places in ([0], [7, 60], [15, 16, 127]):
        other = array.copy()
        flat = other.reshape(-1).view(np.uint8)  # the last bytes of elements: signs, of numbers
        for place in places:
            flat[(place + 1) * array.dtype.itemsize - 1] ^= 1 if dtype == "bool" else 128
        assert read_back.checksum(other) != expected
    swapped = np.concatenate([array[8:], array[:8]])
    assert read_back.checksum(swapped) != expected


def test_a_checksum_of_slices_is_that_of_the_whole(tmp_path, monkeypatch):
    """What is read of a large array in parts."""
    monkeypatch.setattr(read_back, "SLICE_BYTES", 100)
    save(tmp_path, read_back="values")
    assert restore(tmp_path).step == 1


def test_checksums_are_taken_one_after_the_other(tmp_path, monkeypatch):
    """Two of these programs at once hung two processes of which each had begun with another: the
    devices of a program wait for each other. Here each has 8 devices to sum over."""
    mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
    large = {name: jax.device_put(np.ones((8, 1 << 18)), sharding) for name in "abcd"}
    begun, at_once, take = [], [], read_back._on_devices

    def recorded(array):
        at_once.extend(sum_ for sum_ in begun if not sum_.is_ready())
        begun.append(take(array))
        return begun[-1]

    monkeypatch.setattr(read_back, "_on_devices", recorded)
    with Checkpoints(tmp_path, CheckpointConfig(read_back="values")) as checkpoints:
        checkpoints.save(1, large, data_index=1, config={}, fingerprint={})
        assert len(begun) == 4 and not at_once


def test_a_sample_comes_round():
    arrays = {name: np.zeros((1024, 1024, 4), np.float32) for name in "abcdefgh"}  # of 16 MiB
    arrays["empty"] = np.zeros((0, 3))
    assert read_back.drawn(arrays, "index", 0) == []
    assert read_back.drawn(arrays, "values", 3) == list("abcdefgh")
    assert read_back.drawn(arrays, "sample", 0) == list("abcd")
    assert read_back.drawn(arrays, "sample", 7) == list("habc")
    assert read_back.drawn({"empty": arrays["empty"]}, "sample", 7) == []


def save(folder, step=1, **config):
    with Checkpoints(folder, CheckpointConfig(**config)) as checkpoints:
        checkpoints.save(step, state(step), data_index=0, config={}, fingerprint={})


FAULTS = {
    "missing": (lambda tree: tree.pop("half"), "half is not there"),
    "shape": (lambda tree: tree.update(half=jnp.zeros(5, jnp.bfloat16)), r"shape \(5,\), not"),
    "dtype": (lambda tree: tree.update(half=jnp.zeros(4)), "float32, not bfloat16"),
    "values": (lambda tree: tree.update(half=tree["half"] + 1), "has other values"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_in_the_files_is_not_published(fault, tmp_path, monkeypatch):
    """A library that says it has written, and has not."""
    spoil, message = FAULTS[fault]
    honest = ocp.save_checkpointables_async

    def forgetful(folder, trees):
        tree = dict(trees["state"])
        spoil(tree)
        return honest(folder, {"state": tree})

    save(tmp_path, 1)
    monkeypatch.setattr(ocp, "save_checkpointables_async", forgetful)
    with pytest.raises(UserError, match=f"cannot be read back: .*{message}"):
        save(tmp_path, 2, read_back="values")
    assert not list((tmp_path).glob("2*"))
    assert restore(tmp_path).step == 1
    if fault == "values":
        save(tmp_path, 3, read_back="index")  # which looks at no values
        assert restore(tmp_path).step == 3


def test_a_lost_block_is_found(tmp_path):
    """One file of blocks is emptied under a good index."""
    save(tmp_path)
    meta = json.loads((tmp_path / "1" / "meta.json").read_text())
    folder = tmp_path / "1" / "state"
    assert list(read_back.problems(folder, meta, {})) == []
    for file in folder.rglob("d/*"):
        file.write_bytes(b"")
    with pytest.raises(Exception, match=r"."):
        list(read_back.problems(folder, meta, {}))


@pytest.mark.parametrize("name", ["br[1]", "a\\b", "x[a-z]y"])
def test_a_folder_whose_name_is_a_pattern(name, tmp_path):
    """Orbax loses its own files there, and says that it has written them."""
    with pytest.raises(UserError, match="cannot be read back"):
        save(tmp_path / name)


@pytest.mark.parametrize("name", ["a b", "ü%41#", "$HOME 'x' \"y\"", "n\nl", "~x", "-d", 200 * "x"])
def test_other_odd_names(name, tmp_path):
    save(tmp_path / name)
    with Checkpoints(tmp_path / name, CheckpointConfig()) as checkpoints:
        assert checkpoints.restore(abstract(state())).step == 1
