"""What tests of whole sweeps share."""

from __future__ import annotations

import os
import re

import pytest


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that a test starts see one CPU device, not the eight of the tests themselves."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    monkeypatch.setenv("XLA_FLAGS", flags)
