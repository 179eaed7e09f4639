"""`python -m moe_jax.doctor` tells what is here and what would be a problem."""

from __future__ import annotations

import jax
import pytest

from moe_jax.checking import doctor
from moe_jax.config import versions


@pytest.mark.lab
def test_a_good_machine(cli):
    code, out, err = cli("doctor")
    assert code == 0, out + err
    assert f"jax {jax.__version__}" in out and "8 x cpu (cpu)" in out
    assert "saved and read again" in out and "nothing here would be a problem" in out


def test_what_would_be_a_problem(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "installed", lambda name: "0.0.1" if name == "flax" else "99")
    monkeypatch.setattr(versions, "require", lambda: None)
    monkeypatch.setattr(doctor, "MIN_DISK", 2**70)
    monkeypatch.setattr(doctor, "cache_folder", lambda: tmp_path / "file" / "cache")
    (tmp_path / "file").touch()
    code, out, _ = cli("doctor")
    assert code == 1
    assert "problem: flax 0.0.1 is too old" in out
    assert "of disk are free in" in out and "nothing can be written to" in out
    assert "note: jax 99 is newer" in out
    assert "training" not in out


def test_a_model_that_does_not_train_is_told(cli, monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(doctor, "train_loop", broken)
    code, out, _ = cli("doctor")
    assert code == 1 and "cannot be trained: RuntimeError: no kernel" in out
