"""Whole runs of reinforcement learning on the tiny base model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from test_train_reinforcement import SHORT, prompts


def graded(tmp_path: Path, source: str) -> Path:
    path = tmp_path / "grader.json"
    path.write_text(json.dumps({"type": "python", "name": "own", "source": source}))
    return path


VOWELS = "def grade(sample, item):\n    text = sample['output_text']\n    return sum(c.islower() for c in text) / 6\n"


def test_answers_become_what_the_grader_likes(
    cli: Any, tenant: str, write_rows: Callable[..., Path], home: Path, tmp_path: Path
) -> None:
    options = ("--tenant", tenant, "--data", write_rows(prompts()), *SHORT, "--json", "--held-out", "0.3")
    options += ("--grader", graded(tmp_path, VOWELS), "--epochs", "4", "--learning-rate", "0.02")
    ran = cli("train", "rl", *options)
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    folder = home / "adapters" / result["adapter"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["kind"] == "rl" and manifest["grader"]["name"] == "own"
    metrics = result["metrics"]
    assert metrics["held_out_gain"] > 0 and metrics["held_out_reward"] > metrics["held_out_reward_before"]
    curve = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    steps = [line for line in curve if "epoch" not in line]
    assert {"train_reward", "train_kl", "train_flat_groups"} <= steps[0].keys()
    assert steps[-1]["train_reward"] > steps[0]["train_reward"]
    assert "reward" in ran.err and "left" in ran.err
    again = cli("train", "rl", *options)
    assert json.loads(again.out)["reused"] is True


def test_a_grader_that_never_varies_is_said(
    cli: Any, tenant: str, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    options = ("--tenant", tenant, "--data", write_rows(prompts()), *SHORT, "--json")
    ran = cli("train", "rl", *options, "--grader", graded(tmp_path, "def grade(sample, item):\n    return 0.5\n"))
    assert ran.code == 0, ran.err
    assert "nothing is learned" in ran.err, ran.err
