"""Ratings: the same answer found good and bad, thumbs of one kind only, or far more of one than of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ryorin_train.auto import BALANCED
from ryorin_train.data import Rating, Row
from ryorin_train.lint.findings import ERROR, NOTE, Finding
from ryorin_train.lint.repeats import content_key


def thumbs(rows: Sequence[Row]) -> list[Finding]:
    """What is wrong with the thumbs of a dataset of ratings; nothing for other kinds."""
    ratings = [row for row in rows if isinstance(row, Rating)]
    if not ratings:
        return []
    findings = []
    same: dict[str, list[Rating]] = {}
    for row in ratings:
        same.setdefault(content_key(replace(row, good=True)), []).append(row)
    for group in same.values():
        if len({row.good for row in group}) > 1:
            findings.append(
                Finding(
                    "contradictory-thumbs",
                    ERROR,
                    tuple(row.line for row in group),
                    "the same answer to the same question is found good and bad",
                    "decide what is right and remove the others",
                )
            )
    up = sum(row.good for row in ratings)
    down = len(ratings) - up
    if not up or not down:
        findings.append(
            Finding(
                "one-thumb",
                ERROR,
                (),
                f"all {len(ratings)} thumbs are {'up' if up else 'down'}; KTO learns from the difference",
                "add answers of the other kind"
                + (", or learn these as examples with 'ryorin train sft'" if up else ""),
            )
        )
    elif not BALANCED[0] <= up / down <= BALANCED[1]:
        findings.append(
            Finding(
                "thumb-imbalance",
                NOTE,
                (),
                f"{up} thumbs up and {down} down",
                "nothing: 'ryorin train kto' weighs the fewer ones more, unless weights are given",
            )
        )
    return findings
