"""JSON and JSON Lines: a section a record, with a line 'path: value' for each value in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ryorin_index.parse.document import ParsedDocument, Writer, clean, heading_path, invalid
from ryorin_index.parse.encoding import decode
from ryorin_index.parse.encoding import prepare as prepare

MAX_DEPTH = 100
_TITLES = ("title", "name", "タイトル", "名称")


def read(path: Path, data: bytes) -> ParsedDocument:
    """The records of a file; its own title where it is one object with one."""
    text = decode(path, data)
    writer = Writer(path)
    title = ""
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                _write(path, writer, _value(path, line, f"line {number}: "), (), 0)
    else:
        value = _value(path, text, "")
        if isinstance(value, dict):
            title = next((value[key] for key in _TITLES if isinstance(value.get(key), str)), "")
        _write(path, writer, value, (), 0)
    return ParsedDocument(writer.text(), title, "", tuple(writer.sections))


def _value(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text, parse_int=str, parse_float=str)  # as they are written, however long
    except RecursionError:
        raise invalid(path, f"nests more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:
        raise invalid(path, f"is not JSON ({place}{str(error)[:200]})") from error


def _write(path: Path, writer: Writer, value: Any, keys: tuple[str, ...], depth: int) -> None:
    """A section for what a record says itself, then one for each record in lists below it."""
    if depth > MAX_DEPTH:
        raise invalid(path, f"nests more than {MAX_DEPTH} levels deep")
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for item in value:
            _write(path, writer, item, keys, depth + 1)
        return
    lists: list[tuple[tuple[str, ...], Any]] = []
    lines = list(_lines(path, value, (), lists, depth))
    writer.add("\n".join(lines), heading_path(keys))
    for below, items in lists:
        _write(path, writer, items, keys + below, depth + 1)


def _lines(
    path: Path, value: Any, keys: tuple[str, ...], lists: list[tuple[tuple[str, ...], Any]], depth: int
) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise invalid(path, f"nests more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _lines(path, item, (*keys, str(key)), lists, depth + 1)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        lists.append((keys, value))
    elif value is not None and value != "" and value != []:
        text = ", ".join(map(_scalar, value)) if isinstance(value, list) else _scalar(value)
        name = " ".join(clean(".".join(keys)).split())
        yield f"{name}: {clean(text)}" if name else clean(text)


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
