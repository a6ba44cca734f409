"""
Answers against the passages they were given, and the cases that a dataset lacks.

What an answer cites must be there, and what it quotes or counts must stand in the passages, the question or earlier in
the conversation. Numbers of one digit are left out: a reason counts with them. A dataset whose rows have passages also
needs rows that the passages do not answer, and limits need cases at the limit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ryorin.prompt import MARKER
from ryorin_train.lint.findings import ERROR, NOTE, WARNING, Finding, shown
from ryorin_train.lint.turns import Said, Turn, numbers_in

LEAST_ROWS = 20  # answers from passages, from which on a kind that is missing is told
LEAST_LIMITS = 10  # questions with a number that meets a limit in the passages
CITING_SHARE = 0.8
_QUOTE = re.compile(r"\"([^\"\n]{8,})\"|“([^”\n]{8,})”|「([^」\n]{6,})」")
_MEASURED = re.compile(
    r"(\d[\d,]*(?:\.\d+)?)\s*"
    r"(%|percent|yen|円|万円|dollars?|hours?|時間|minutes?|分|days?|日|weeks?|週間?|months?|か月|ヶ月|カ月|years?|年|歳|kg|km|cm|"
    r"people|人|名|pieces?|個|点|pages?|times|回|件)",
    re.IGNORECASE,
)


def ungrounded(turns: Sequence[Turn]) -> list[Finding]:
    """Citations of no passage, and quotes and numbers that stand nowhere."""
    citing: list[int] = []
    missing: list[tuple[int, str]] = []
    for turn in turns:
        if turn.passages is None:
            continue
        if any(int(match[1]) not in range(1, len(turn.passages) + 1) for match in MARKER.finditer(turn.answer)):
            citing.append(turn.line)
        elif turn.passages and not turn.said.refuses and (lacking := _lacking(turn)):
            missing.append((turn.line, lacking))
    findings = []
    if citing:
        findings.append(
            Finding(
                "citation",
                ERROR,
                tuple(dict.fromkeys(citing)),
                "the answer cites a passage that was not given",
                "correct the number, or add the passage",
            )
        )
    if missing:
        examples = ", ".join(f"{shown(what)!r} (line {line})" for line, what in missing[:3])
        findings.append(
            Finding(
                "ungrounded",
                WARNING,
                tuple(dict.fromkeys(line for line, _ in missing)),
                f"the answer states what stands in no passage given: {examples}; that teaches to invent",
                "add the passage that says it, or answer that the documents do not say",
            )
        )
    answered = tuple(
        dict.fromkeys(turn.line for turn in turns if turn.passages == () and not turn.said.refuses and _states(turn))
    )
    if answered:
        findings.append(
            Finding(
                "ungrounded",
                WARNING,
                answered,
                "retrieval found nothing, and the answer states something all the same",
                "answer that the documents do not say, or leave 'passages' out where retrieval is off",
            )
        )
    return findings


def uncited(turns: Sequence[Turn]) -> list[Finding]:
    """Answers from passages that cite none, where most cite."""
    answers = [turn for turn in turns if turn.passages and not turn.said.refuses]
    without = [turn.line for turn in answers if not MARKER.search(turn.answer)]
    if not without or len(answers) < 5 or len(without) > (1 - CITING_SHARE) * len(answers):
        return []
    message = f"the answer cites no passage, while {len(answers) - len(without)} of {len(answers)} answers do"
    return [Finding("uncited", WARNING, tuple(dict.fromkeys(without)), message, "cite the passage with its [n]")]


def missing_cases(turns: Sequence[Turn]) -> list[Finding]:
    """Kinds of case without which judgement is not learned."""
    given = [turn for turn in turns if turn.passages is not None]
    findings = []
    if len(given) >= LEAST_ROWS:
        if not any(turn.said.refuses for turn in given):
            findings.append(
                Finding(
                    "no-refusals",
                    WARNING,
                    (),
                    f"none of {len(given)} answers says that the documents do not answer: the model learns to answer "
                    "from any passage",
                    "add rows with only wrong passages, and with none, whose answer says so",
                )
            )
        elif not any(turn.passages == () for turn in given):
            findings.append(
                Finding(
                    "no-empty-retrieval",
                    NOTE,
                    (),
                    'no row has "passages": []: what to answer when retrieval finds nothing is not shown',
                    "add some such rows, whose answer says that the documents do not answer",
                )
            )
    beside = [distance for turn in given if (distance := _from_limit(turn)) is not None]
    if len(beside) >= LEAST_LIMITS and not any(distance <= 1 for distance in beside):
        findings.append(
            Finding(
                "no-boundary-cases",
                WARNING,
                (),
                f"{len(beside)} questions compare a number with a limit, none at the limit or one step from it",
                "add rows at the limit, just below and just above",
            )
        )
    return findings


def _states(turn: Turn) -> bool:
    """Whether an answer says more than a greeting: it has a number, a quote or a decision for."""
    return bool(turn.said.numbers or quotes_in(turn.said) or turn.said.labels.get("decision") in ("YES", "TRUE"))


def _lacking(turn: Turn) -> str:
    """A quote or number of the answer that stands nowhere before it; empty when there is none."""
    before = [turn.question, *(message["content"] for message in turn.earlier)]
    before += [f"{passage.title} {passage.text}" for passage in turn.passages or ()]
    ground = _squeezed(" ".join(before))
    for quote in quotes_in(turn.said):
        if _squeezed(quote).rstrip(".。") not in ground:
            return quote
    known = numbers_in("\n".join(before))
    for number in sorted(turn.said.numbers - known):
        if len(number.replace(".", "")) > 1 and number not in ground:
            return number
    return ""


def quotes_in(said: Said) -> list[str]:
    """What an answer quotes: between quotation marks, and in a JSON field named for it."""
    text = "\n".join(said.texts)
    quotes = [next(filter(None, match.groups())) for match in _QUOTE.finditer(text)]
    if isinstance(said.value, dict):
        quotes += [
            value
            for name, value in said.value.items()
            if name in ("fact", "quote", "evidence", "excerpt") and isinstance(value, str)
        ]
    return quotes


def _from_limit(turn: Turn) -> float | None:
    """Steps between a number of the question and the nearest one of its unit in the passages; None without both."""
    asked = _measures(turn.question)
    limits = _measures("\n".join(passage.text for passage in turn.passages or ()))
    distances = [abs(value - limit) / _step(limit) for unit, value in asked for other, limit in limits if unit == other]
    return min(distances, default=None)


def amounts_in(text: str) -> list[str]:
    """The numbers of a text that have a unit, each with it: '30 days', '1,500 yen', '5日'."""
    return [match[0].strip() for match in _MEASURED.finditer(unicodedata.normalize("NFKC", text))]


def _measures(text: str) -> list[tuple[str, float]]:
    plain = unicodedata.normalize("NFKC", text).lower()
    return [(match[2].rstrip("s"), float(match[1].replace(",", ""))) for match in _MEASURED.finditer(plain)]


def _step(limit: float) -> float:
    """The step in which a limit is written: 1 for 14, 500 for 1,500, 1000 for 20,000."""
    if limit < 100 or limit != int(limit):
        return 1.0
    step = 1
    while limit % (step * 10) == 0:
        step *= 10
    return float(step)


def _squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().replace(",", "").split())
