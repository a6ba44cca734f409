"""What Word, PowerPoint and Excel files have in common: ZIP archives of XML parts, with properties."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from ryorin_index.parse.document import invalid

MAX_PARTS = 20_000
MAX_PART_BYTES = 512 << 20
MAX_RATIO = 300  # XML packs well: a sheet of equal rows about 1 : 100
RATIO_FREE_BYTES = 64 << 20
_OLD = b"\xd0\xcf\x11\xe0"  # OLE2: the formats before 2007, and files with a password


def check_package(path: Path, data: bytes) -> None:
    """Refuse what is no package, is locked, or unpacks to more than a document can be."""
    if data.startswith(_OLD):
        raise invalid(path, "is encrypted or in a format older than its name says; save a copy without a password")
    try:
        parts = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise unreadable(path, error) from error
    if len(parts) > MAX_PARTS:
        raise invalid(path, f"holds {len(parts):,} parts, the limit is {MAX_PARTS:,}; save it anew")
    unpacked = sum(part.file_size for part in parts)
    if unpacked > MAX_PART_BYTES or unpacked > max(RATIO_FREE_BYTES, MAX_RATIO * len(data)):
        raise invalid(path, f"unpacks from {len(data):,} to {unpacked:,} bytes, more than a document can be")


def unreadable(path: Path, error: Exception) -> Exception:
    """The error of a damaged file."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return invalid(path, f"cannot be read ({reason}); open it in its program and save it anew")


def properties(package: Any) -> tuple[str, dict[str, Any]]:
    """(title, attributes) of python-docx's and python-pptx's core properties; nothing where they are damaged."""
    try:
        known = package.core_properties
        return known.title or "", {"author": known.author, "created": known.created, "modified": known.modified}
    except Exception:  # a date that is none: the text is there without it
        return "", {}
