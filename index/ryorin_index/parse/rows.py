"""Rows of a table as sections: 'Header: value; Header: value', so that a passage is a row that explains itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta

from ryorin_index.parse.document import Writer, clean

MAX_HEADER_CHARACTERS = 80
HEADER_WITHIN = 10  # rows at the top among which the header is looked for
MAX_COLUMNS = 1_000
_NUMBER = re.compile(r"[-+]?[\d,.\s]*\d[\d,.\s]*%?|\d{4}[-/年]\d{1,2}[-/月]\d{1,2}日?")

Cell = object


def write_rows(writer: Writer, rows: Iterable[Sequence[Cell]], heading: str = "") -> None:
    """
    A table's rows, streamed. What stands above the header is text of its own; without one, a row is its values.

    The header is the first row near the top that has names and no numbers, all different, for at least half of the
    columns in use there.
    """
    texts = (_trimmed([cell_text(cell) for cell in row[:MAX_COLUMNS]]) for row in rows)
    remaining = (row for row in texts if row)
    top = list(itertools.islice(remaining, 2 * HEADER_WITHIN))
    at = _header(top)
    header = top[at] if at is not None else []
    for row in top[: at or 0]:
        writer.add(" | ".join(filter(None, row)), heading, end="\n")
    body: Iterator[list[str]] = itertools.chain(top[at + 1 if at is not None else 0 :], remaining)
    empty = True
    for row in body:
        empty = False
        writer.add(_row(header, row), heading, end="\n")
    if empty and header:
        writer.add(" | ".join(header), heading, end="\n")


def cell_text(value: Cell) -> str:
    """A cell as one line: dates in ISO form, whole numbers without a point."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ", "minutes")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return f"{value:.15g}"
    return " ".join(clean(str(value)).split())


def _header(top: Sequence[Sequence[str]]) -> int | None:
    width = max(map(len, top), default=0)
    for at, row in enumerate(top[:HEADER_WITHIN]):
        names = [cell for cell in row if cell]
        if 2 * len(names) < width or (width > 1 and len(names) < 2):
            continue
        if any(_NUMBER.fullmatch(name) or len(name) > MAX_HEADER_CHARACTERS for name in names):
            return None
        return at if len(set(names)) == len(names) else None
    return None


def _row(header: Sequence[str], row: Sequence[str]) -> str:
    if not header:
        return " | ".join(filter(None, row))
    return "; ".join(
        f"{header[at]}: {cell}" if at < len(header) and header[at] else cell for at, cell in enumerate(row) if cell
    )


def _trimmed(row: list[str]) -> list[str]:
    while row and not row[-1]:
        row.pop()
    return row
