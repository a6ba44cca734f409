"""Markdown. Front matter (YAML between '---' lines) gives the title and attributes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ryorin_index.parse import encoding
from ryorin_index.parse.document import HEADING, ParsedDocument, as_attributes, clean

_FRONT_MATTER = re.compile(r"---[^\S\n]*\n(.{0,20000}?)^(?:---|\.\.\.)[^\S\n]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


def prepare() -> None:
    """Import what the reader needs."""
    import yaml  # type: ignore[import-untyped]  # noqa: F401

    encoding.prepare()


def read(path: Path, data: bytes) -> ParsedDocument:
    """The text without its front matter; the title is what that says, else the first heading."""
    text = clean(encoding.decode(path, data))
    known: dict[str, Any] = {}
    if match := _FRONT_MATTER.match(text):
        found = _mapping(match[1])
        if found is not None:
            known, text = found, text[match.end() :].lstrip("\n")
    title = known.pop("title", None)
    heading = next((match[2].strip() for match in map(HEADING.fullmatch, text.split("\n")) if match), None)
    if not text.strip() and isinstance(title, str):
        text = title
    chosen = title if isinstance(title, str | int | float) else heading
    return ParsedDocument(text, str(chosen or ""), "text/markdown", (), as_attributes(known))


def _mapping(front: str) -> dict[str, Any] | None:
    """Front matter as YAML; None when it is a text between two rules."""
    import yaml

    try:
        found = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
