"""`ryorin train evaluate` and `ryorin diagnose` on the real engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from live_server import EMBEDDER, Server, ryorin


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def figure(rows: list[dict[str, Any]], name: str) -> float:
    return float(next(row["mean"] for row in rows if row["name"] == name))


def test_a_release_is_judged_against_another(live: Server, tmp_path: Path) -> None:
    """The adapter has random weights: it knows nothing that the base model knows."""
    cases = written(
        tmp_path / "cases.jsonl",
        {"question": "What is the capital of France?", "expected": {"facts": ["Paris"]}},
        {
            "question": "What is the capital of Japan?",
            "expected": {"facts": ["Tokyo"]},
            "paraphrases": ["Japan's capital?"],
        },
    )
    words = ("train", "evaluate", "--tenant", "support", "--cases", cases, "--url", live.url, "--max-tokens", 12)
    report = ryorin(live.home, *words, "--release", 2, "--against", 1, "--samples", 2, "--evidence")
    assert figure(report["against_figures"], "facts") == 1
    assert figure(report["figures"], "facts") == 0
    assert report["ability"]["base"]["mean"] > 0.3 > report["ability"]["tuned"]["mean"]
    assert "ability_lost" in [row["code"] for row in report["warnings"]]
    assert all(0 <= figure(report["against_figures"], name) <= 1 for name in ("consistency", "paraphrases"))
    again = ryorin(live.home, *words, "--release", 2, "--against", 1, "--samples", 2)
    assert again["digest"] == report["digest"]
    [row] = [row for row in ryorin(live.home, "release", "list", "--tenant", "support") if row["version"] == 2]
    assert row["evidence"]["report"] == report["digest"] and row["live"]


def test_the_causes_of_failures_are_told(live: Server, tmp_path: Path) -> None:
    """What so small a model makes of a passage is its own affair; that the passage was in its prompt is ours."""
    page = tmp_path / "wrapping.md"
    page.write_text("# Wrapping\n\nGift wrapping costs 370 yen for each parcel.\n")
    ryorin(live.home, "index", "create", "wrapping", "--tenant", "support", "--embedder", EMBEDDER)
    ryorin(live.home, "index", "add", "wrapping", page, "--tenant", "support")
    made = ryorin(live.home, "release", "create", "--tenant", "support", "--adapter", "none", "--store", "wrapping")
    wrapping = {"facts": ["370 yen"], "documents": ["wrapping.md"], "decision": "370"}
    cases = written(
        tmp_path / "cases.jsonl",
        {"rubric": {"decision": {"pattern": "^([0-9]+)$"}}},  # nobody answers with the number alone
        {"question": "How much does gift wrapping cost for each parcel?", "expected": wrapping},
        {"question": "How much does engraving cost?", "expected": {"facts": ["940 yen"]}},
    )
    report = ryorin(
        *(live.home, "diagnose", "--tenant", "support", "--release", made["version"], "--cases", cases),
        *("--url", live.url, "--max-tokens", 40),
    )
    assert [arm["name"] for arm in report["arms"]] == ["prompt only", "retrieval only"]
    assert [(row["line"], row["cause"]) for row in report["failures"]] == [(2, "behaviour"), (3, "knowledge")]
