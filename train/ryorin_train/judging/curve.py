"""
The curve of a training run as a picture: one plot for each quantity of loss.jsonl, training beside held-out rows.

What is drawn is read from the fields: `train_<name>` of a step, `mean_train_<name>` and `held_out_<name>` of an epoch.
So a new method's figures (a reward, a margin) appear without a word here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ryorin.errors import InvalidInput
from ryorin_train.checkpoints import CURVE_FILE
from ryorin_train.judging.svg import as_file, drawing

COLUMNS = 2
PLOT_WIDTH, PLOT_HEIGHT = 400, 210
LEFT, TOP, RIGHT, BOTTOM = 60, 34, 20, 40
CELL_WIDTH, CELL_HEIGHT = LEFT + PLOT_WIDTH + RIGHT, TOP + PLOT_HEIGHT + BOTTOM
MOST_POINTS = 400  # of a line; more are averaged
SMOOTHED_SHARE = 0.05  # of the steps, which the bold line is the mean of
Points = list[tuple[float, float]]


@dataclass
class Quantity:
    """One plot: (step, value) of each training step and of each epoch."""

    name: str
    steps: Points = field(default_factory=list)
    epochs: Points = field(default_factory=list)
    held_out: Points = field(default_factory=list)


def quantities(lines: Sequence[Mapping[str, Any]]) -> list[Quantity]:
    """What the lines of a loss curve hold, loss first, in the order in which they appear."""
    found: dict[str, Quantity] = {"loss": Quantity("loss")}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            for prefix, series in (("mean_train_", "epochs"), ("train_", "steps"), ("held_out_", "held_out")):
                if name.startswith(prefix):
                    quantity = found.setdefault(name.removeprefix(prefix), Quantity(name.removeprefix(prefix)))
                    getattr(quantity, series).append((line["step"], value))
                    break
    return [each for each in found.values() if each.steps or each.epochs or each.held_out]


def curve_drawing(lines: Sequence[Mapping[str, Any]], title: str) -> str:
    """The picture of a loss curve's lines (`progress.read_curve`), for a page. Empty when no line holds a figure."""
    shown = quantities(lines)
    if not shown:
        return ""
    ends = [line["step"] for line in lines if "epoch" in line]
    last = max(line["step"] for line in lines)
    parts = []
    for place, quantity in enumerate(shown):
        x, y = place % COLUMNS * CELL_WIDTH, place // COLUMNS * CELL_HEIGHT
        parts.append(f'<g transform="translate({x} {y})">{"".join(_plot(quantity, last, ends))}</g>')
    return drawing(*_size(shown), parts, f"{title}: {', '.join(each.name for each in shown)}")


def curve_file(lines: Sequence[Mapping[str, Any]], title: str) -> str:
    """The same as an SVG file. Raises InvalidInput when no line holds a figure."""
    drawn = curve_drawing(lines, title)
    if not drawn:
        raise InvalidInput(f"{title} has no curve: its {CURVE_FILE} holds no figures")
    return as_file(drawn, *_size(quantities(lines)))


def _size(shown: Sequence[Quantity]) -> tuple[int, int]:
    return min(COLUMNS, len(shown)) * CELL_WIDTH, -(-len(shown) // COLUMNS) * CELL_HEIGHT


def _plot(quantity: Quantity, last: int, ends: Sequence[int]) -> list[str]:
    low, high, ticks = _range(
        [value for one in (quantity.steps, quantity.epochs, quantity.held_out) for _, value in one]
    )

    def at(step: float, value: float) -> str:
        x = LEFT + PLOT_WIDTH * step / max(last, 1)
        return f"{x:.1f},{TOP + PLOT_HEIGHT * (high - value) / (high - low):.1f}"

    bottom = TOP + PLOT_HEIGHT
    parts = [f'<text class="name" x="{LEFT}" y="16">{escape(quantity.name.replace("_", " "))}</text>']
    for tick, words in ticks:
        y = at(0, tick).partition(",")[2]
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{LEFT + PLOT_WIDTH}" y2="{y}"/>')
        parts.append(f'<text class="axis" x="{LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{words}</text>')
    spacing = -(-len(ends) // 8)
    for number, step in enumerate(ends, start=1):
        if number % spacing == 0:
            x = at(step, low).partition(",")[0]
            parts.append(f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{bottom}"/>')
            parts.append(f'<text class="axis" x="{x}" y="{bottom + 16}" text-anchor="middle">{number}</text>')
    words = f"epochs, {last:,} steps" if ends else f"{last:,} steps"
    parts.append(f'<text class="axis" x="{LEFT + PLOT_WIDTH}" y="{bottom + 33}" text-anchor="end">{words}</text>')
    key = LEFT + PLOT_WIDTH
    for points, name, series in (
        (quantity.held_out, "held out", 1),
        (quantity.steps or quantity.epochs, "training", 0),
    ):
        if points:
            parts.append(f'<circle class="s{series}" cx="{key - 7 * len(name) - 8}" cy="12" r="4"/>')
            parts.append(f'<text class="axis" x="{key}" y="16" text-anchor="end">{name}</text>')
            key -= 7 * len(name) + 26
    raw = _thinned(quantity.steps)
    if len(raw) > 1:
        smooth = _thinned(_smoothed(quantity.steps))
        parts.append(_line("s0 faint", [at(*point) for point in raw]))
        parts.append(_line("s0", [at(*point) for point in smooth]))
    means = quantity.epochs if len(raw) < 2 else []
    for points, series in ((means, 0), (quantity.held_out, 1)):
        places = [at(*point) for point in points]
        parts.append(_line(f"s{series}", places))
        for place in places if len(places) <= 40 else ():
            x, _, y = place.partition(",")
            parts.append(f'<circle class="s{series}" cx="{x}" cy="{y}" r="3.5"/>')
    if points := quantity.held_out or quantity.epochs or quantity.steps:
        place = at(*points[-1])
        x, _, y = place.partition(",")
        higher = max(TOP + 10, float(y) - 8)
        words = f"{points[-1][1]:.3f}" if abs(points[-1][1]) < 100 else f"{points[-1][1]:,.0f}"
        parts.append(f'<text class="value" x="{x}" y="{higher:.1f}" text-anchor="end">{words}</text>')
    return parts


def _line(name: str, places: Sequence[str]) -> str:
    return f'<polyline class="{name}" points="{" ".join(places)}"/>' if len(places) > 1 else ""


def _smoothed(points: Points) -> Points:
    """The mean of each point and those just before it."""
    width = max(1, round(len(points) * SMOOTHED_SHARE))
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    return [
        (step, (sums[place + 1] - sums[max(0, place + 1 - width)]) / min(width, place + 1))
        for place, (step, _) in enumerate(points)
    ]


def _thinned(points: Points) -> Points:
    """At most MOST_POINTS points: the means of so many neighbours."""
    size = -(-len(points) // MOST_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _range(values: Sequence[float]) -> tuple[float, float, list[tuple[float, str]]]:
    """From where to where the axis goes, and its ticks in words: multiples of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - max(0.5, abs(low) / 10), high + max(0.5, abs(high) / 10)
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(each * power for each in (1, 2, 5, 10) if each * power * 4 >= high - low)
    first, end = math.floor(low / step), math.ceil(high / step)
    places = max(0, -math.floor(math.log10(step)))
    ticks = [(number * step, f"{number * step:.{places}f}") for number in range(first, end + 1)]
    return first * step, end * step, ticks
