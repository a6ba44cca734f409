"""
Mending what is safe to mend: a new list of rows, and what was changed and left out.

Safe is what changes no meaning: white space and invisible marks at the ends of texts, rows that stand there twice, rows
in which a text is empty. A byte order mark and blank lines are gone as soon as rows are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ryorin.errors import InvalidInput
from ryorin.prompt import Message
from ryorin_train.data import Example, Rating, Row, Task, trimmed
from ryorin_train.datasets.store import Given
from ryorin_train.lint.repeats import content_key


@dataclass(frozen=True)
class Change:
    """What was done to rows, by the code of the finding that it answers. rows: lines of the original."""

    code: str
    rows: tuple[int, ...]
    what: str


@dataclass(frozen=True)
class Fixed:
    """The mended rows. rows_in: all that the original holds, the empty ones too."""

    rows: list[Row]
    rows_in: int
    changes: tuple[Change, ...]

    def as_json(self) -> dict[str, Any]:
        """The counts in and out, and why."""
        changes = [{**vars(change), "rows": list(change.rows)} for change in self.changes]
        return {"rows_in": self.rows_in, "rows_out": len(self.rows), "changes": changes}


def fix(given: Given) -> Fixed:
    """
    The rows with what is safe mended.

    Raises InvalidInput when rows cannot be read: to leave them out would not be safe.
    """
    errors = given.loaded.errors if given.loaded else []
    unreadable = [error for error in errors if error.code != "empty_row"]
    if unreadable:
        first = f"line {unreadable[0].line}: {unreadable[0].reason}"
        raise InvalidInput(
            f"{given.name} has {len(unreadable)} lines that cannot be read, and to leave them out would not be safe; "
            f"correct them first ({first}), 'ryorin data lint' without --fix lists them",
            param="fix",
        )
    changes = []
    if errors:
        empty = tuple(error.line for error in errors)
        changes.append(Change("empty", empty, "left out: a text in it is empty"))
    rows, stripped = [], []
    for row in given.rows:
        clean = _trimmed(row)
        if clean != row:
            stripped.append(row.line)
        rows.append(clean)
    if stripped:
        changes.append(Change("whitespace", tuple(stripped), "white space and invisible marks at the ends taken off"))
    kept: dict[str, Row] = {}
    double = [row.line for row in rows if kept.setdefault(content_key(row), row) is not row]
    if double:
        changes.append(Change("duplicate", tuple(double), "left out: an earlier row is the same"))
    if given.loaded is not None and given.loaded.bom:
        changes.append(Change("bom", (1,), "the byte order mark taken off"))
    if given.loaded is not None and given.loaded.blank_lines:
        changes.append(Change("blank-line", tuple(given.loaded.blank_lines), "left out: no rows"))
    return Fixed(list(kept.values()), len(given.rows) + len(errors), tuple(changes))


def _trimmed(row: Row) -> Row:
    messages = _messages(row.messages)
    if isinstance(row, Example | Task):
        return replace(row, messages=messages)
    if isinstance(row, Rating):
        return replace(row, messages=messages, answer=trimmed(row.answer))
    return replace(row, messages=messages, chosen=trimmed(row.chosen), rejected=trimmed(row.rejected))


def _messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(Message(role=each["role"], content=trimmed(each["content"])) for each in messages)
