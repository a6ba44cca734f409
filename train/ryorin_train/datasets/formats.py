"""
Reading training rows: which format a file is in, and every row of it or the reason why not.

The formats, told by content unless one is forced:

    openai-chat            {"messages": […]}                                                     JSONL
    openai-preference      {"input": {"messages"}, "preferred_output", "non_preferred_output"}   JSONL
    trl-prompt-completion  {"prompt": [message, …], "completion": [message]}                     JSONL
    trl-preference         {"prompt": [message, …], "chosen": [message], "rejected": [message]}  JSONL
    openai-reinforcement   {"messages": […], any fields}, ending before the answer               JSONL
    trl-unpaired           {"prompt": [message, …], "completion": [message], "label": true}      JSONL
    csv                    a header and a row a line, columns mapped to roles (columns.py)
    hf                     a directory of Hugging Face `datasets` (`save_to_disk`), its rows in one of the first five

Reinforcement is never told by content: its rows look like chat rows that lack their answer. A row may carry `passages`
and `source` in each of them. Of TRL's types only the conversational ones are read: a text without roles is no
conversation (https://huggingface.co/docs/trl/dataset_formats).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from ryorin.digests import digest_of_folder, sha256_bytes
from ryorin.errors import InvalidInput, NotFound, RowError
from ryorin.prompt import Message
from ryorin_train.data import (
    SHOWN_ERRORS,
    Example,
    Preference,
    Rating,
    Row,
    Task,
    answer_of,
    conversation_of,
    example_of,
    known_fields,
    messages_of,
    parse_line,
    passages_of,
    preference_of,
    raise_all,
    row_error,
    source_of,
    task_of,
    text_of,
)

CHAT, PREFERENCE, RATING, REINFORCEMENT = "chat", "preference", "rating", "reinforcement"  # the kinds of a dataset
KINDS: dict[type[Row], str] = {Example: CHAT, Preference: PREFERENCE, Rating: RATING, Task: REINFORCEMENT}
KEPT = {  # the canonical form of each
    CHAT: "openai-chat",
    PREFERENCE: "openai-preference",
    RATING: "trl-unpaired",
    REINFORCEMENT: "openai-reinforcement",
}
CSV, HF = "csv", "hf"
SHAPES = (
    "openai-chat",
    "openai-preference",
    "trl-prompt-completion",
    "trl-preference",
    "trl-unpaired",
    "openai-reinforcement",
)
FORMATS = (*SHAPES, CSV, HF)
HOLDS: dict[type[Row], str] = {
    Example: "examples (one answer each)",
    Preference: "preferences (a better and a worse answer)",
    Rating: "ratings (an answer and a thumb)",
    Task: "tasks (conversations that end before the answer)",
}
Kind = TypeVar("Kind", Example, Preference, Rating, Task)
BOM = b"\xef\xbb\xbf"
EMPTY = "the file is empty; it must hold one example a line"
_MARKS = (  # fields that tell a shape, the surest first
    ("openai-preference", {"input", "preferred_output", "non_preferred_output"}),
    ("trl-preference", {"chosen", "rejected"}),
    ("trl-unpaired", {"label"}),
    ("trl-prompt-completion", {"prompt", "completion"}),
)


@dataclass(frozen=True)
class Reading:
    """
    How a file is to be read.

    format: one of FORMATS; None to tell it by content. mapping: of CSV, column to target (columns.py); None when the
    columns have the targets' names. encoding: of CSV, as Python names it.
    """

    format: str | None = None
    mapping: Mapping[str, str] | None = None
    encoding: str = "utf-8"


@dataclass
class Loaded:
    """
    What a file holds.

    name: the file's name. sha256: of its bytes, of a directory the digest of its files. rows: those that can be used,
    in order. errors: one for each that cannot. bom: whether it begins with a byte order mark. blank_lines: from 1.
    """

    name: str
    sha256: str
    format: str
    rows: list[Row] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)
    bom: bool = False
    blank_lines: list[int] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return KINDS[type(self.rows[0])] if self.rows else CHAT


def read_rows(path: Path, reading: Reading | None = None) -> list[Row]:
    """
    The rows of a file or directory, in its order; a BOM, CRLF and blank lines are tolerated.

    Raises what `load` raises, and RowError (RowErrors for several) naming each line that cannot be used.
    """
    loaded = load(path, reading)
    raise_all(loaded.errors)
    return loaded.rows


def read_examples(path: Path, reading: Reading | None = None) -> list[Example]:
    """The same for rows to imitate. Raises InvalidInput when they are preferences."""
    return only_examples(path.name, read_rows(path, reading))


def only_examples(name: str, rows: Iterable[Row]) -> list[Example]:
    """The rows, when all are examples. Raises InvalidInput when one is not."""
    return _only(Example, name, rows, "imitates one answer: give it chat rows")


def only_preferences(name: str, rows: Iterable[Row]) -> list[Preference]:
    """The rows, when all are preferences. Raises InvalidInput when one is not."""
    return _only(Preference, name, rows, "needs a better and a worse answer")


def only_ratings(name: str, rows: Iterable[Row]) -> list[Rating]:
    """The rows, when all are ratings. Raises InvalidInput when one is not."""
    return _only(Rating, name, rows, "needs an answer with a thumb up or down: prompt, completion and label")


def _only(kind: type[Kind], name: str, rows: Iterable[Row], needs: str) -> list[Kind]:
    found = []
    for row in rows:
        if not isinstance(row, kind):
            raise InvalidInput(
                f"{name} holds {HOLDS[type(row)]}, and this method {needs}; 'ryorin data show' tells a dataset's kind",
                param="data",
            )
        found.append(row)
    return found


def only_tasks(name: str, rows: Iterable[Row]) -> list[Task]:
    """The rows, when all are tasks. Raises InvalidInput when one is not."""
    return _only(Task, name, rows, "needs conversations that end before the answer")


def load(path: Path, reading: Reading | None = None) -> Loaded:
    """
    A file's or directory's usable rows and the errors of the others.

    Raises NotFound when there is nothing at `path`; InvalidInput when it cannot be read, a directory is not one of
    `datasets`, or the format or mapping does not fit; RowError when it holds no rows at all.
    """
    reading = reading or Reading()
    if reading.format is not None and reading.format not in FORMATS:
        raise InvalidInput(f"unknown format {reading.format!r}; known: {', '.join(FORMATS)}", param="format")
    if path.is_dir():
        if reading.format not in (None, HF):
            raise InvalidInput(f"{path} is a directory; only the format {HF} is one", param="format")
        loaded = _load_directory(path)
    else:
        if reading.format == HF:
            raise InvalidInput(
                f"{path} is no directory; the format {HF} is one that `save_to_disk` wrote", param="data"
            )
        loaded = load_bytes(path.name, _bytes_of(path), reading)
    if not loaded.rows and not loaded.errors:
        raise RowError(loaded.name, 1, EMPTY)
    return loaded


def load_bytes(name: str, data: bytes, reading: Reading | None = None) -> Loaded:
    """The same for a file's bytes; one without rows gives none."""
    from ryorin_train.datasets.columns import csv_rows, is_csv

    reading = reading or Reading()
    loaded = Loaded(name, sha256_bytes(data), reading.format or "", bom=data.startswith(BOM))
    body = data.removeprefix(BOM)
    if reading.format == CSV or (reading.format is None and is_csv(name, body, reading.mapping)):
        loaded.format = CSV
        csv_rows(loaded, body, reading.mapping, reading.encoding)
        return loaded
    if reading.mapping is not None:
        raise InvalidInput(f"{name} is not CSV, so --map has no columns to map; leave it out", param="map")
    lines = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line.strip():
            lines.append((number, line))
        else:
            loaded.blank_lines.append(number)
    if loaded.blank_lines and loaded.blank_lines[-1] == body.count(b"\n") + 1:
        loaded.blank_lines.pop()  # what follows the last line's end is no line
    _take(loaded, ((number, lambda line=line: parse_line(line)) for number, line in lines), reading.format)
    return loaded


