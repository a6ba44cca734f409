"""
The plots of a report as inline SVG: points with intervals, differences around zero, a stacked bar; curve.py has more.

Colours go by class, so that they follow the page's light and dark mode. Every number that a plot of this module shows
stands in a table beside it too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LABEL_WIDTH = 250
PLOT_WIDTH = 420
VALUE_WIDTH = 130  # at least; a digit takes about 7
ROW_HEIGHT = 30  # at least
AXIS_HEIGHT = 26
SERIES_STEP = 9  # between two series on one row
LIGHT = {
    "ink": "#1d2733", "soft": "#5b6877", "line": "#d9dfe6", "page": "#fff", "panel": "#f5f7f9", "one": "#1769aa",
    "two": "#b45309", "three": "#5f7d4e", "four": "#7a5aa6", "five": "#6b7280", "good": "#2f7d4f", "bad": "#b3261e",
}  # fmt: skip
SVG_STYLE = """
svg text { fill: var(--ink); font-size: 13px; } svg .axis, svg .value { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--line); } svg .zero { stroke: var(--soft); stroke-width: 1.5; }
svg .value { paint-order: stroke; stroke: var(--page); stroke-width: 3; }
svg .inside { fill: #fff; font-weight: 600; } svg .name { font-weight: 600; }
svg line.s0 { stroke: var(--one); stroke-width: 2.5; } svg circle.s0 { fill: var(--one); }
svg line.s1 { stroke: var(--two); stroke-width: 2.5; } svg circle.s1 { fill: var(--two); }
svg line.s2 { stroke: var(--three); stroke-width: 2.5; } svg circle.s2 { fill: var(--three); }
svg line.s3 { stroke: var(--four); stroke-width: 2.5; } svg circle.s3 { fill: var(--four); }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; } svg polyline.s0 { stroke: var(--one); }
svg polyline.s1 { stroke: var(--two); } svg polyline.faint { stroke-width: 1; opacity: .35; }
"""


@dataclass(frozen=True)
class Point:
    """A value with its interval. series: which colour, from 0. shown: the value in words."""

    mean: float
    low: float
    high: float
    series: int = 0
    shown: str = ""


def intervals(
    rows: Sequence[tuple[str, Sequence[Point]]], low: float = 0.0, high: float = 1.0, zero: float | None = None
) -> str:
    """
    One row for each label with its points between `low` and `high`; a line at `zero` when there is one.

    The axis is labelled in per cent.
    """
    words = [" / ".join(point.shown for point in points if point.shown) for _, points in rows]
    row_height = max([ROW_HEIGHT, *(SERIES_STEP * len(points) + 14 for _, points in rows)])
    height = row_height * len(rows) + AXIS_HEIGHT
    width = LABEL_WIDTH + PLOT_WIDTH + max([VALUE_WIDTH, *(24 + 8 * len(shown) for shown in words)])

    def at(value: float) -> float:
        return LABEL_WIDTH + PLOT_WIDTH * (min(max(value, low), high) - low) / (high - low)

    bottom = height - AXIS_HEIGHT
    parts = []
    for step in range(5):
        value = low + (high - low) * step / 4
        x, tick = f"{at(value):.1f}", _percent(value, zero)
        parts.append(f'<line class="grid" x1="{x}" y1="0" x2="{x}" y2="{bottom}"/>')
        parts.append(f'<text class="axis" x="{x}" y="{height - 8}" text-anchor="middle">{tick}</text>')
    if zero is not None:
        parts.append(f'<line class="zero" x1="{at(zero):.1f}" y1="0" x2="{at(zero):.1f}" y2="{bottom}"/>')
    for place, (label, points) in enumerate(rows):
        middle = row_height * (place + 0.5)
        parts.append(f'<text x="{LABEL_WIDTH - 12}" y="{middle + 4:.1f}" text-anchor="end">{escape(label)}</text>')
        for number, point in enumerate(points):
            y, name = f"{middle + SERIES_STEP * (number - (len(points) - 1) / 2):.1f}", f"s{point.series}"
            parts.append(f'<line class="{name}" x1="{at(point.low):.1f}" y1="{y}" x2="{at(point.high):.1f}" y2="{y}"/>')
            parts.append(f'<circle class="{name}" cx="{at(point.mean):.1f}" cy="{y}" r="4"/>')
        right = LABEL_WIDTH + PLOT_WIDTH + 12
        parts.append(f'<text class="value" x="{right}" y="{middle + 4:.1f}">{escape(words[place])}</text>')
    return drawing(width, height, parts, "; ".join(label for label, _ in rows))


def stacked(parts: Sequence[tuple[str, str, int]]) -> str:
    """One bar of parts, each (class, label, count); parts of nothing are left out."""
    shown = [part for part in parts if part[2]]
    total = sum(count for _, _, count in shown)
    width, height = LABEL_WIDTH + PLOT_WIDTH + VALUE_WIDTH, 76
    drawn, x = [], 0.0
    for name, _, count in shown:
        size = width * count / total
        drawn.append(f'<rect class="{name}" x="{x:.1f}" y="0" width="{max(size - 2, 1):.1f}" height="40" rx="3"/>')
        drawn.append(f'<text class="inside" x="{x + size / 2:.1f}" y="26" text-anchor="middle">{count}</text>')
        x += size
    x = 0.0
    for name, label, count in shown:
        drawn.append(f'<rect class="{name}" x="{x:.1f}" y="54" width="12" height="12" rx="2"/>')
        words = f"{label} {count}"
        drawn.append(f'<text x="{x + 18:.1f}" y="65">{escape(words)}</text>')
        x += 40 + 8.5 * len(words)
    return drawing(width, height, drawn, ", ".join(f"{label} {count}" for _, label, count in shown))


def _percent(value: float, zero: float | None) -> str:
    return f"{value:+.0%}" if zero is not None and value != zero else f"{value:.0%}"


def drawing(width: float, height: float, parts: Sequence[str], label: str) -> str:
    """The SVG element of its parts, for a page that has the styles."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label, quote=True)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def as_file(drawn: str, width: float, height: float) -> str:
    """A drawing as a file of its own: with its size, plain colours on white, which every viewer can show."""
    style = re.sub(r"var\(--(\w+)\)", lambda name: LIGHT[name[1]], SVG_STYLE)
    begin, _, rest = drawn.partition(">")
    return (
        f'{begin} width="{width}" height="{height}"><style>svg {{ font-family: system-ui, sans-serif; }}{style}</style>'
        f'<rect width="100%" height="100%" fill="{LIGHT["page"]}"/>{rest}\n'
    )
