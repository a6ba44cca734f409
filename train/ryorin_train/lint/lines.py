"""Malformed and empty rows, white space at the ends of texts, answers with nothing to learn."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ryorin_train.data import Example, Preference, Row, trimmed
from ryorin_train.datasets.formats import Loaded
from ryorin_train.lint.findings import ERROR, NOTE, WARNING, Finding, shown
from ryorin_train.lint.turns import Turn

_PLACEHOLDER = re.compile(
    r"(?:n/?a|none|null|tbd|todo|fixme|xxx+|test|asdf|lorem ipsum.*|placeholder|same as above|sample answer"
    r"|同上|未定|未記入|未回答|なし|特になし|テスト|サンプル|ダミー|回答)[.。!]*",
    re.IGNORECASE | re.DOTALL,
)


def unreadable(loaded: Loaded) -> list[Finding]:
    """Rows that cannot be used, a byte order mark, blank lines."""
    findings = []
    empty = tuple(error.line for error in loaded.errors if error.code == "empty_row")
    if empty:
        reason = next(error.reason for error in loaded.errors if error.code == "empty_row")
        findings.append(
            Finding("empty", ERROR, empty, f"a text with nothing in it: {reason}", "write it, or --fix leaves it out")
        )
    by_reason: dict[str, list[int]] = {}
    for error in loaded.errors:
        if error.code != "empty_row":
            by_reason.setdefault(error.reason, []).append(error.line)
    findings += [
        Finding("malformed", ERROR, tuple(lines), reason, "correct the lines; docs/datasets.md shows the formats")
        for reason, lines in by_reason.items()
    ]
    if loaded.bom:
        findings.append(
            Finding("bom", NOTE, (1,), "the file begins with a byte order mark", "nothing: a dataset is kept without")
        )
    if loaded.blank_lines:
        findings.append(
            Finding(
                "blank-line", NOTE, tuple(loaded.blank_lines), "blank lines", "nothing: a dataset is kept without them"
            )
        )
    return findings


def spaces(rows: Sequence[Row]) -> list[Finding]:
    """Texts that begin or end with white space: an answer's would be learned."""
    lines = []
    for row in rows:
        texts = [message["content"] for message in row.messages]
        if not isinstance(row, Example):
            texts += row.answers
        if any(trimmed(text) != text for text in texts):
            lines.append(row.line)
    if not lines:
        return []
    message = "a message begins or ends with white space or an invisible mark, which would be learned"
    return [Finding("whitespace", WARNING, tuple(lines), message, "--fix takes it off")]


def trivial(turns: Sequence[Turn]) -> list[Finding]:
    """Answers that say nothing: marks alone, placeholders, the question again; preferences of equal answers."""
    findings = []
    for turn in turns:
        answer, reason = trimmed(turn.answer), ""
        if not any(letter.isalnum() for letter in answer):
            reason = "has no letter or digit"
        elif _PLACEHOLDER.fullmatch(answer):
            reason = "is a placeholder"
        elif answer == trimmed(turn.question):
            reason = "repeats its question"
        if reason:
            findings.append(
                Finding(
                    "trivial", ERROR, (turn.line,), f"the answer {shown(answer)!r} {reason}", "write the right answer"
                )
            )
    seen = set()
    for turn in turns:
        row = turn.row
        if not isinstance(row, Preference) or row.line in seen:
            continue
        seen.add(row.line)
        if trimmed(row.chosen) == trimmed(row.rejected):
            findings.append(
                Finding(
                    "equal-answers",
                    ERROR,
                    (row.line,),
                    "the better and the worse answer are the same, which teaches nothing",
                    "write a worse one that is really worse, or leave the row out",
                )
            )
    return findings
