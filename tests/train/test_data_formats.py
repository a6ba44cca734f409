"""Formats in and out: told by content, read back as written, every bad line named with its reason."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryorin.errors import Conflict, InvalidInput, RowError
from ryorin.prompt import PromptPassage
from ryorin_train.data import Example, Preference, Rating, Row, RowErrors, Task, trimmed
from ryorin_train.datasets.columns import parse_mapping
from ryorin_train.datasets.formats import Reading, load, read_examples, read_questions, read_rows
from ryorin_train.datasets.writing import FORMATS_OF, write_rows

USER = {"role": "user", "content": "質問"}
ANSWER = {"role": "assistant", "content": "答え"}
WORSE = {"role": "assistant", "content": "別の答え"}
PASSAGES = [{"title": "規程", "text": "30日以内"}]

words = st.text(max_size=8).filter(trimmed)
passages = st.none() | st.lists(st.builds(PromptPassage, words, words), max_size=2).map(tuple)
sources = st.none() | words


@st.composite
def conversations(draw: Any, turns: int) -> tuple[list[Any], list[bool]]:
    """Messages up to the last answer, and which are learned."""
    messages = [{"role": draw(st.sampled_from(["system", "developer"])), "content": draw(words)}] * draw(
        st.integers(0, 1)
    )
    learned = [False] * len(messages)
    for _ in range(turns - 1):
        messages += [{"role": "user", "content": draw(words)}, {"role": "assistant", "content": draw(words)}]
        learned += [False, draw(st.booleans())]
    messages.append({"role": "user", "content": draw(words)})
    return messages, [*learned, False]


@st.composite
def examples(draw: Any) -> Example:
    messages, learned = draw(conversations(draw(st.integers(1, 3))))
    answer = {"role": "assistant", "content": draw(words)}
    return Example(1, (*messages, answer), (*learned, True), draw(passages), draw(sources))


@st.composite
def preferences(draw: Any) -> Preference:
    messages, _ = draw(conversations(draw(st.integers(1, 2))))
    return Preference(1, tuple(messages), draw(words), draw(words), draw(passages), draw(sources))


@st.composite
def ratings(draw: Any) -> Rating:
    messages, _ = draw(conversations(draw(st.integers(1, 2))))
    return Rating(1, tuple(messages), draw(words), draw(st.booleans()), draw(passages), draw(sources))


@st.composite
def tasks(draw: Any) -> Task:
    messages, _ = draw(conversations(draw(st.integers(1, 2))))
    fields = draw(st.dictionaries(st.sampled_from(["right", "of"]), st.one_of(words, st.integers(0, 9)), max_size=2))
    return Task(1, tuple(messages), fields, draw(passages), draw(sources))


def fits(row: Row, format: str) -> bool:
    """Whether a format can carry a row."""
    if format == "csv":
        return [message["role"] for message in row.messages][: -1 if isinstance(row, Example) else None] in (
            ["user"],
            ["system", "user"],
        )
    return format != "trl-prompt-completion" or not (isinstance(row, Example) and any(row.learned[:-1]))


KINDS = ((examples(), Example), (preferences(), Preference), (ratings(), Rating), (tasks(), Task))


@pytest.mark.parametrize("format", sorted({format for formats in FORMATS_OF.values() for format in formats}))
@settings(max_examples=20)
@given(data=st.data())
def test_what_is_written_reads_back(format: str, data: Any) -> None:
    drawn = [rows for rows, kind in KINDS if format in FORMATS_OF[kind]]
    rows: list[Row] = data.draw(st.one_of([st.lists(each, min_size=1, max_size=4) for each in drawn]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        if not all(fits(row, format) for row in rows):
            with pytest.raises(RowError, match=r"write (openai|trl)-"):
                write_rows(rows, path, format)
            assert list(Path(folder).iterdir()) == []
            return
        assert write_rows(rows, path, format) == format
        told_by_content = format != "openai-reinforcement"
        for reading in (Reading(format=format), *([None] if told_by_content else [])):
            loaded = load(path, reading)
            assert loaded.errors == []
            assert loaded.format == format
            assert [row.content for row in loaded.rows] == [row.content for row in rows]


@pytest.mark.parametrize(
    ("fields", "format", "kind"),
    [
        ({"messages": [USER, ANSWER]}, "openai-chat", Example),
        ({"prompt": [USER], "completion": [ANSWER], "passages": PASSAGES}, "trl-prompt-completion", Example),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}, "trl-preference", Preference),
        ({"prompt": [USER], "completion": [ANSWER], "label": False}, "trl-unpaired", Rating),
        (
            {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [WORSE]},
            "openai-preference",
            Preference,
        ),
    ],
)
def test_the_format_is_told_by_content(tmp_path: Path, fields: Any, format: str, kind: Any) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(json.dumps(fields) + "\n", encoding="utf-8-sig")
    loaded = load(path)
    assert (loaded.format, loaded.bom, type(loaded.rows[0])) == (format, True, kind)
    assert loaded.rows[0].messages[0] == USER


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "Q", "completion": "A"}, "'prompt' is a text; it must be a list of messages"),
        ({"prompt": [USER], "completion": [USER]}, "'completion' must be a list of one message with role 'assistant'"),
        ({"prompt": [USER], "completion": [ANSWER, ANSWER]}, "one message"),
        ({"prompt": [USER, ANSWER], "completion": [ANSWER]}, "'prompt' ends with an assistant's message"),
        ({"completion": [ANSWER]}, "there is no field 'prompt'"),
        ({"prompt": [USER], "completion": [{**ANSWER, "weight": 1}]}, "a message of 'completion' has a weight"),
        ({"prompt": [USER], "completion": [ANSWER], "tools": []}, "tools are not trained"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, "there is no field 'prompt'"),
        ({"prompt": [USER], "completion": [ANSWER], "label": 1}, "'label' is 1; it must be true"),
        ({"prompt": [USER], "label": True}, "there is no field 'completion'"),
        ({"prompt": [USER], "chosen": [ANSWER]}, "there is no field 'rejected'"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE], "score": 1}, "unknown field 'score'"),
        ({"input": [USER], "preferred_output": [ANSWER]}, "'input' must be an object"),
        ({"input": {"messages": [USER], "tools": []}, "preferred_output": [ANSWER]}, "'input' has 'tools'"),
        ({"input": {"messages": [USER]}, "preferred_output": [ANSWER]}, "there is no field 'non_preferred_output'"),
    ],
)
def test_a_bad_row_of_each_shape_is_named(tmp_path: Path, fields: Any, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(fields) + "\n")
    with pytest.raises(RowError) as caught:
        read_rows(path)
    assert caught.value.line == 1
    assert reason in caught.value.reason


def test_two_formats_in_one_file_are_refused_and_all_bad_lines_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": [USER, ANSWER]}, {"prompt": [USER], "completion": [ANSWER]}, {"messages": []}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(RowErrors) as caught:
        read_rows(path)
    assert [error.line for error in caught.value.errors] == [2, 3]
    assert "its fields are those of trl-prompt-completion, the rows above are openai-chat" in str(caught.value)
    assert [row.line for row in load(path).rows] == [1]


def test_a_table_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    path.write_bytes(
        '番号,質問,回答,根拠\r\n1,返品は?,"30日以内\nです",30日\r\n\r\n2,交換は?,,\r\n3,配送は?\r\n4,送料は?,無料です,\r\n'.encode(
            "cp932"
        )
    )
    mapping = parse_mapping("番号=-, 質問=user, 回答=assistant, 根拠=passage")
    loaded = load(path, Reading(mapping=mapping, encoding="cp932"))
    assert [row.line for row in loaded.rows] == [2, 7]
    assert loaded.rows[0].messages[1]["content"] == "30日以内\nです"
    assert [row.passages for row in loaded.rows] == [(PromptPassage("根拠", "30日"),), ()]
    assert [(error.line, error.reason) for error in loaded.errors] == [
        (5, "message 2 has an empty content"),
        (6, "2 cells, the header has 4"),
    ]
    assert loaded.blank_lines == [4]
    with pytest.raises(InvalidInput, match="--encoding cp932"):
        load(path, Reading(mapping=mapping))


@pytest.mark.parametrize(
    ("text", "mapping", "message"),
    [
        ("question,answer\nQ,A\n", None, "'question' is not mapped; for example --map question=-,answer=-"),
        ("question,answer\nQ,A\n", "question=user", "'answer' is not mapped"),
        ("question,answer\nQ,A\n", "question=user,answer=assistant,x=-", "no column 'x'"),
        ("question,answer\nQ,A\n", "question=user,answer=-", "needs a column for user, and one for assistant"),
        ("user,chosen\nQ,A\n", None, "two for chosen and rejected"),
        ("a,b,c\nQ,A,B\n", "a=user,b=chosen,c=chosen", "two columns are mapped to chosen"),
        ("user,assistant\n", None, "the file is empty"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, text: str, mapping: str | None, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        load(path, Reading(mapping=None if mapping is None else parse_mapping(mapping)))


@pytest.mark.parametrize("text", ["question", "question=robot", "=user", "a=user,a=assistant", ""])
def test_a_bad_mapping_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--map"):
        parse_mapping(text)


def test_directories_that_are_no_dataset_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write_rows([Example(1, (USER, ANSWER), (False, True), None)], whole, "hf")  # type: ignore[arg-type]
    (tmp_path / "splits" / "train").mkdir(parents=True)
    (tmp_path / "splits" / "dataset_dict.json").write_text("{}")
    (tmp_path / "splits" / "train" / "state.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"holds the splits train; name one: .*train"):
        load(tmp_path / "splits")
    with pytest.raises(InvalidInput, match="cannot be read by `datasets`"):
        load(tmp_path / "splits" / "train")
    state = json.loads((whole / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../whole/data-00000-of-00001.arrow"
    (whole / "state.json").write_text(json.dumps(state))
    with pytest.raises(InvalidInput, match="outside of the directory"):
        load(whole)


def test_writing_overwrites_nothing_and_keeps_kinds_apart(tmp_path: Path) -> None:
    row = Example(1, (USER, ANSWER), (False, True), None)  # type: ignore[arg-type]
    path = tmp_path / "rows.jsonl"
    path.write_text("mine")
    with pytest.raises(Conflict, match="exists already"):
        write_rows([row], path)
    assert path.read_text() == "mine"
    with pytest.raises(InvalidInput, match="cannot be written as trl-preference"):
        write_rows([row], tmp_path / "new", "trl-preference")
    with pytest.raises(InvalidInput, match="there is no folder"):
        write_rows([row], tmp_path / "none" / "rows.jsonl")
    preference = tmp_path / "preferences.jsonl"
    write_rows([Preference(1, (USER,), "A", "B", None)], preference)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="holds preferences"):
        read_examples(preference)


def test_held_out_questions_are_read_from_cases_and_from_rows(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(
        json.dumps({"question": "返品は?", "decision": "YES"}) + "\n" + json.dumps({"messages": [USER]}) + "\n"
    )
    assert [row.messages[0]["content"] for row in read_questions(path)] == ["返品は?", "質問"]
    path.write_text(json.dumps({"messages": [USER, ANSWER]}) + "\n")
    assert isinstance(read_questions(path)[0], Example)
    path.write_text(json.dumps({"asked": "?"}) + "\n")
    with pytest.raises(RowError, match="no field 'messages'"):
        read_questions(path)


def test_lines_do_not_count_for_what_a_row_is() -> None:
    row = Preference(1, (USER,), "A", "B", None)  # type: ignore[arg-type]
    assert replace(row, line=9).content == row.content
