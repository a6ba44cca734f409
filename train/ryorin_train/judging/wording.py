"""Figures in words, the same on the terminal and in the HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def figure_text(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """A figure with its interval: shares and rates in per cent, other means in their unit."""
    if row["kind"] != "mean":
        return interval_text(row, signed=signed)
    style = f"{'+' if signed else ''}.{row['digits']}f"
    unit = f" {row['unit']}" if row["unit"] else ""
    return f"{row['mean']:{style}}{unit} ({row['low']:{style}} to {row['high']:{style}})"


def interval_text(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """'82% (73% to 90%)', or with signs; '-' where there was nothing to count."""
    if row["mean"] is None:
        return "-"
    style = "+.0%" if signed else ".0%"
    return f"{row['mean']:{style}} ({row['low']:{style}} to {row['high']:{style}})"


def counted(number: int, noun: str) -> str:
    """'1 case', '3 cases'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def p_text(p: float) -> str:
    """A p value: '<0.001', '0.012', '0.34'."""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
