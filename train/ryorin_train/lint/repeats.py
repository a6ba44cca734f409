"""
The same thing twice: exact and near duplicates, contradictory answers, and training rows among the held-out ones.

Questions are the same when they differ in case, width, marks and politeness alone (`ryorin_index.folds`), near the same
when they are alike (`datasets/near.py`) and differ in wording only. Both only within one setting, that is with the same
passages and the same conversation before them: another passage makes another answer right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

from ryorin.digests import digest_of
from ryorin_index.folds import fold_key
from ryorin_train.data import Row
from ryorin_train.datasets.groups import group_rows, question_of
from ryorin_train.datasets.near import Components, asks_the_same, near_pairs, wording_key
from ryorin_train.lint.findings import ERROR, NOTE, WARNING, Finding, shown
from ryorin_train.lint.turns import Turn, difference

_ENDS = "?？!！.。 \n"
_COMPARED = 20  # different answers of one question
Told = Callable[[int, int], None]


def content_key(row: Row) -> str:
    """A digest that rows share when they are the same but for their source."""
    return digest_of(replace(row, source=None).content)


def duplicates(rows: Sequence[Row]) -> list[Finding]:
    """Rows that are the same."""
    same: dict[str, list[int]] = {}
    for row in rows:
        same.setdefault(content_key(row), []).append(row.line)
    return [
        Finding(
            "duplicate",
            WARNING,
            tuple(lines),
            f"{len(lines)} rows are the same, so each counts {len(lines)} times",
            "--fix keeps the first",
        )
        for lines in same.values()
        if len(lines) > 1
    ]


def same_questions(turns: Sequence[Turn], on_turn: Told) -> list[Finding]:
    """Questions that stand there more than once in one setting: contradictory, varied or repeated answers."""
    components = Components(len(turns))
    for later, earlier in near_pairs([turn.question for turn in turns], [turn.setting for turn in turns], on_turn):
        if asks_the_same(turns[later].question, turns[earlier].question):
            components.join(later, earlier)
    first: dict[tuple[str, str], int] = {}
    for number, turn in enumerate(turns):
        if key := wording_key(turn.question):
            components.join(number, first.setdefault((turn.setting, key), number))
    findings = []
    for group in components.groups():
        if len(group) > 1:
            findings += _judged([turns[number] for number in group])
    return findings


def _judged(turns: Sequence[Turn]) -> list[Finding]:
    """What is to be said of turns that ask the same."""
    if len({content_key(turn.row) for turn in turns}) == 1:
        return []  # the rows are the same, which `duplicates` says
    lines = tuple(dict.fromkeys(turn.line for turn in turns))
    exact = len({fold_key("", turn.question.rstrip(_ENDS)) for turn in turns}) == 1
    asked = f"{'the same question' if exact else 'questions that differ in wording only'}, {shown(turns[0].question)!r}"
    answers = {fold_key("", turn.answer): turn for turn in turns}
    different = list(answers.values())[:_COMPARED]
    for one, other in combinations(different, 2):
        if disagreement := difference(one.said, other.said):
            return [
                Finding(
                    "contradiction",
                    ERROR if exact else WARNING,
                    lines,
                    f"{asked}, and answers that disagree (lines {one.line} and {other.line}: {shown(disagreement)})",
                    "decide which answer is right and change or remove the others",
                )
            ]
    if len(lines) == 1:
        return []
    if exact and len(different) > 1:
        return [
            Finding(
                "varied-answer",
                NOTE,
                lines,
                f"{asked}, with answers in {len(different)} wordings",
                "keep one wording, unless the variety is meant",
            )
        ]
    return [
        Finding("near-duplicate", WARNING, lines, asked, "keep one of them, or make them ask different things"),
    ]


def leakage(rows: Sequence[Row], held_out: Sequence[Row], on_row: Told) -> list[Finding]:
    """Training rows that belong to one group with held-out rows: their score would praise memory."""
    both = [*rows, *held_out]
    asked = Components(len(both))
    for later, earlier in near_pairs([question_of(row) for row in both], on_text=on_row):
        asked.join(later, earlier)
    findings = []
    grouped: dict[int, list[int]] = {}
    for number, first in enumerate(group_rows(both)):
        grouped.setdefault(first, []).append(number)
    for group in grouped.values():
        inside = [number for number in group if number < len(rows)]
        outside = [number for number in group if number >= len(rows)]
        if not inside or not outside:
            continue
        shared = {asked.first(number) for number in inside} & {asked.first(number) for number in outside}
        lines = ", ".join(str(both[number].line) for number in outside[:10])
        lines += f" and {len(outside) - 10} more" if len(outside) > 10 else ""
        reason = "ask nearly the same as" if shared else "share a passage or source with"
        findings.append(
            Finding(
                "leakage",
                ERROR if shared else WARNING,
                tuple(both[number].line for number in inside),
                f"they {reason} held-out rows (lines {lines}), e.g. {shown(question_of(both[outside[0]]))!r}",
                "take them out of one side; 'ryorin data split' keeps such rows together",
            )
        )
    return findings
