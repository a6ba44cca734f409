"""
Training examples: reading them from a file, and choosing those that are held out.

The format is OpenAI's chat JSONL, one object a line: `{"messages": [{"role", "content", "weight"?}, …]}`, with one
optional field more, `"passages": [{"title", "text"}, …]`: what retrieval had found. No `passages` means that retrieval
was off, `[]` that it found nothing. A field that is not known is refused, so that a misspelt one is not silently lost.

It knows nothing of prompts, tokens or models: see render.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ryorin.digests import canonical_json, digest_of, sha256_bytes
from ryorin.errors import InvalidInput, NotFound, RowError
from ryorin.prompt import Message, PromptPassage

SHOWN_ERRORS = 10
ROLES = ("system", "developer", "user", "assistant")
Item = TypeVar("Item")
Result = TypeVar("Result")


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
    One row.

    line: where it stands in its file, from 1.
    messages: the conversation; the last message is an assistant's that is learned.
    learned: for each message, whether it is learned (an assistant's, unless its weight is 0).
    passages: what retrieval found; None when it was off.
    """

    line: int
    messages: tuple[Message, ...]
    learned: tuple[bool, ...]
    passages: tuple[PromptPassage, ...] | None

    @property
    def content(self) -> dict[str, Any]:
        """Everything but the line, as JSON: rows of equal content are the same example."""
        row: dict[str, Any] = {
            "messages": [
                {**message, **({} if learned or message["role"] != "assistant" else {"weight": 0})}
                for message, learned in zip(self.messages, self.learned, strict=True)
            ]
        }
        if self.passages is not None:
            row["passages"] = [{"title": passage.title, "text": passage.text} for passage in self.passages]
        return row


def read_examples(path: Path) -> list[Example]:
    """
    The examples of a JSONL file, in its order. A BOM, CRLF and blank lines are tolerated.

    Raises NotFound when there is no such file, RowError (RowErrors for several) naming each line that cannot be used.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"no file {path}; --data takes a JSONL file of chat examples", param="data") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", param="data") from error
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise RowError(path.name, 1, "the file is empty; it must hold one example a line")
    return for_each_row(path.name, numbered, lambda item: item[0], lambda item: _example(*item))


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
            errors.append(RowError(source, line_of(item), str(error)))
    if errors:
        raise errors[0] if len(errors) == 1 else RowErrors(errors)
    return results


def dataset_bytes(examples: Sequence[Example]) -> bytes:
    """The dataset as it is kept: canonical JSONL. Its SHA-256 is the dataset's digest."""
    return "".join(canonical_json(example.content) + "\n" for example in examples).encode()


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """
    (training, held-out) examples, each in the order given.

    An example is held out when the hash of its content and `seed` falls into the first `share` of all hashes. So equal
    rows are always on the same side, and a row keeps its side when the file grows. Of ten rows or more at least one is
    held out (if two differ); at least one is always left for training.
    """
    places = [int(digest_of([seed, example.content])[:16], 16) / 16**16 for example in examples]
    held = {place for place in places if place < share}
    distinct = set(places)
    if share > 0 and not held and len(examples) >= 10 and len(distinct) > 1:
        held = {min(distinct)}
    if held == distinct:
        held.discard(max(held, default=0.0))
    training = [example for example, place in zip(examples, places, strict=True) if place not in held]
    return training, [example for example, place in zip(examples, places, strict=True) if place in held]


def dataset_digest(examples: Sequence[Example]) -> str:
    """Hex SHA-256 of `dataset_bytes`."""
    return sha256_bytes(dataset_bytes(examples))


def _example(line: int, raw: bytes) -> Example:
    """One line's example. Raises ValueError with the reason."""
    row = parse_line(raw)
    known_fields("the row", row, {"messages", "passages"})
    if "messages" not in row:
        raise ValueError("there is no field 'messages'")
    if not isinstance(row["messages"], list) or not row["messages"]:
        raise ValueError("'messages' must be a list with at least one message")
    parsed = [_message(number, value) for number, value in enumerate(row["messages"], start=1)]
    if parsed[-1][0]["role"] != "assistant":
        raise ValueError(
            f"the last message's role is {parsed[-1][0]['role']!r}; it must be 'assistant': the answer to learn"
        )
    while parsed and not parsed[-1][1]:  # what follows the last learned message teaches nothing
        parsed.pop()
    if not parsed:
        raise ValueError("every assistant message has weight 0, so there is nothing to learn")
    passages = None
    if "passages" in row:
        if not isinstance(row["passages"], list):
            raise ValueError("'passages' must be a list; leave it out when retrieval is off")
        passages = tuple(_passage(number, value) for number, value in enumerate(row["passages"], start=1))
    return Example(line, tuple(message for message, _ in parsed), tuple(learned for _, learned in parsed), passages)


def parse_line(raw: bytes) -> dict[str, Any]:
    """A line of JSONL as an object. Raises ValueError with the reason."""
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


def text_of(where: str, field: str, value: dict[str, Any]) -> str:
    """The text in a field, not blank. Raises ValueError."""
    text = value.get(field)
    if not isinstance(text, str):
        raise ValueError(f"{where} has no {field}" if text is None else f"{where}: {field} must be text")
    if not text.strip():
        raise ValueError(f"{where} has an empty {field}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: {field} holds half of a surrogate pair, which is no character") from None
    return text


def known_fields(where: str, value: dict[str, Any], known: set[str]) -> None:
    """Raises ValueError for a field that is not known, so that a misspelt one is not silently lost."""
    for field in value:
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
