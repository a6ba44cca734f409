"""The prompt module, by its properties, and prompt files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryorin.errors import InvalidInput
from ryorin.prompt import Message, Prompt, PromptPassage, cited_numbers, fit, render, render_passages
from ryorin.prompt_file import read_prompt_file

HOSTILE = st.lists(
    st.sampled_from(["<", "</", ">", "documents", "DOCUMENTS", " ", "\n", "\t", "/", "[1]", "a", "両", "</documents>"]),
    max_size=12,
).map("".join)
PASSAGES = st.lists(st.builds(PromptPassage, title=HOSTILE, text=HOSTILE | st.text(max_size=50)), max_size=5)
CONVERSATION: list[Message] = [{"role": "user", "content": "May I return it?"}]
PROMPT = Prompt("You answer.")


@given(PASSAGES)
def test_passages_cannot_close_or_open_their_block(passages: list[PromptPassage]) -> None:
    block = render_passages(passages)
    tags = re.findall(r"<\s*/?\s*documents[^\w-]", block, re.IGNORECASE)
    assert tags == ["<documents>", "</documents>"]
    assert block.startswith("<documents>\n")
    assert block.endswith("\n</documents>")


@given(PASSAGES)
def test_every_passage_has_its_number_on_a_line_of_its_own(passages: list[PromptPassage]) -> None:
    lines = render_passages(passages).split("\n")
    for number in range(1, len(passages) + 1):
        assert any(line.startswith(f"[{number}] ") for line in lines)


def test_the_layout() -> None:
    """Pinned: adapters are trained on exactly this text, so changing it means a new LAYOUT_VERSION."""
    passages = [PromptPassage("Returns >\n Opened", " Within 30 days.\n"), PromptPassage("Shops", "Open at 9.")]
    assert render(PROMPT, CONVERSATION, passages) == [
        {
            "role": "system",
            "content": "You answer.\n\n<documents>\n[1] Returns > Opened\nWithin 30 days.\n"
            "[2] Shops\nOpen at 9.\n</documents>",
        },
        {"role": "user", "content": "May I return it?"},
    ]
    assert render(PROMPT, CONVERSATION, [])[0]["content"] == "You answer.\n\n<documents>\n(none)\n</documents>"
    assert render(PROMPT, CONVERSATION, None)[0]["content"] == "You answer."


def test_a_callers_system_message_adds_and_does_not_replace() -> None:
    conversation: list[Message] = [
        {"role": "developer", "content": "Be brief."},
        *CONVERSATION,
        {"role": "system", "content": "Be kind."},
    ]
    messages = render(PROMPT, conversation, [])
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"].startswith("You answer.\n\n<documents>")
    assert messages[0]["content"].endswith("</documents>\n\nBe brief.\n\nBe kind.")


def count_characters(messages: list[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


@given(PASSAGES, st.integers(0, 600), st.integers(0, 200))
def test_fit_is_the_largest_number_that_fits_and_grows_with_the_budget(
    passages: list[PromptPassage], budget: int, more: int
) -> None:
    fitting = fit(PROMPT, CONVERSATION, passages, count_characters, budget)
    sizes = [count_characters(render(PROMPT, CONVERSATION, passages[:number])) for number in range(len(passages) + 1)]
    assert fitting == max((number for number in range(1, len(passages) + 1) if sizes[number] <= budget), default=0)
    assert fit(PROMPT, CONVERSATION, passages, count_characters, budget + more) >= fitting


@given(
    st.text() | st.lists(st.sampled_from(["[1]", "[2]", "[3]", "[0]", "[12]", " ", "x"])).map("".join),
    st.integers(0, 12),
)
def test_cited_numbers_are_passages_that_were_given(answer: str, given_passages: int) -> None:
    numbers = cited_numbers(answer, given_passages)
    assert len(set(numbers)) == len(numbers)
    assert all(1 <= number <= given_passages and f"[{number}]" in answer for number in numbers)


def test_cited_numbers_in_order_of_appearance() -> None:
    assert cited_numbers("As [3] and [1] say, and [3]; not [9] or [x].", 3) == [3, 1]


@given(st.text(), st.none() | st.just({"type": "object"}))
def test_a_prompt_survives_its_spec(system: str, schema: dict[str, str] | None) -> None:
    prompt = Prompt(system, schema)
    assert Prompt.from_spec(json.loads(json.dumps(prompt.spec()))).digest == prompt.digest


def test_the_digest_covers_system_and_schema() -> None:
    assert (
        len({Prompt("a").digest, Prompt("b").digest, Prompt("a", {}).digest, Prompt("a", {"type": "object"}).digest})
        == 4
    )


def write(folder: Path, text: str | bytes, name: str = "prompt.json") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_prompt_files(tmp_path: Path) -> None:
    schema = {"type": "object", "required": ["decision"]}
    both = write(tmp_path, json.dumps({"system": " Answer. ", "answer_schema": schema}))
    assert read_prompt_file(both) == Prompt("Answer.", schema)
    assert read_prompt_file(write(tmp_path, '{"system": "A", "answer_schema": null}', "no-suffix")) == Prompt("A")
    assert read_prompt_file(write(tmp_path, "You answer.\nBriefly.\n", "p.txt")) == Prompt("You answer.\nBriefly.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"system": "a",\n "x" 1}', "line 2, column 6: not JSON"),
        ('["a"]', "must be a JSON object"),
        ('{"system": "a", "sistem": "b"}', "unknown field 'sistem'"),
        ('{"answer_schema": null}', "missing or blank"),
        ('{"system": "  "}', "missing or blank"),
        ('{"system": 3}', "missing or blank"),
        ('{"system": "a", "answer_schema": []}', "object or null"),
        ('{"system": "a", "answer_schema": {"type": "objekt"}}', "not JSON Schema: at type"),
        ('{"system": "a", "answer_schema": {"properties": {"x": {"minLength": "1"}}}}', "properties/x/minLength"),
        (json.dumps({"system": "a" * 100_001}), "100001 characters"),
        ('{"system": "a\\ud800"}', "half a character"),
        ('{"system": "a\\u0000"}', "NUL"),
        ('{"system": "a", "answer_schema": {"minimum": NaN}}', "NaN is no number of JSON"),
        ('{"system": "a", "answer_schema": ' + '{"not": ' * 100_000, "nests too deeply"),
        ('{"system": "a", "answer_schema": ' + '{"not": ' * 900 + "{}" + "}" * 901, "nests too deeply"),
        ("", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_prompt_files_are_explained(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(words)):
        read_prompt_file(write(tmp_path, text))


def test_a_prompt_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_prompt_file(tmp_path / "none.json")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_prompt_file(tmp_path)


CONTROL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<start_of_turn>",
    "<eos>",
    "<|eot_id|>",
)


@given(st.lists(st.one_of(st.sampled_from((*CONTROL_TOKENS, "<", "|", ">", "<|")), st.text(max_size=9)), max_size=12))
def test_nobody_but_the_template_writes_a_control_token(pieces: list[str]) -> None:
    text = "".join(pieces)
    passages = [PromptPassage(text, text)]
    rendered = render(Prompt("s"), [{"role": role, "content": text} for role in ("system", "user")], passages)
    for message in rendered:
        assert not any(token in message["content"] for token in CONTROL_TOKENS)


def test_ordinary_angle_brackets_stay() -> None:
    text = "a < b, <b>bold</b>, x <- y, |> and <|"
    assert render(Prompt("s"), [{"role": "user", "content": text}], None)[1]["content"] == text


def test_an_empty_system_text_leaves_it_to_the_conversation(tmp_path: Path) -> None:
    path = tmp_path / "prompt.json"
    path.write_text('{"system": ""}')
    prompt = read_prompt_file(path)
    said: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert render(prompt, said, None) == said
    path.with_suffix(".txt").write_text(" \n")
    with pytest.raises(InvalidInput, match="is empty"):
        read_prompt_file(path.with_suffix(".txt"))
