"""Plain text."""

from __future__ import annotations

from pathlib import Path

from ryorin_index.parse.document import ParsedDocument, clean
from ryorin_index.parse.encoding import decode
from ryorin_index.parse.encoding import prepare as prepare


def read(path: Path, data: bytes) -> ParsedDocument:
    """A text as it is; its name is its title."""
    return ParsedDocument(clean(decode(path, data)), "", "text/plain")
