"""A pytest plugin: which tests failed and how, and from where moe_jax was imported, into a file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

REPORT = "MOE_JAX_MUTANT_REPORT"  # environment: the file to write
_failed: dict[str, str] = {}
_passed: set[str] = set()


def pytest_runtest_logreport(report) -> None:
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash else str(report.longrepr)
        _failed.setdefault(report.nodeid, f"{report.when}: {message.strip().splitlines()[0]}")
    elif report.when == "call" and report.passed:
        _passed.add(report.nodeid)


def pytest_sessionfinish() -> None:
    found = sys.modules.get("moe_jax")
    report = {
        "failed": _failed,
        "passed": sorted(_passed - set(_failed)),
        "package": getattr(found, "__file__", None),
    }
    if REPORT in os.environ:
        Path(os.environ[REPORT]).write_text(json.dumps(report), "utf-8")