def shape_of(fields: Iterable[str]) -> str:
    """Which of SHAPES a row with these fields is in; openai-chat when nothing tells."""
    names = set(fields)
    return next((shape for shape, marks in _MARKS if names & marks), "openai-chat")


def what_is_wrong(name: str, lines: Iterator[bytes]) -> str | None:
    """
    Why `load_bytes` could not use all of an uploaded file, naming its first bad lines; None when it could.

    lines: of the file, with their ends. JSONL is read a line at a time and never held as a whole. It is for
    reinforcement when the conversation in its first line ends before the answer.
    """
    from ryorin_train.datasets.columns import is_csv

    first = next(lines, b"").removeprefix(BOM)
    try:
        if is_csv(name, first, None):
            loaded = load_bytes(name, first + b"".join(lines))
            raise_all(loaded.errors)
            if not loaded.rows:
                raise RowError(name, 1, EMPTY)
            return None
        errors: list[RowError] = []
        empty = True
        forced = "openai-reinforcement" if _is_task(first) else None
        numbered = enumerate(chain([first], lines), start=1)
        given = ((number, partial(parse_line, line)) for number, line in numbered if line.strip())
        parsed = _parsed(name, given, forced)
        for _, row in parsed:
            empty = False
            if isinstance(row, RowError):
                errors.append(row)
                if len(errors) == SHOWN_ERRORS:
                    break
        raise_all([RowError(name, 1, EMPTY)] if empty else errors)
    except InvalidInput as error:
        return error.message
    return None


