"""PowerPoint: a section a slide, with its title, its text, its tables and its notes. The page is the slide's number."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ryorin_index.parse.document import ParsedDocument, Writer, as_attributes, heading_path, table_row
from ryorin_index.parse.office import check_package, properties, unreadable

MAX_GROUPS = 20  # shapes within groups within groups


def prepare() -> None:
    """Import what the reader needs."""
    import pptx  # noqa: F401


def read(path: Path, data: bytes) -> ParsedDocument:
    """A presentation's text, slide by slide."""
    import pptx

    check_package(path, data)
    writer = Writer(path)
    try:
        presentation = pptx.Presentation(io.BytesIO(data))
        for number, slide in enumerate(presentation.slides, start=1):
            shape = slide.shapes.title
            title = " ".join(shape.text_frame.text.split()) if shape is not None else ""
            own = shape.shape_id if shape is not None else None
            parts = [title, *_texts(slide.shapes, own)]
            if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
                parts.append(slide.notes_slide.notes_text_frame.text.strip())
            text = "\n\n".join(filter(None, parts))
            if text:
                writer.add(text, heading_path([title]), number)
        named, attributes = properties(presentation)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # damaged packages bring python-pptx to raise almost anything
        if getattr(error, "code", None) == "invalid_file":
            raise
        raise unreadable(path, error) from error
    title = named if named != "PowerPoint Presentation" else ""  # what a new one is called
    title = title or next((part.heading for part in writer.sections if part.heading), "")
    return ParsedDocument(writer.text(), title, "", tuple(writer.sections), as_attributes(attributes))


def _texts(shapes: Any, title_id: int | None, depth: int = 0) -> Iterator[str]:
    for shape in shapes:
        if shape.shape_id == title_id:
            continue
        if hasattr(shape, "shapes"):
            if depth < MAX_GROUPS:
                yield from _texts(shape.shapes, None, depth + 1)
        elif shape.has_text_frame:
            yield "\n".join(
                "  " * paragraph.level + ("- " if paragraph.level else "") + paragraph.text.replace("\v", "\n")
                for paragraph in shape.text_frame.paragraphs
                if paragraph.text.strip()
            )
        elif getattr(shape, "has_table", False) and shape.has_table:
            rows = (table_row(cell.text for cell in row.cells) for row in shape.table.rows)
            yield "\n".join(filter(None, rows))
