"""Files to learn from are read when they come: what is wrong with them, a line at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tiny import chat

from ryorin_train.data import SHOWN_ERRORS
from ryorin_train.datasets.formats import EMPTY, what_is_wrong

GOOD = json.dumps(chat("Is it open?", "YES")).encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD,
        b'{"messages": [{"role": "user", "content": "q"}], "right": "a"}\n' * 2,
        b'{"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "a"}], '
        b'"rejected": [{"role": "assistant", "content": "b"}]}',
    ],
)
def test_nothing(content: bytes) -> None:
    assert what_is_wrong("rows.jsonl", iter(content.splitlines(keepends=True))) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", EMPTY),
        (b"\n\n", EMPTY),
        (GOOD + b'{"messages": []}\n', "rows.jsonl, line 2: 'messages' must be a list"),
        (GOOD + b"\n" + b"[1]\n", "rows.jsonl, line 3: "),
        (GOOD + b"\xff\xfe\n", "rows.jsonl, line 2: "),
        (
            GOOD + b'{"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}',
            "one format a file",
        ),
    ],
)
def test_the_line_is_named(content: bytes, words: str) -> None:
    wrong = what_is_wrong("rows.jsonl", iter(content.splitlines(keepends=True)))
    assert wrong is not None and words in wrong


def test_reading_ends_after_the_errors_that_are_shown() -> None:
    read = 0

    def lines() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"no\n"

    assert what_is_wrong("rows.jsonl", lines()) is not None
    assert SHOWN_ERRORS <= read <= SHOWN_ERRORS + 2
