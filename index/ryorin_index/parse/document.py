"""What a document is once it is read, and what all readers share. Light: the calling process imports it too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from ryorin.errors import InvalidInput

MEDIA_TYPES = {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".txt": "text/plain",
    ".html": "text/html",
    ".htm": "text/html",
    ".pdf": "application/pdf",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".eml": "message/rfc822",
    ".zip": "application/zip",
}
CONTAINERS = (".zip", ".eml")  # files that hold other files
MAX_TITLE_CHARACTERS = 200  # titles and headings stand before every passage they name, in the index and in the prompt
MAX_TEXT_CHARACTERS = 32 << 20
MAX_ATTRIBUTES, MAX_KEY_CHARACTERS, MAX_VALUE_CHARACTERS = 16, 64, 512  # OpenAI's limits
HEADING = re.compile(r"(#{1,6})\s+(.*)")
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_NOT_TEXT = str.maketrans({**_CONTROLS, 0x0B: "\n", 0x0C: "\n", 0x85: "\n"})  # vertical tab, form feed, next line
_SURROGATE = re.compile("[\ud800-\udfff]")

Attributes = dict[str, str | float | bool]


@dataclass(frozen=True)
class Section:
    """
    A part of a document that passages do not cross: offsets in its text, the heading path, the page.

    heading: the path below the document's title, ' > ' between its parts; empty at the top.
    page: the page of a PDF, the slide of a presentation; from 1.
    """

    start: int
    end: int
    heading: str = ""
    page: int | None = None


@dataclass(frozen=True)
class ParsedDocument:
    """
    A document's text.

    sections: its parts in order, as the format knows them (pages, slides, rows of a table); empty for formats whose
    headings stand in the text as Markdown, and for plain text.
    attributes: what the document says of itself (author, date, front matter); searches can filter by them.
    """

    text: str
    title: str
    media_type: str
    sections: tuple[Section, ...] = ()
    attributes: Attributes = field(default_factory=dict)


class Writer:
    """Puts a text together from parts that passages do not cross."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts: list[str] = []
        self._length = 0
        self.sections: list[Section] = []

    def add(self, text: str, heading: str = "", page: int | None = None, end: str = "\n\n") -> None:
        """A part; `end` stands between it and the next. A part without text is a section still where it is a page."""
        text = clean(text).strip()
        if not text and page is None:
            return
        start = self._length
        self._parts.append(text + end)
        self._length += len(text) + len(end)
        if self._length > MAX_TEXT_CHARACTERS:
            raise too_long(self._path)
        self.sections.append(Section(start, self._length, heading, page))

    def text(self) -> str:
        """All parts."""
        return "".join(self._parts)


def clean(text: str) -> str:
    """
    Text as it is kept: one kind of line end, no control characters (PostgreSQL takes no NUL, a terminal obeys the
    others), no halves of characters. Headings have one space, as LlamaIndex's parser writes them: so offsets hold.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_NOT_TEXT)
    return re.sub(r"^(#+)[^\S\n]+", r"\1 ", _SURROGATE.sub("\ufffd", text), flags=re.MULTILINE)


def one_line(text: str) -> str:
    """A title or heading as it names passages: one line, shortened where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_TITLE_CHARACTERS else line[: MAX_TITLE_CHARACTERS - 1] + "…"


def heading_path(parts: Iterable[str]) -> str:
    """'Returns > Unopened goods': a section's place below the document's title."""
    return " > ".join(filter(None, (one_line(clean(part)) for part in parts)))


def table_row(cells: Iterable[object]) -> str:
    """A table's row as text: 'a | b | c', each cell one line; empty where all cells are."""
    words = [" ".join(clean(str(cell)).split()) if cell is not None else "" for cell in cells]
    return " | ".join(words).strip() if any(words) else ""


def as_attributes(values: Mapping[str, Any]) -> Attributes:
    """The values that can be attributes: text, numbers, truth; dates in ISO form, lists of them joined with commas."""
    found: Attributes = {}
    for key, value in values.items():
        name = one_line(clean(str(key)))[:MAX_KEY_CHARACTERS]
        if isinstance(value, list):
            value = ", ".join(map(str, value)) if all(isinstance(item, str | int | float) for item in value) else None
        if isinstance(value, datetime | date | time):
            value = value.isoformat()
        if isinstance(value, str):
            value = " ".join(clean(value).split())[:MAX_VALUE_CHARACTERS]
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 63:
            value = str(value)[:MAX_VALUE_CHARACTERS]
        elif isinstance(value, float) and value - value != 0:  # not a number, or infinite: JSON has neither
            value = None
        if name and isinstance(value, str | int | float) and value != "" and len(found) < MAX_ATTRIBUTES:
            found[name] = value
    return found


def invalid(path: Path, reason: str) -> InvalidInput:
    """The error of a file that cannot be read; the reason goes on after its name."""
    return InvalidInput(f"{path.name} {reason}", code="invalid_file")


def too_long(path: Path) -> InvalidInput:
    """The error of a file with too much text."""
    return invalid(path, f"holds more than {MAX_TEXT_CHARACTERS:,} characters of text; split it")
