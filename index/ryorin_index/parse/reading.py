"""Which reader reads which format. Runs in the child; its server imports the readers beforehand, format by format."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ryorin_index.parse.document import (
    MAX_TEXT_CHARACTERS,
    MEDIA_TYPES,
    ParsedDocument,
    clean,
    invalid,
    one_line,
    too_long,
)

READERS = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "plain",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".pptx": "pptx",
    ".xlsx": "xlsx",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".eml": "mail",
}


def prepare(name: str) -> None:
    """Import what a file of this name needs."""
    importlib.import_module(f"ryorin_index.parse.{READERS[Path(name).suffix.lower()]}").prepare()


def read(name: str, data: bytes) -> Iterator[dict[str, Any]]:
    """The document as JSON can carry it."""
    document = read_document(Path(name), data)
    yield {
        "text": document.text,
        "title": document.title,
        "media_type": document.media_type,
        "sections": [(part.start, part.end, part.heading, part.page) for part in document.sections],
        "attributes": document.attributes,
    }


def read_document(path: Path, data: bytes) -> ParsedDocument:
    """Read a file's bytes in this process. Raises InvalidInput, and whatever a damaged file makes a library raise."""
    suffix = path.suffix.lower()
    reader = importlib.import_module(f"ryorin_index.parse.{READERS[suffix]}")
    document: ParsedDocument = reader.read(path, data)
    if not document.text.strip():
        raise invalid(path, "has no text in it; a scanned document needs text recognition (OCR) first")
    if len(document.text) > MAX_TEXT_CHARACTERS:
        raise too_long(path)
    title = one_line(clean(document.title)) or one_line(clean(path.stem))
    return ParsedDocument(document.text, title, MEDIA_TYPES[suffix], document.sections, document.attributes)
