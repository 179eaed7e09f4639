"""The report of one or several runs: one HTML file that loads nothing."""

from moe_jax.analysis.report.page import build_report, write_report

__all__ = ["build_report", "write_report"]
