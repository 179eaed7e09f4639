"""What tests of whole sweeps share."""

from __future__ import annotations

import pytest


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch, one_device_flags: str) -> None:
    """Runs that a test starts see one CPU device, not the eight of the tests themselves."""
    monkeypatch.setenv("XLA_FLAGS", one_device_flags)
