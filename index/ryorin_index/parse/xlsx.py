"""Excel: a section a row, with its header, under the sheet's name. Formulas give the value Excel saved with them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from ryorin_index.parse.document import ParsedDocument, Writer, as_attributes, heading_path
from ryorin_index.parse.office import check_package, unreadable
from ryorin_index.parse.rows import write_rows


def prepare() -> None:
    """Import what the reader needs."""
    import openpyxl  # type: ignore[import-untyped]  # noqa: F401


def read(path: Path, data: bytes) -> ParsedDocument:
    """A workbook's rows, sheet by sheet, in a stream: what a sheet says of its size is not believed."""
    import openpyxl

    check_package(path, data)
    writer = Writer(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of styles and extensions it does not know
            book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
            for sheet in book.worksheets:
                sheet.reset_dimensions()
                write_rows(writer, sheet.iter_rows(values_only=True), heading_path([sheet.title]))
            title, attributes = _properties(book)
    except MemoryError:
        raise
    except Exception as error:  # damaged packages bring openpyxl to raise almost anything
        if getattr(error, "code", None) == "invalid_file":
            raise
        raise unreadable(path, error) from error
    return ParsedDocument(writer.text(), title, "", tuple(writer.sections), as_attributes(attributes))


def _properties(book: Any) -> tuple[str, dict[str, Any]]:
    known = book.properties
    author = known.creator if known.creator != "openpyxl" else None
    return known.title or "", {"author": author, "created": known.created, "modified": known.modified}
