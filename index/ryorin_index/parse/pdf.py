"""
PDF, page by page. pypdf gives the text; where a page draws lines, pdfplumber looks for tables, whose rows become lines
'a | b | c' in their place. Tables without lines stay what the text has of them.
"""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path
from typing import Any

from ryorin_index.parse.document import ParsedDocument, Writer, as_attributes, clean, invalid, table_row

MAX_PAGES = 20_000
MAX_LINES = 5_000  # drawn on a page; more are a drawing, and searching it for tables takes minutes
_MIN_LINES = 4
_DRAWN = re.compile(rb"(?<=\s)(?:re|l)(?=\s)")  # operators of a content stream: a rectangle, a line
_TABLE_CELLS = 4
_UNNAMED = ("(anonymous)", "untitled", "unspecified", "無題")  # what programs write where nobody said


def prepare() -> None:
    """Import what the reader needs."""
    import pdfplumber  # noqa: F401
    import pypdf  # noqa: F401


def read(path: Path, data: bytes) -> ParsedDocument:
    """A PDF's text, its pages as sections; title, author and dates as it says them."""
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every damage it can repair, some hundred times
    logging.getLogger("pdfminer").setLevel(logging.CRITICAL)
    try:
        pdf = pypdf.PdfReader(io.BytesIO(data))
        if pdf.is_encrypted and not pdf.decrypt(""):  # many are protected against changes only: no password to read
            raise invalid(path, "is encrypted; save a copy without a password")
        if len(pdf.pages) > MAX_PAGES:
            raise invalid(path, f"has {len(pdf.pages):,} pages, the limit is {MAX_PAGES:,}; split it")
        writer = Writer(path)
        tables = _Tables(data)
        for number, page in enumerate(pdf.pages, start=1):
            text = tables.text(number - 1) if _may_hold_tables(page) else None
            writer.add(page.extract_text() if text is None else text, page=number)
        title, attributes = _metadata(pdf)
    except (ValueError, MemoryError) as error:
        if getattr(error, "code", None) == "invalid_file" or isinstance(error, MemoryError):
            raise
        raise _unreadable(path, error) from error
    except Exception as error:  # damaged files bring pypdf to raise almost anything
        raise _unreadable(path, error) from error
    if not writer.text().strip():
        raise invalid(path, "is a PDF without text; a scanned document needs text recognition (OCR) first")
    return ParsedDocument(writer.text(), title, "application/pdf", tuple(writer.sections), as_attributes(attributes))


def _unreadable(path: Path, error: Exception) -> Exception:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return invalid(path, f"cannot be read as a PDF ({reason}); open it in a viewer and save it anew")


def _metadata(pdf: Any) -> tuple[str, dict[str, Any]]:
    try:
        known = pdf.metadata or {}
        title = known.get("/Title")
        author = known.get("/Author")
        created = getattr(known, "creation_date", None)
    except Exception:  # metadata of a damaged file; its text was read
        return "", {}
    named, written_by = (
        value if isinstance(value, str) and value.lower() not in _UNNAMED else "" for value in (title, author)
    )
    return named, {"author": written_by, "created": created}


def _may_hold_tables(page: Any) -> bool:
    contents = page.get_contents()
    return contents is not None and _MIN_LINES <= len(_DRAWN.findall(contents.get_data())) <= MAX_LINES


class _Tables:
    """The same PDF as pdfplumber sees it, opened when a page needs it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pdf: Any = None

    def text(self, index: int) -> str | None:
        """
        A page's text with its tables' rows in their place; None where there is no table, or pdfplumber cannot read
        what pypdf can.
        """
        import pdfplumber

        try:
            if self._pdf is None:
                self._pdf = pdfplumber.open(io.BytesIO(self._data))
            page = self._pdf.pages[index]
            tables = [table for table in page.find_tables() if len(table.cells) >= _TABLE_CELLS]
            if not tables:
                return None
            text = self._around(page, sorted(tables, key=lambda table: table.bbox[1]))
            page.close()
            return text
        except MemoryError:
            raise
        except Exception:  # pdfminer raises almost anything too; the text is there without it
            return None

    def _around(self, page: Any, tables: list[Any]) -> str:
        """Lines outside tables in reading order, each table at its height."""
        boxes = [table.bbox for table in tables]

        def outside(item: dict[str, Any]) -> bool:
            if item.get("object_type") != "char":
                return True
            x, y = (item["x0"] + item["x1"]) / 2, (item["top"] + item["bottom"]) / 2
            return not any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)

        blocks = [(line["top"], str(line["text"])) for line in page.filter(outside).extract_text_lines()]
        for table in tables:
            rows = "\n".join(filter(None, map(table_row, table.extract())))
            blocks.append((table.bbox[1], f"\n{rows}\n"))
        blocks.sort(key=lambda block: block[0])
        return clean("\n".join(text for _, text in blocks))