def _take(loaded: Loaded, lines: Iterable[tuple[int, Any]], forced: str | None) -> None:
    """Parse rows one after the other. lines: (number, a function that gives the row's fields or raises ValueError)."""
    for shape, row in _parsed(loaded.name, lines, forced):
        loaded.format = loaded.format or shape or ""
        if isinstance(row, RowError):
            loaded.errors.append(row)
        else:
            loaded.rows.append(row)
    loaded.format = loaded.format or forced or "openai-chat"


def _is_task(line: bytes) -> bool:
    """Whether a line holds a conversation that ends with its user."""
    try:
        messages = parse_line(line).get("messages")
        return isinstance(messages, list) and bool(messages) and messages[-1].get("role") == "user"
    except (ValueError, AttributeError):
        return False


def _parsed(
    name: str, lines: Iterable[tuple[int, Any]], forced: str | None
) -> Iterator[tuple[str | None, Row | RowError]]:
    """For each line the shape that is known by then, and its row or why there is none."""
    shape = forced
    for number, parse in lines:
        try:
            fields = parse()
            found = shape_of(fields)
            if shape is None:
                shape = found
            elif found != shape and forced is None:
                raise ValueError(f"its fields are those of {found}, the rows above are {shape}; one format a file")
            yield shape, row_of(shape, number, fields)
        except ValueError as error:
            yield shape, row_error(name, number, error)


