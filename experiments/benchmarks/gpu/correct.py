"""Forward and gradients of every grouped product and layout on the device, against float64."""

from __future__ import annotations

import traceback
from typing import Any

from experiments.benchmarks.exact import (
    DRIFT,
    FULL,
    TINY,
    TOLERANCE,
    drift,
    errors,
    every_check,
    expected_norms,
    reference_name,
)
from experiments.benchmarks.gpu.stage import StageReport


def run(report: StageReport, argument: str, tiny: bool) -> None:
    """`bad` lists the checks beyond tolerance or broken; each is written before the next begins."""
    sizes = TINY if tiny else FULL
    expected = expected_norms(sizes)
    found: dict[str, Any] = {}
    bad: dict[str, str] = {}
    worst = dict.fromkeys(TOLERANCE, 0.0)
    report.add(tolerance=TOLERANCE, errors_by_check=found, bad=bad, worst=worst)
    for dtype, check in every_check(sizes):
        try:
            found[check.name] = errors(check.run(), check.exact)
            moved = drift(check.exact, expected.get(reference_name(check.name)))
        except Exception as error:
            traceback.print_exc()
            bad[check.name] = f"{type(error).__name__}: {error}"[:300]
        else:
            largest = max(found[check.name].values())
            if not largest <= TOLERANCE[dtype]:  # NaN is beyond it too
                bad[check.name] = f"error {largest:.1e}"
            elif moved > DRIFT:
                bad[check.name] = f"the exact figures are {moved:.0e} from those carried"
            else:
                worst[dtype] = max(worst[dtype], largest)
        report.add(checks=len(found.keys() | bad.keys()))
    report.failed += bad
