"""
Grading of answers to held-out cases, by code alone: is the format valid, the decision right, the cited fact right?

A fact is right when the answer states the words the case expects *and* its citation points to a passage of the right
document; for a case that must be refused, when the answer cites nothing. An answer whose format is not valid has no
right decision and no right fact: a program that reads it could not use either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Desk = Literal["support", "people"]
_KEYS = {"citation", "fact", "reason", "decision"}
_CITATION = re.compile(r"\[(\d{1,3})\]")
_LETTER = re.compile(
    r"Subject: (?P<subject>[^\n]+)\n\n"
    r"Dear colleague,\n(?P<body>[^\n]+)\nDecision: (?P<decision>YES|NO)\n\n"
    r"Yours sincerely,\nPeople Desk"
)


@dataclass(frozen=True)
class Reading:
    """What an answer of valid format says. citation: the passage's number, from 1."""

    citation: int | None
    fact: str
    decision: str


@dataclass(frozen=True)
class Grade:
    """The three verdicts on one answer."""

    format_valid: bool
    decision_right: bool
    fact_right: bool


def read_support(answer: str) -> Reading | None:
    """The support desk's JSON object; none when it is not one or breaks the answer schema."""
    try:
        found = json.loads(answer)
    except ValueError:
        return None
    if not isinstance(found, dict) or set(found) != _KEYS or found["decision"] not in ("YES", "NO"):
        return None
    citation, fact, reason = found["citation"], found["fact"], found["reason"]
    if not (isinstance(reason, str) and reason) or not (fact is None or (isinstance(fact, str) and fact)):
        return None
    if citation is None:
        return Reading(None, fact or "", found["decision"])
    match = _CITATION.fullmatch(citation) if isinstance(citation, str) else None
    return Reading(int(match.group(1)), fact or "", found["decision"]) if match else None


def read_people(answer: str) -> Reading | None:
    """The people desk's letter; none when a part of it is missing, out of order or followed by anything."""
    match = _LETTER.fullmatch(answer.strip())
    if match is None:
        return None
    citation = _CITATION.search(match["body"])
    return Reading(int(citation.group(1)) if citation else None, match["body"], match["decision"])


READERS = {"support": read_support, "people": read_people}


def grade(desk: Desk, case: dict[str, Any], answer: str, documents: Sequence[str]) -> Grade:
    """
    The grade of one answer.

    case: a held-out row (`decision`, `fact`, `document`).
    documents: the file name of each passage the answer was given, in the prompt's order; empty without retrieval.
    """
    reading = READERS[desk](answer)
    if reading is None:
        return Grade(False, False, False)
    if case["fact"] is None:
        fact_right = reading.citation is None
    else:
        number = reading.citation or 0
        cited = documents[number - 1] if 1 <= number <= len(documents) else None
        fact_right = cited == case["document"] and states(reading.fact, case["fact"])
    return Grade(True, reading.decision == case["decision"], fact_right)


def states(text: str, fact: str) -> bool:
    """Whether the fact's words stand in the text as words: '30 days' is not stated by '130 days'."""
    pattern = rf"(?<![\w,.]){re.escape(' '.join(fact.split()))}(?!\w)"
    return re.search(pattern, " ".join(text.split()), re.IGNORECASE) is not None


def count(grades: Sequence[Grade]) -> dict[str, int]:
    """The counts of one arm."""
    return {
        "cases": len(grades),
        "format_valid": sum(one.format_valid for one in grades),
        "decision_right": sum(one.decision_right for one in grades),
        "fact_right": sum(one.fact_right for one in grades),
    }
