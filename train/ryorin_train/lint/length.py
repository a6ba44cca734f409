"""Rows against the context window, as training itself renders them: the tenant's prompt, the base model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ryorin_train.data import Example, Row
from ryorin_train.lint.findings import ERROR, Finding

if TYPE_CHECKING:
    from ryorin_train.render import Renderer


def unfit(rows: Sequence[Row], renderer: Renderer) -> list[Finding]:
    """Rows that training would refuse: too long, a control token in an answer, turns the chat template refuses."""
    long: list[tuple[int, str]] = []
    other: dict[str, list[int]] = {}
    for row in rows:
        for example in _as_examples(row):
            try:
                renderer.row(example)
            except ValueError as error:
                reason = str(error)
                if "tokens with the prompt" in reason:
                    long.append((row.line, reason))
                else:
                    other.setdefault(reason, []).append(row.line)
    findings = []
    if long:
        message = f"longer than the limit of {renderer.max_row_tokens} tokens; line {long[0][0]}: {long[0][1]}"
        lines = tuple(dict.fromkeys(line for line, _ in long))
        findings.append(
            Finding("too-long", ERROR, lines, message, "shorten the rows: fewer or shorter passages, earlier turns cut")
        )
    return findings + [
        Finding("unrenderable", ERROR, tuple(dict.fromkeys(lines)), reason, "change the row's text or turns")
        for reason, lines in other.items()
    ]


def _as_examples(row: Row) -> list[Example]:
    if isinstance(row, Example):
        return [row]
    learned = (*(False for _ in row.messages), True)
    return [
        Example(row.line, (*row.messages, {"role": "assistant", "content": text}), learned, row.passages)
        for text in row.answers
    ]
