from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryorin.errors import NotFound, RowError
from ryorin.prompt import PromptPassage
from ryorin_train.data import Example, RowErrors, dataset_bytes, dataset_digest, trimmed
from ryorin_train.datasets.formats import read_examples

USER = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}
GOOD = {"messages": [USER, ANSWER]}


def read(tmp_path: Path, data: bytes) -> list[Example]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    return read_examples(path)


def test_rows_are_read_as_they_are(tmp_path: Path) -> None:
    rows = [
        GOOD,
        {"messages": [USER, ANSWER], "passages": []},
        {"messages": [USER, ANSWER], "passages": [{"title": "題", "text": "本文"}]},
        {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]},
    ]
    examples = read(tmp_path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert [example.line for example in examples] == [1, 2, 3, 4]
    assert [example.passages for example in examples[:3]] == [None, (), (PromptPassage("題", "本文"),)]
    assert examples[3].learned == (False, False, False, True)


def test_bom_crlf_blank_lines_and_unicode_separators_are_tolerated(tmp_path: Path) -> None:
    good = json.dumps({"messages": [USER, {"role": "assistant", "content": "a\u2028b"}]}, ensure_ascii=False)
    examples = read(tmp_path, b"\xef\xbb\xbf" + f"{good}\r\n\r\n{good}".encode())
    assert [example.line for example in examples] == [1, 3]
    assert examples[0].messages[1]["content"] == "a\u2028b"


def test_what_follows_the_last_learned_message_is_left_out(tmp_path: Path) -> None:
    row = {"messages": [USER, ANSWER, USER, {**ANSWER, "weight": 0}]}
    (example,) = read(tmp_path, json.dumps(row).encode())
    assert len(example.messages) == 2
    assert example.learned == (False, True)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[1]", "a JSON object is needed, this is a list"),
        ("null", "this is null"),
        ('"text"', "this is a string"),
        ('{"messages": NaN}', "NaN is not JSON"),
        ('{"messages": [], "messages": []}', "'messages' appears twice"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "no field 'messages'"),
        ('{"messages": {}}', "'messages' must be a list"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": ["hello"]}', "message 1 must be an object, this is a string"),
        ({"messages": [USER]}, "the last message's role is 'user'"),
        ({"messages": [ANSWER, USER]}, "it must be 'assistant'"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "message 2 has an empty content"),
        ({"messages": [{"role": "user", "content": ""}, ANSWER]}, "message 1 has an empty content"),
        ({"messages": [{"role": "user"}, ANSWER]}, "message 1 has no content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]}, "content must be text"),
        ({"messages": [{"role": "robot", "content": "Q"}, ANSWER]}, "message 1 has role 'robot'; known roles: system"),
        ({"messages": [{"role": "tool", "content": "Q"}, ANSWER]}, "role 'tool': tools are not trained"),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, "only assistant messages are learned"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "weight 0.5; it must be 0 or 1"),
        ({"messages": [USER, {**ANSWER, "weight": True}]}, "weight True"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "nothing to learn"),
        ({"messages": [USER, {**ANSWER, "name": "x"}]}, "message 2 has the unknown field 'name'"),
        ({**GOOD, "tool": []}, "unknown field 'tool'; known: messages, passages, source"),
        ({**GOOD, "tools": []}, "has 'tools': tools are not trained"),
        ({"messages": [USER, {**ANSWER, "tool_calls": []}]}, "message 2 has 'tool_calls': tools are not trained"),
        ({**GOOD, "source": 3}, "source must be text"),
        ({"messages": [USER, {"role": "assistant", "content": "\ufeff\u200b "}]}, "message 2 has an empty content"),
        ({**GOOD, "passages": None}, "'passages' must be a list"),
        ({**GOOD, "passages": ["text"]}, "passage 1 must be an object"),
        ({**GOOD, "passages": [{"title": "T"}]}, "passage 1 has no text"),
        ({**GOOD, "passages": [{"title": "T", "text": "x", "score": 1}]}, "unknown field 'score'"),
        ('{"messages": [{"role": "assistant", "content": "\\ud800"}]}', "half of a surrogate pair"),
        (b'{"messages": "\xff"}', "byte 15 is not UTF-8"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path: Path, line: Any, reason: str) -> None:
    raw = line if isinstance(line, bytes) else line.encode() if isinstance(line, str) else json.dumps(line).encode()
    with pytest.raises(RowError) as caught:
        read(tmp_path, json.dumps(GOOD).encode() + b"\n" + raw + b"\n")
    assert caught.value.line == 2
    assert caught.value.message.startswith("rows.jsonl, line 2: ")
    assert reason in caught.value.reason


@pytest.mark.parametrize("data", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(RowError, match="the file is empty"):
        read(tmp_path, data)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no file"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="is a directory, but no dataset"):
        read_examples(tmp_path)


def test_all_bad_lines_are_shown_ten_at_most(tmp_path: Path) -> None:
    with pytest.raises(RowErrors) as caught:
        read(tmp_path, b"\n".join([b"{}"] * 13))
    assert len(caught.value.errors) == 13
    shown = str(caught.value).splitlines()
    assert len(shown) == 11
    assert shown[9].startswith("rows.jsonl, line 10: ")
    assert shown[10] == "… and 3 more lines"


texts = st.text(min_size=1, max_size=5).filter(trimmed)
examples_of = st.lists(
    st.builds(
        lambda question, answer, passages: Example(
            1,
            ({"role": "user", "content": question}, {"role": "assistant", "content": answer}),
            (False, True),
            passages,
        ),
        texts,
        texts,
        st.one_of(st.none(), st.tuples(), st.tuples(st.builds(PromptPassage, texts, texts))),
    ),
    max_size=40,
)


@given(examples_of)
def test_a_dataset_reads_back_as_it_was(rows: list[Example]) -> None:
    import tempfile

    if not rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        again = read(Path(folder), dataset_bytes(rows))
    assert [row.content for row in again] == [row.content for row in rows]
    assert dataset_digest(again) == dataset_digest(rows)
