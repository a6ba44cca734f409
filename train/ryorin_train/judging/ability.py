"""
Whether general ability is kept: a small fixed set of questions, asked of the base model and of the tuned one.

Both are asked without the tenant's prompt and documents, so only the weights differ. The questions (ability.jsonl) were
written for this; each has a short answer that is either said or not. The set is too small to rank models: it is there
to see a model that forgot.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ryorin_index.statistics import compare_shares, share
from ryorin_train.judging.grade import Answer
from ryorin_train.judging.tone import says

MAX_TOKENS = 48
ALLOWED_LOSS = 0.03


@dataclass(frozen=True)
class GeneralQuestion:
    """A question; one of the answers must be said."""

    language: str
    skill: str
    question: str
    answers: tuple[str, ...]


@cache
def general_questions() -> tuple[GeneralQuestion, ...]:
    """The set, as shipped."""
    lines = (Path(__file__).parent / "ability.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return tuple(GeneralQuestion(row["language"], row["skill"], row["question"], tuple(row["answers"])) for row in rows)


def ability(base: Sequence[Answer], tuned: Sequence[Answer]) -> dict[str, Any]:
    """Shares of right answers of both, in the questions' order, with McNemar's test, and by language."""
    questions = general_questions()
    before, after = (
        np.array(
            [
                any(says(answer.text, word) for word in asked.answers)
                for asked, answer in zip(questions, side, strict=True)
            ],
            float,
        )
        for side in (base, tuned)
    )
    languages = np.array([asked.language for asked in questions])
    return {
        "questions": len(questions),
        "base": share(before).as_json(),
        "tuned": share(after).as_json(),
        **compare_shares(after, before),
        "allowed_loss": ALLOWED_LOSS,
        "by_language": {
            str(language): {
                "questions": int((languages == language).sum()),
                "base": float(before[languages == language].mean()),
                "tuned": float(after[languages == language].mean()),
            }
            for language in sorted(set(languages))
        },
    }
