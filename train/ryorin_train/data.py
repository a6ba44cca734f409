"""
Training rows: what an example, a preference and a rating are, their one canonical form, and checking a row against it.

An example is OpenAI's chat row, `{"messages": [{"role", "content", "weight"?}, …]}`; a preference is OpenAI's
`{"input": {"messages"}, "preferred_output": [message], "non_preferred_output": [message]}`; a rating, for which OpenAI
has no form, is TRL's `{"prompt": [message, …], "completion": [message], "label": true or false}`; a task is a
conversation that ends before the answer, with any fields that graders know answers by. All may carry two fields more:
`"passages": [{"title", "text"}, …]`, what retrieval had found (none: retrieval was off; `[]`: it found nothing), and
`"source"`, a name of what the row was made from. A field that is not known is refused, so that a misspelt one is not
silently lost; so are tools, which the prompt does not carry.

It knows nothing of prompts, tokens or models (render.py), nor of other formats (formats.py in datasets/).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ryorin.digests import canonical_json, sha256_bytes
from ryorin.errors import RowError
from ryorin.prompt import Message, PromptPassage

SHOWN_ERRORS = 10
TOOL_FIELDS = frozenset({"tools", "tool_calls", "tool_call_id", "parallel_tool_calls", "functions", "function_call"})
_INVISIBLE = "\ufeff\u200b\u2060"
ROLES = ("system", "developer", "user", "assistant")
Item = TypeVar("Item")
Result = TypeVar("Result")


class EmptyText(ValueError):
    """A text that must say something is empty or white space."""


class RowErrors(RowError):
    """Several rows cannot be used; `errors` holds each, the message shows the first ten."""

    def __init__(self, errors: Sequence[RowError]) -> None:
        first = errors[0]
        super().__init__(first.source, first.line, first.reason)
        self.errors = list(errors)
        shown = [error.message for error in errors[:SHOWN_ERRORS]]
        if len(errors) > SHOWN_ERRORS:
            shown.append(f"… and {len(errors) - SHOWN_ERRORS} more lines")
        self.message = "\n".join(shown)
        self.args = (self.message,)


@dataclass(frozen=True)
class Example:
    """
    One row to imitate.

    line: where it stands in its file, from 1.
    messages: the conversation; the last message is an assistant's that is learned.
    learned: for each message, whether it is learned (an assistant's, unless its weight is 0).
    passages: what retrieval found; None when it was off.
    source: what it was made from (a document, a conversation); rows of one source stay on one side of a split.
    """

    line: int
    messages: tuple[Message, ...]
    learned: tuple[bool, ...]
    passages: tuple[PromptPassage, ...] | None
    source: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        """Everything but the line, as JSON: rows of equal content are the same example."""
        messages = [
            {**message, **({} if learned or message["role"] != "assistant" else {"weight": 0})}
            for message, learned in zip(self.messages, self.learned, strict=True)
        ]
        return {"messages": messages, **_extras(self.passages, self.source)}


@dataclass(frozen=True)
class Preference:
    """
    One row to prefer by: a conversation that ends before the answer, a better answer and a worse one.

    line, passages, source: as of an Example.
    """

    line: int
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    passages: tuple[PromptPassage, ...] | None
    source: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        """Everything but the line, as JSON: rows of equal content are the same preference."""
        return {
            "input": {"messages": [dict(message) for message in self.messages]},
            "preferred_output": [{"role": "assistant", "content": self.chosen}],
            "non_preferred_output": [{"role": "assistant", "content": self.rejected}],
            **_extras(self.passages, self.source),
        }

    @property
    def answers(self) -> tuple[str, ...]:
        """Both answers."""
        return (self.chosen, self.rejected)


@dataclass(frozen=True)
class Rating:
    """
    One row of feedback: a conversation that ends before the answer, the answer it got, and whether it was found good.

    line, passages, source: as of an Example.
    """

    line: int
    messages: tuple[Message, ...]
    answer: str
    good: bool
    passages: tuple[PromptPassage, ...] | None
    source: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        """Everything but the line, as JSON: rows of equal content are the same rating."""
        return {
            "prompt": [dict(message) for message in self.messages],
            "completion": [{"role": "assistant", "content": self.answer}],
            "label": self.good,
            **_extras(self.passages, self.source),
        }

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer."""
        return (self.answer,)


@dataclass(frozen=True)
class Task:
    """
    One row to be graded on: a conversation that ends before the answer.

    fields: what graders know of it besides, by name. line, passages, source: as of an Example.
    """

    line: int
    messages: tuple[Message, ...]
    fields: dict[str, Any]
    passages: tuple[PromptPassage, ...] | None
    source: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        """Everything but the line, as JSON: what graders see as `item`."""
        messages = [dict(message) for message in self.messages]
        return {"messages": messages, **_extras(self.passages, self.source), **self.fields}

    @property
    def answers(self) -> tuple[str, ...]:
        """None: they are yet to be found."""
        return ()


Row = Example | Preference | Rating | Task


def _extras(passages: tuple[PromptPassage, ...] | None, source: str | None) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if passages is not None:
        extras["passages"] = [{"title": passage.title, "text": passage.text} for passage in passages]
    if source is not None:
        extras["source"] = source
    return extras


def for_each_row(
    source: str, items: Iterable[Item], line_of: Callable[[Item], int], work: Callable[[Item], Result]
) -> list[Result]:
    """`work` on each item; a ValueError of it is that line's reason, and all bad lines are raised together."""
    results: list[Result] = []
    errors: list[RowError] = []
    for item in items:
        try:
            results.append(work(item))
        except ValueError as error:
            errors.append(row_error(source, line_of(item), error))
    raise_all(errors)
    return results


def row_error(source: str, line: int, error: ValueError) -> RowError:
    """The error of a line by what was raised on it; its code is `empty_row` where a text with nothing in it was."""
    found = RowError(source, line, str(error))
    if isinstance(error, EmptyText):
        found.code = "empty_row"
    return found


def raise_all(errors: Sequence[RowError]) -> None:
    """Raise the one error, or all as one. Does nothing when there are none."""
    if errors:
        raise errors[0] if len(errors) == 1 else RowErrors(errors)


def dataset_bytes(rows: Sequence[Row]) -> bytes:
    """The dataset as it is kept: canonical JSONL. Its SHA-256 is the dataset's digest."""
    return "".join(canonical_json(row.content) + "\n" for row in rows).encode()


def dataset_digest(rows: Sequence[Row]) -> str:
    """Hex SHA-256 of `dataset_bytes`."""
    return sha256_bytes(dataset_bytes(rows))


def example_of(line: int, row: dict[str, Any]) -> Example:
    """The example in a chat row. Raises ValueError with the reason."""
    known_fields("the row", row, {"messages", "passages", "source"})
    parsed = messages_of("messages", row.get("messages"), present="messages" in row)
    if parsed[-1][0]["role"] != "assistant":
        raise ValueError(
            f"the last message's role is {parsed[-1][0]['role']!r}; it must be 'assistant': the answer to learn"
        )
    while parsed and not parsed[-1][1]:  # what follows the last learned message teaches nothing
        parsed.pop()
    if not parsed:
        raise ValueError("every assistant message has weight 0, so there is nothing to learn")
    messages = tuple(message for message, _ in parsed)
    return Example(line, messages, tuple(learned for _, learned in parsed), passages_of(row), source_of(row))


def preference_of(line: int, row: dict[str, Any]) -> Preference:
    """The preference in a row of OpenAI's form. Raises ValueError with the reason."""
    known_fields("the row", row, {"input", "preferred_output", "non_preferred_output", "passages", "source"})
    given = row.get("input")
    if not isinstance(given, dict):
        raise ValueError("'input' must be an object with 'messages'")
    known_fields("'input'", given, {"messages"})
    prompt = conversation_of("messages", given.get("messages"), present="messages" in given)
    chosen, rejected = (answer_of(field, row.get(field)) for field in ("preferred_output", "non_preferred_output"))
    return Preference(line, prompt, chosen, rejected, passages_of(row), source_of(row))


def task_of(line: int, row: dict[str, Any]) -> Task:
    """The task in a row. Raises ValueError with the reason."""
    messages = conversation_of("messages", row.get("messages"), present="messages" in row)
    fields = {name: value for name, value in row.items() if name not in ("messages", "passages", "source")}
    return Task(line, messages, fields, passages_of(row), source_of(row))


def messages_of(field: str, value: object, *, present: bool = True) -> list[tuple[Message, bool]]:
    """A field's messages, each with whether it is learned. Raises ValueError with the reason."""
    if not present:
        raise ValueError(f"there is no field {field!r}")
    if not isinstance(value, list) or not value:
        raise ValueError(f"{field!r} must be a list with at least one message")
    return [_message(number, message) for number, message in enumerate(value, start=1)]


def conversation_of(field: str, value: object, *, present: bool = True) -> tuple[Message, ...]:
    """A field's messages up to an answer that is not among them: the last is not an assistant's."""
    messages = tuple(message for message, _ in messages_of(field, value, present=present))
    if messages[-1]["role"] == "assistant":
        raise ValueError(f"{field!r} ends with an assistant's message; it must end before the answer")
    return messages


def answer_of(field: str, value: object) -> str:
    """The text of a field that is a list of one assistant's message. Raises ValueError with the reason."""
    messages = messages_of(field, value, present=value is not None)
    if len(messages) != 1 or messages[0][0]["role"] != "assistant":
        raise ValueError(f"{field!r} must be a list of one message with role 'assistant'")
    return messages[0][0]["content"]


def passages_of(row: dict[str, Any]) -> tuple[PromptPassage, ...] | None:
    """The row's passages, None when it has no such field. Raises ValueError with the reason."""
    if "passages" not in row:
        return None
    if not isinstance(row["passages"], list):
        raise ValueError("'passages' must be a list; leave it out when retrieval is off")
    return tuple(_passage(number, value) for number, value in enumerate(row["passages"], start=1))


def source_of(row: dict[str, Any]) -> str | None:
    """The row's source, None when it has no such field. Raises ValueError with the reason."""
    return text_of("the row", "source", row) if "source" in row else None


def parse_line(raw: bytes) -> dict[str, Any]:
    """A line of JSONL as an object, its fields in order. Raises ValueError with the reason."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    try:
        row = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not an example: nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is needed, this is {_kind(row)}")
    return row


def _message(number: int, value: object) -> tuple[Message, bool]:
    """A message and whether it is learned."""
    where = f"message {number}"
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, this is {_kind(value)}")
    known_fields(where, value, {"role", "content", "weight"})
    role = value.get("role")
    if role in ("tool", "function"):
        raise ValueError(f"{where} has role {role!r}: tools are not trained, since no prompt carries them")
    if role not in ROLES:
        raise ValueError(f"{where} has role {role!r}; known roles: {', '.join(ROLES)}")
    learned = role == "assistant"
    if "weight" in value:
        if not learned:
            raise ValueError(f"{where} has a weight, but only assistant messages are learned")
        if value["weight"] not in (0, 1) or isinstance(value["weight"], bool):
            raise ValueError(f"{where} has weight {value['weight']!r}; it must be 0 or 1")
        learned = value["weight"] == 1
    return Message(role=role, content=text_of(where, "content", value)), learned


def _passage(number: int, value: object) -> PromptPassage:
    where = f"passage {number}"
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, this is {_kind(value)}")
    known_fields(where, value, {"title", "text"})
    return PromptPassage(title=text_of(where, "title", value), text=text_of(where, "text", value))


def trimmed(text: str) -> str:
    """The text without white space, byte order marks and zero-width spaces at its ends."""
    while (shorter := text.strip().strip(_INVISIBLE)) != text:
        text = shorter
    return text


def text_of(where: str, field: str, value: dict[str, Any]) -> str:
    """A field that must be text with something in it. Raises ValueError with the reason."""
    text = value.get(field)
    if not isinstance(text, str):
        raise ValueError(f"{where} has no {field}" if text is None else f"{where}: {field} must be text")
    if not trimmed(text):
        raise EmptyText(f"{where} has an empty {field}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: {field} holds half of a surrogate pair, which is no character") from None
    return text


def known_fields(where: str, value: dict[str, Any], known: set[str]) -> None:
    """Raises ValueError for the first field that is not among the known ones."""
    for field in value:
        if field in TOOL_FIELDS:
            raise ValueError(
                f"{where} has {field!r}: tools are not trained, since no prompt carries them; leave it out"
            )
        if field not in known:
            raise ValueError(f"{where} has the unknown field {field!r}; known: {', '.join(sorted(known))}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null", dict: "an object"}
    return names.get(type(value), "a number")
