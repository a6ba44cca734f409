"""The picture of a loss curve."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from ryorin.errors import InvalidInput
from ryorin_train.judging.curve import LEFT, PLOT_HEIGHT, PLOT_WIDTH, TOP, curve_drawing, curve_file, quantities

SVG = "{http://www.w3.org/2000/svg}"


def a_run(steps: int = 60, epochs: int = 3) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append({"step": step, "train_loss": 3.0 - step / steps, "train_reward_margin": step / steps})
        if step % (steps // epochs) == 0:
            epoch = step * epochs // steps
            scores = {"held_out_loss": 2.9 - epoch / 10, "held_out_reward_accuracy": 0.5 + epoch / 10}
            lines.append({"step": step, "epoch": epoch, "mean_train_loss": 3.0 - step / steps, **scores})
    return lines


def test_every_figure_has_a_plot_with_training_beside_held_out_rows() -> None:
    found = {each.name: each for each in quantities([*a_run(), {"step": 60, "note": "x", "train_loss": float("nan")}])}
    assert list(found) == ["loss", "reward_margin", "reward_accuracy"]
    assert (len(found["loss"].steps), len(found["loss"].epochs), len(found["loss"].held_out)) == (60, 3, 3)
    assert found["reward_accuracy"].held_out == [(20, 0.6), (40, 0.7), (60, 0.8)]
    page = ElementTree.fromstring(curve_file(a_run(), "support-<1>"))
    words = [text.text for text in page.iter(f"{SVG}text")]
    assert {"loss", "reward margin", "reward accuracy", "held out", "training"} <= set(words)
    assert page.get("aria-label", "").startswith("support-<1>")
    assert "var(" not in ElementTree.tostring(page, encoding="unicode")  # viewers without CSS variables show it too


def test_points_lie_where_the_values_are() -> None:
    page = ElementTree.fromstring(curve_drawing(a_run(), "run"))
    plot = page.find(f"{SVG}g")
    assert plot is not None
    lines = {line.get("class"): line for line in plot.iter(f"{SVG}polyline")}
    held_out = [tuple(map(float, place.split(","))) for place in (lines["s1"].get("points") or "").split()]
    assert [x for x, _ in held_out] == pytest.approx([LEFT + PLOT_WIDTH * share / 3 for share in (1, 2, 3)], abs=0.1)
    # the axis goes from 2.0 to 3.0, so that 2.8, 2.7 and 2.6 lie at two, three and four tenths from above
    assert [y for _, y in held_out] == pytest.approx([TOP + PLOT_HEIGHT * tenth / 10 for tenth in (2, 3, 4)], abs=0.1)
    trained = [tuple(map(float, place.split(","))) for place in (lines["s0 faint"].get("points") or "").split()]
    assert len(trained) == 60 and trained == sorted(trained)


def test_a_long_run_is_thinned_and_a_flat_or_short_one_drawn() -> None:
    long = [{"step": step, "train_loss": 1 / step} for step in range(1, 10_001)]
    assert len(curve_file(long, "long")) < 20_000
    for lines in ([{"step": 1, "train_loss": 0.0}], [{"step": n, "train_loss": 5.0} for n in (1, 2)], a_run(3, 3)):
        ElementTree.fromstring(curve_file(lines, "short"))
    assert curve_drawing([{"step": 1}], "nothing") == ""
    with pytest.raises(InvalidInput, match="holds no figures"):
        curve_file([], "nothing")
