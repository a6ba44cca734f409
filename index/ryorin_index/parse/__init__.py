"""
Reading a document: bytes of any supported format become one text.

Every format becomes text in Markdown form (headings as '#' lines) or sections of its own kind (pages, slides, rows),
so there is one way to cut it (`ryorin_index.passages`). The readers run in a child process (`ryorin_index.sandbox`):
whatever a file does to them, it does not do here. One module a format; `reading.py` chooses among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ryorin.errors import InvalidInput
from ryorin_index.parse.document import (
    CONTAINERS,
    HEADING,
    MAX_TITLE_CHARACTERS,
    MEDIA_TYPES,
    ParsedDocument,
    Section,
    as_attributes,
    invalid,
    one_line,
)
from ryorin_index.sandbox import call

__all__ = [
    "CONTAINERS",
    "HEADING",
    "MAX_TITLE_CHARACTERS",
    "MEDIA_TYPES",
    "Expanded",
    "ParsedDocument",
    "Section",
    "expand",
    "one_line",
    "parse_document",
]


@dataclass(frozen=True)
class Expanded:
    """
    What a file holds besides its own text.

    members: (name within it, bytes) of each file of a supported format. refused: (name, reason).
    skipped: names of files of other formats.
    """

    members: tuple[tuple[str, bytes], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    skipped: tuple[str, ...] = ()


def parse_document(path: Path, data: bytes) -> ParsedDocument:
    """
    Read a file's bytes; `path` gives the format and the title of last resort.

    Raises InvalidInput: code 'unsupported_file' for an unknown format, 'invalid_file' for one that cannot be read
    (empty, encrypted, damaged, no text in it, or it took more than `ryorin_index.sandbox.LIMITS`).
    """
    suffix = path.suffix.lower()
    if suffix not in MEDIA_TYPES:
        raise InvalidInput(
            f"{path.name}: the format {path.suffix or '(no suffix)'!r} is not supported; supported are "
            + ", ".join(MEDIA_TYPES),
            code="unsupported_file",
        )
    if suffix == ".zip":
        raise invalid(path, "is an archive: its files are documents of their own; unpack it, or use 'ryorin index add'")
    if not data:
        raise invalid(path, "is empty")
    return _document(call("ryorin_index.parse.reading:read", path.name, data)[0])


def expand(path: Path, data: bytes) -> Expanded:
    """
    The files within an archive or an e-mail; nothing for other formats. They may hold files in turn, one level deep.

    A member's name is its path within, '!/' between an inner container and its members. Raises InvalidInput, code
    'invalid_file', where the whole cannot be read or holds too much.
    """
    if path.suffix.lower() not in CONTAINERS or not data:
        return Expanded()
    answer = call("ryorin_index.parse.archive:expand", path.name, data)
    listed = answer[0]
    return Expanded(
        members=tuple(zip(listed["members"], answer[1:], strict=True)),
        refused=tuple((name, reason) for name, reason in listed["refused"]),
        skipped=tuple(listed["skipped"]),
    )


def _document(answer: dict[str, Any]) -> ParsedDocument:
    """A child's answer, checked: what is kept in SQL must hold together whatever the child was made to say."""
    text = str(answer["text"])
    return ParsedDocument(
        text,
        str(answer["title"]),
        str(answer["media_type"]),
        tuple(_sections(answer["sections"], len(text))),
        as_attributes(answer["attributes"]),
    )


def _sections(rows: list[tuple[int, int, str, int | None]], length: int) -> Iterator[Section]:
    at = 0
    for start, end, heading, page in rows:
        if not at <= start <= end <= length:
            raise InvalidInput("a reader gave sections that do not fit its text", code="invalid_file")
        at = end
        yield Section(start, end, str(heading), page)
