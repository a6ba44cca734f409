"""Word: headings, paragraphs, lists and tables in document order; headers and footers are left out."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ryorin_index.parse.document import HEADING, ParsedDocument, as_attributes, clean, table_row
from ryorin_index.parse.office import check_package, properties, unreadable

_HEADING_STYLE = re.compile(r"(?:heading|見出し)\s*([1-9])", re.IGNORECASE)
_LIST_STYLE = re.compile(r"list|箇条書き|リスト", re.IGNORECASE)
MAX_NESTED_TABLES = 5


def prepare() -> None:
    """Import what the reader needs."""
    import docx  # noqa: F401


def read(path: Path, data: bytes) -> ParsedDocument:
    """A document's text in Markdown form."""
    import docx

    check_package(path, data)
    try:
        document = docx.Document(io.BytesIO(data))
        styles = _styles(document)
        text = clean("\n\n".join(_join_lists(_blocks(document.element.body, styles)))).strip()
        title, attributes = properties(document)
    except MemoryError:
        raise
    except Exception as error:  # damaged packages bring python-docx to raise almost anything
        raise unreadable(path, error) from error
    heading = next((match[2] for match in map(HEADING.fullmatch, text.split("\n")) if match), "")
    return ParsedDocument(text, title or heading, "", (), as_attributes(attributes))


def _styles(document: Any) -> dict[str, str]:
    """Style names by id: ids are translated, and 'Heading 1' is named so in every language."""
    found = {}
    for style in document.styles.element.style_lst:
        name = style.name_val
        found[style.styleId] = name or ""
    return found


def _blocks(body: Any, styles: dict[str, str], depth: int = 0) -> Iterator[str]:
    """Paragraphs and tables below an element, content controls and inserted text opened."""
    from docx.oxml.ns import qn

    for child in body:
        if child.tag == qn("w:p"):
            if text := _paragraph(child, styles):
                yield text
        elif child.tag == qn("w:tbl"):
            if rows := "\n".join(filter(None, _rows(child, styles, depth))):
                yield rows
        elif child.tag in (qn("w:sdt"), qn("w:ins"), qn("w:smartTag"), qn("w:customXml"), qn("w:sdtContent")):
            yield from _blocks(child, styles, depth)


def _rows(table: Any, styles: dict[str, str], depth: int) -> Iterator[str]:
    from docx.oxml.ns import qn

    for row in table.iter(qn("w:tr")):
        if next(row.iterancestors(qn("w:tbl"))) is not table:
            continue
        cells = []
        for cell in row.iterchildren(qn("w:tc"), qn("w:sdt")):
            merged = cell.find(f"{qn('w:tcPr')}/{qn('w:vMerge')}")
            if merged is not None and merged.get(qn("w:val")) != "restart":  # goes on from the row above
                cells.append("")
            elif depth < MAX_NESTED_TABLES:
                cells.append(" ".join(text.lstrip("#- ") for text in _blocks(cell, styles, depth + 1)))
            else:
                cells.append("".join(node.text or "" for node in cell.iter(qn("w:t"))))
        yield table_row(cells)


def _paragraph(paragraph: Any, styles: dict[str, str]) -> str:
    from docx.oxml.ns import qn

    text = _text(paragraph).strip()
    if not text:
        return ""
    place = paragraph.find(qn("w:pPr"))
    style = level = None
    listed = False
    if place is not None:
        named = place.find(qn("w:pStyle"))
        style = styles.get(named.get(qn("w:val")), "") if named is not None else None
        outline = place.find(qn("w:outlineLvl"))
        listed = place.find(qn("w:numPr")) is not None
        if outline is not None and str(outline.get(qn("w:val"))).isdigit():
            level = int(outline.get(qn("w:val"))) + 1
    if style and (match := _HEADING_STYLE.match(style)):
        level = int(match[1])
    elif style and style.lower() == "title":
        level = 1
    if level is not None and level <= 9:
        return f"{'#' * min(level, 6)} {' '.join(text.split())}"
    if listed or (style and _LIST_STYLE.match(style)):
        return f"- {text}"
    return re.sub(r"^#", r"\\#", text, flags=re.MULTILINE)  # a text that begins like a heading is none


def _text(paragraph: Any) -> str:
    """Runs in order, links and insertions too; deletions, furigana and the second copy of drawn text left out."""
    from docx.oxml.ns import qn

    words = {qn("w:tab"): "\t", qn("w:br"): "\n", qn("w:cr"): "\n", qn("w:noBreakHyphen"): "-"}
    left_out = {qn("w:del"), qn("w:rt"), qn("w:pPr"), qn("w:moveFrom"), qn("w:instrText")}
    left_out.add("{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback")
    parts: list[str] = []
    stack = list(reversed(paragraph))
    while stack:
        node = stack.pop()
        if node.tag == qn("w:t"):
            parts.append(node.text or "")
        elif node.tag in words:
            parts.append(words[node.tag])
        elif node.tag not in left_out:
            stack.extend(reversed(node))
    return "".join(parts)


def _join_lists(blocks: Iterator[str]) -> Iterator[str]:
    """Items that follow each other become one block."""
    items: list[str] = []
    for block in blocks:
        if block.startswith("- "):
            items.append(block)
            continue
        if items:
            yield "\n".join(items)
            items = []
        yield block
    if items:
        yield "\n".join(items)