def row_of(shape: str, line: int, fields: dict[str, Any]) -> Row:
    """The row of one of SHAPES. Raises ValueError with the reason."""
    if shape == "openai-chat":
        return example_of(line, fields)
    if shape == "openai-preference":
        return preference_of(line, fields)
    if shape == "openai-reinforcement":
        return task_of(line, fields)
    answers = ("chosen", "rejected") if shape == "trl-preference" else ("completion",)
    label = ("label",) if shape == "trl-unpaired" else ()
    known_fields("the row", fields, {"prompt", *answers, *label, "passages", "source"})
    for name in ("prompt", *answers):
        if isinstance(fields.get(name), str):
            raise ValueError(f"{name!r} is a text; it must be a list of messages, each with its role")
        for message in fields[name] if isinstance(fields.get(name), list) else ():
            if isinstance(message, dict) and "weight" in message:
                raise ValueError(f"a message of {name!r} has a weight, which the format {shape} does not know")
    prompt = conversation_of("prompt", fields.get("prompt"), present="prompt" in fields)
    texts = [answer_of(name, fields.get(name)) for name in answers]
    if len(texts) == 2:
        return Preference(line, prompt, texts[0], texts[1], passages_of(fields), source_of(fields))
    if label:
        good = fields.get("label")
        if not isinstance(good, bool):
            raise ValueError(f"'label' is {good!r}; it must be true (a thumb up) or false (a thumb down)")
        return Rating(line, prompt, texts[0], good, passages_of(fields), source_of(fields))
    messages = (*prompt, {"role": "assistant", "content": texts[0]})
    learned = (*(False for _ in prompt), True)
    return Example(line, messages, learned, passages_of(fields), source_of(fields))  # type: ignore[arg-type]


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound(
            f"no file {path}; --data takes a file of examples, a `datasets` directory, or a dataset's id or digest",
            param="data",
        ) from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", param="data") from error


def _load_directory(path: Path) -> Loaded:
    """The rows of a directory that `datasets` wrote. Its own code runs, none of the directory's: it holds data only."""
    if (path / "dataset_dict.json").is_file():
        names = sorted(entry.name for entry in path.iterdir() if (entry / "state.json").is_file())
        raise InvalidInput(
            f"{path} holds the splits {', '.join(names) or '(none)'}; name one: {path / names[0] if names else path}",
            param="data",
        )
    if not (path / "state.json").is_file():
        raise InvalidInput(
            f"{path} is a directory, but no dataset of Hugging Face `datasets`: it has no state.json",
            param="data",
        )
    try:
        files = json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]
        if any(Path(str(file["filename"])).name != file["filename"] for file in files):
            raise InvalidInput(f"{path / 'state.json'} names a file outside of the directory", param="data")
        import datasets

        datasets.disable_progress_bars()
        opened = datasets.load_from_disk(str(path.resolve()), keep_in_memory=True)
        rows = opened.with_format(None).to_list()
    except InvalidInput:
        raise
    except Exception as error:  # pyarrow's, json's and datasets' own, of a damaged directory
        raise InvalidInput(f"{path} cannot be read by `datasets`: {error}", param="data") from error
    loaded = Loaded(path.name, digest_of_folder(path), HF)
    # Arrow has a null where a row lacks a field.
    _take(loaded, ((number, lambda row=row: _without_nulls(row)) for number, row in enumerate(rows, start=1)), None)
    return loaded


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def read_questions(path: Path) -> list[Row]:
    """
    Held-out cases: the rows of a file, or the questions of one whose rows have a field `question` or end before the
    answer. Other fields of a case are not looked at. Raises what `read_rows` raises.
    """
    loaded = load(path)
    if not loaded.errors:
        return loaded.rows
    if loaded.format == CSV:
        raise_all(loaded.errors)
    cases: list[Row] = []
    errors = []
    for number, line in enumerate(_bytes_of(path).removeprefix(BOM).split(b"\n"), start=1):
        try:
            if line.strip():
                cases.append(_case(number, parse_line(line)))
        except ValueError as error:
            errors.append(row_error(path.name, number, error))
    raise_all(errors)
    return cases


def _case(line: int, fields: dict[str, Any]) -> Example:
    if "question" in fields:
        messages = [Message(role="user", content=text_of("the case", "question", fields))]
    else:
        messages = [
            message for message, _ in messages_of("messages", fields.get("messages"), present="messages" in fields)
        ]
    return Example(line, tuple(messages), (False,) * len(messages), None)
