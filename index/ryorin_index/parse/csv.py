"""CSV and TSV: a section a row, with its header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from ryorin_index.parse.document import ParsedDocument, Writer, clean
from ryorin_index.parse.encoding import decode
from ryorin_index.parse.encoding import prepare as prepare
from ryorin_index.parse.rows import write_rows

MAX_FIELD_CHARACTERS = 1 << 20
_DELIMITERS = ",\t;|"
_SAMPLE_LINES = 20


def read(path: Path, data: bytes) -> ParsedDocument:
    """A table's rows. A row that breaks the rules of CSV (a quote that never closes) is read as far as it goes."""
    text = decode(path, data).replace("\0", "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    writer = Writer(path)
    write_rows(writer, _rows(text, delimiter))
    if not writer.sections:
        writer.add(clean(text))
    return ParsedDocument(writer.text(), "", "", tuple(writer.sections))


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error:  # a field that is longer than any cell: the reader goes on with the next line
            continue


def _delimiter(text: str) -> str:
    """The mark that cuts the first lines into the same number of fields, as many as can be."""
    end = -1
    for _ in range(_SAMPLE_LINES):
        end = text.find("\n", end + 1)
        if end < 0:
            break
    sample = text[: min(end if end >= 0 else len(text), 1 << 16)]

    def score(delimiter: str) -> tuple[int, int]:
        widths = [len(row) for row in _rows(sample, delimiter) if row]
        width = max(set(widths), key=lambda each: (widths.count(each), each), default=1)
        return (widths.count(width) if width > 1 else 0, width)

    return max(_DELIMITERS, key=score)
