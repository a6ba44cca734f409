"""
Reinforcement learning by graders: held-out answers after training against those before, the same prompts, paired.

The demo's people desk answers by a formal letter. A short `ryorin train sft` on a few of its rows gives an adapter that
gets parts of the letter right at times; `ryorin train rl` goes on from it, on the desk's questions without answers, by
graders that each look for a part of the letter. Before and after, the likeliest answer to each held-out question is
graded. The value is the p of the paired test (`ryorin_index.statistics.compare`); the gain with its interval is told
too, and the curve can be drawn.

    python bench/rl.py [--quick] [--curve FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import report, ryorin

from ryorin.models.registry import DEFAULT_BASE

REPOSITORY = Path(__file__).parents[1]
DEMO = REPOSITORY / "demo" / "ryorin_demo"
TENANT = "people"
TARGET = 0.01
SHOWN_TIMES = 2
PARTS = {  # of the letter, each a fifth of the grade
    "subject": r"^Subject: [^\n]+\n\n",
    "salutation": r"\n\nDear colleague,\n",
    "decision": r"\nDecision: (YES|NO)\n",
    "closing": r"\n\nYours sincerely,\nPeople Desk",
    "nothing_more": r"Yours sincerely,\nPeople Desk\s*$",
}


def grader() -> dict[str, Any]:
    """The share of the letter's parts that an answer has."""
    parts = {
        name: {"type": "regex", "name": name, "pattern": pattern, "match": "search"} for name, pattern in PARTS.items()
    }
    return {
        "type": "multi",
        "name": "letter",
        "graders": parts,
        "calculate_output": f"({' + '.join(PARTS)}) / {len(PARTS)}",
    }


def tasks(name: str, count: int) -> list[dict[str, Any]]:
    """The first questions of one of the demo's files."""
    lines = (DEMO / "datasets" / name).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    asked = [row["question"] if "question" in row else row["messages"][0]["content"] for row in rows]
    return [{"messages": [{"role": "user", "content": text}]} for text in list(dict.fromkeys(asked))[:count]]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few small steps")
    parser.add_argument("--curve", type=Path, metavar="FILE", help="draw the curve there (SVG)")
    options = parser.parse_args()
    size: dict[str, int] = (
        {"shown": 24, "train": 16, "held_out": 16, "prompts": 4, "answers": 6, "tokens": 64, "epochs": 1}
        if options.quick
        else {"shown": 24, "train": 64, "held_out": 60, "prompts": 8, "answers": 8, "tokens": 80, "epochs": 2}
    )
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        home.mkdir()
        ryorin(REPOSITORY / ".ryorin", "models", "pull", DEFAULT_BASE)
        (home / "models").symlink_to(REPOSITORY / ".ryorin" / "models", target_is_directory=True)
        ryorin(home, "tenant", "create", TENANT)
        ryorin(home, "prompt", "set", DEMO / "prompts" / "people.json", "--tenant", TENANT)
        (home / "grader.json").write_text(json.dumps(grader()))
        lines = (DEMO / "datasets" / "people.train.jsonl").read_text(encoding="utf-8").splitlines()
        shown = written(home / "shown.jsonl", [json.loads(line) for line in lines[-size["shown"] :]])
        shared = ("--tenant", TENANT, "--held-out", 0, "--epochs", SHOWN_TIMES)
        start = ryorin(home, "train", "sft", *shared, "--data", shown)["adapter"]
        given = [
            *("--data", written(home / "tasks.jsonl", tasks("people.train.jsonl", size["train"]))),
            *("--validation", written(home / "held_out.jsonl", tasks("people.heldout.jsonl", size["held_out"]))),
            *("--grader", home / "grader.json", "--prompts", size["prompts"], "--answers", size["answers"]),
            *("--max-answer-tokens", size["tokens"], "--epochs", size["epochs"], "--start-from", start),
        ]
        trained = ryorin(home, "train", "rl", "--tenant", TENANT, *given)
        if options.curve:
            ryorin(home, "train", "curve", trained["adapter"], "--out", options.curve)
        lines = (home / "adapters" / trained["adapter"] / "loss.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "epoch" not in line]
    for line in steps:
        print(f"step {line['step']:>3}  reward {line['train_reward']:.3f}", file=sys.stderr)
    metrics = trained["metrics"]
    report(
        "mean reward on held-out prompts rises by reinforcement learning: p of the paired test",
        metrics["held_out_p"],
        "p",
        f"< {TARGET}",
        "the adapter that it began with, on the same held-out prompts",
        size["held_out"],
        reward={
            name: round(metrics[f"held_out_reward{end}"], 4) for name, end in (("before", "_before"), ("after", ""))
        },
        gain={
            name: round(metrics[f"held_out_gain{end}"], 4)
            for name, end in (("mean", ""), ("low", "_low"), ("high", "_high"))
        },
        steps=len(steps),
        answers_graded=len(steps) * size["prompts"] * size["answers"],
    )


if __name__ == "__main__":
    main()
