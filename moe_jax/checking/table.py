"""The table that the check prints, and its JSON."""

from __future__ import annotations

import math

from moe_jax.checking.invariance import MANY, CheckPlan, CheckReport, VariantOutcome
from moe_jax.config.json_files import JsonObject

COLUMNS = (  # title, width; the variant's name stands before
    ("loss", 10),
    ("grad norm", 10),
    ("dropped", 8),
    ("overflow", 9),
    ("balance", 9),
    ("max diff", 9),
)


def head(plan: CheckPlan) -> str:
    """What was shrunk, what is not run, and the titles of the table."""
    lines = [f"the config, made small: {len(plan.changes)} changes"]
    lines += [f"  {change}" for change in plan.changes]
    devices = {device.platform for device in plan.devices}
    lines += [
        f"{plan.steps} steps of {len(plan.variants)} variants on up to {len(plan.devices)} "
        f"{'/'.join(sorted(devices))} devices; receive buffers are large enough for any load",
        "loss, norm, balance loss: of the last step; drops, overflow: of all; max diff: relative",
        "",
    ]
    titles = "".join(f"{title:>{width}}" for title, width in COLUMNS)
    return "\n".join([*lines, f"{'variant':{_width(plan)}}{titles}  verdict"])


def row(outcome: VariantOutcome, plan: CheckPlan) -> str:
    """One line of the table."""
    is_reference = outcome.variant == plan.reference
    mark = " [1]" if outcome.left_out else ""
    name = outcome.variant.name + (f" (reference{mark})" if is_reference else "")
    message = f"{name:{_width(plan)}}"
    if outcome.trial is None:
        return message + f"  FAILED: {outcome.failed}"
    numbers = outcome.trial.steps[-1].numbers
    total = {n: sum(step.total(n) for step in outcome.trial.steps) for n in ("dropped", "overflow")}
    balance = numbers.get("load_balance_loss")
    worst = outcome.worst
    cells = (
        f"{numbers['loss']:.6f}",
        f"{numbers['gradient norm']:.6f}",
        f"{total['dropped']}",
        f"{total['overflow']}",
        "-" if balance is None else f"{balance:.5f}",
        "-" if worst is None else _size(worst.size),
    )
    message += "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))
    return message + "  " + _verdict(outcome, is_reference)


def _verdict(outcome: VariantOutcome, is_reference: bool) -> str:
    if is_reference:
        return "-"
    mark = " [1]" if outcome.left_out else ""
    mark += " [2]" if outcome.variant.dtype != "float32" else ""
    if outcome.equal:
        return "equal" + mark
    first, worst = outcome.first, outcome.worst
    assert first is not None and worst is not None
    size = f" by {_size(first.size)}" if math.isfinite(first.size) else ""
    message = f"DIFFERS{mark}: {first.quantity}{size}"
    return message + (f"; most: {worst.quantity}" if worst.quantity != first.quantity else "")


def _size(size: float) -> str:
    return f"{size:.1e}" if math.isfinite(size) else "inf"


def foot(report: CheckReport, plan: CheckPlan) -> str:
    """What was not compared and why, what could not run, and the one closing line."""
    lines = [""]
    left_out = sorted({name for outcome in report.outcomes for name in outcome.left_out})
    if left_out:
        names = ", ".join(f"moe.losses.{name}" for name in left_out)
        lines.append(
            f"[1] not compared: {names}, of scope micro_batch, which depends on the number of "
            "micro-batches by definition (scope global_batch does not). Switched off in these "
            "rows, one of them the reference of the others; all else is compared."
        )
    lines += _of_bfloat16(report)
    lines += [f"not run: {skipped.name}: {skipped.reason}" for skipped in report.skipped]
    differing = [outcome for outcome in report.outcomes if not outcome.equal]
    if not differing:
        lines.append(f"all {len(report.outcomes)} variants equal the reference")
    else:
        count = f"{len(differing)} of {len(report.outcomes)} variants differ"
        lines.append(f"{count}; to blame: {'; '.join(report.blame)}")
    return "\n".join(lines)


def _of_bfloat16(report: CheckReport) -> list[str]:
    """What the row in bfloat16 was held to, and which sums it keeps in bfloat16."""
    lines = []
    for outcome in report.outcomes:
        if outcome.variant.dtype == "float32":
            continue
        lines.append(
            f"[2] one step on {MANY} tokens: gradients held to float32 on the same tokens, "
            "to the rounding of each kind of parameter; losses and counts are not compared."
        )
        lines += [f"    a narrow sum: {found}" for found in outcome.narrow]
    return lines


def _width(plan: CheckPlan) -> int:
    names = [len(variant.name) for variant in plan.variants]
    return max([*names, len(plan.reference.name) + len(" (reference [1])")]) + 1


def to_json(report: CheckReport, plan: CheckPlan) -> JsonObject:
    """The whole report; infinite differences are null."""
    return {
        "equal": report.equal,
        "blame": report.blame,
        "steps": plan.steps,
        "tolerance": plan.tolerance,
        "devices": [str(device) for device in plan.devices],
        "changes": [
            {"path": c.path, "before": c.before, "after": c.after, "why": c.why}
            for c in report.changes
        ],
        "not_run": [{"name": s.name, "reason": s.reason} for s in report.skipped],
        "references": [_outcome_json(outcome) for outcome in report.references],
        "variants": [_outcome_json(outcome) for outcome in report.outcomes],
    }


def _outcome_json(outcome: VariantOutcome) -> JsonObject:
    variant = outcome.variant
    steps = outcome.trial.steps if outcome.trial else ()
    return {
        "name": variant.name,
        "mesh": variant.axes,
        "layout": variant.layout,
        "transport": variant.transport,
        "overlap_chunks": variant.overlap_chunks,
        "accumulation": variant.accumulation,
        "remat": variant.remat,
        "dtype": variant.dtype,
        "narrow_sums": list(outcome.narrow),
        "equal": outcome.equal,
        "failed": outcome.failed,
        "not_compared": [f"moe.losses.{name}" for name in outcome.left_out],
        "steps": [
            step.numbers | {name: step.total(name) for name in ("dropped", "overflow")}
            for step in steps
        ],
        "differences": [
            {
                "quantity": d.quantity,
                "size": d.size if math.isfinite(d.size) else None,
                "allowed": d.allowed,
                "equal": d.excess <= 1,
            }
            for d in outcome.differences
        ],
    }
