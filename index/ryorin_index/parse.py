"""
Reading a document: bytes of any supported format become one text.

Every format becomes text in Markdown form (headings as '#' lines), so there is one way to cut it
(`ryorin_index.passages`). PDFs come page by page from LlamaIndex's PDFReader.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ryorin.digests import sha256_bytes
from ryorin.errors import InvalidInput

MEDIA_TYPES = {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".txt": "text/plain",
    ".html": "text/html",
    ".htm": "text/html",
    ".pdf": "application/pdf",
}
MAX_TITLE_CHARACTERS = 200  # titles and headings stand before every passage they name, in the index and in the prompt
HEADING = re.compile(r"(#{1,6})\s+(.*)")
_NOT_CONTENT = re.compile("script|style|nav|footer|aside|form|noscript|template|iframe|rt|rp")  # rt: furigana
_BLOCKS = re.compile(
    "address|article|blockquote|caption|dd|details|div|dl|dt|fieldset|figcaption|figure|header|hr|li|main|ol|p|"
    "section|summary|table|tbody|thead|tr|ul"
)
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_NOT_TEXT = str.maketrans({**_CONTROLS, 0x0B: "\n", 0x0C: "\n", 0x85: "\n"})  # vertical tab, form feed, next line
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Section:
    """
    A part of a document that passages do not cross: offsets in its text, the heading path, the page.

    heading: the path below the document's title, ' > ' between its parts; empty at the top.
    """

    start: int
    end: int
    heading: str = ""
    page: int | None = None


@dataclass(frozen=True)
class ParsedDocument:
    """
    A document's text.

    sections: its parts in order, as the format knows them (pages, slides, rows of a table); empty for formats whose
    headings stand in the text as Markdown, and for plain text.
    """

    text: str
    title: str
    media_type: str
    sections: tuple[Section, ...] = ()


def parse_document(path: Path, data: bytes) -> ParsedDocument:
    """
    Read a file's bytes; `path` gives the format and the title of last resort.

    Raises InvalidInput: code 'unsupported_file' for an unknown format, 'invalid_file' for one that cannot be read
    (empty, encrypted, damaged, no text in it).
    """
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise InvalidInput(
            f"{path.name}: the format {path.suffix or '(no suffix)'!r} is not supported; supported are "
            + ", ".join(MEDIA_TYPES),
            code="unsupported_file",
        )
    if not data:
        raise _invalid(path, "is empty")
    sections: tuple[Section, ...] = ()
    if media_type == "application/pdf":
        text, sections, title = _read_pdf(path, data)
    elif media_type == "text/html":
        text, title = _read_html(path, data)
    else:
        text, title = _clean(_decode(path, data)), None
        if media_type == "text/markdown":
            title = next((match[2].strip() for match in map(HEADING.fullmatch, text.split("\n")) if match), None)
    if not text.strip():
        raise _invalid(path, "has no text in it; a scanned document needs text recognition (OCR) first")
    return ParsedDocument(text, one_line(_clean(title or "")) or one_line(path.stem), media_type, sections)


def _decode(path: Path, data: bytes) -> str:
    if b"\0" in data[:4096] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _invalid(path, "is not text, though its name says so")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        best = from_bytes(data).best()
        if best is None:
            raise _invalid(path, "has an unknown character encoding; save it as UTF-8") from None
        return str(best)


def _clean(text: str) -> str:
    """
    Text as it is kept: one kind of line end, no control characters (PostgreSQL takes no NUL, a terminal obeys the
    others), no halves of characters. Headings have one space, as LlamaIndex's parser writes them: so offsets hold.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_NOT_TEXT)
    return re.sub(r"^(#+)[^\S\n]+", r"\1 ", _SURROGATE.sub("\ufffd", text), flags=re.MULTILINE)


def one_line(text: str) -> str:
    """A title or heading as it names passages: one line, shortened where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_TITLE_CHARACTERS else line[: MAX_TITLE_CHARACTERS - 1] + "…"


def _read_html(path: Path, data: bytes) -> tuple[str, str | None]:
    """An HTML page's content in Markdown form and its title: navigation, scripts and forms are left out."""
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    try:
        with warnings.catch_warnings(action="ignore"):  # XHTML, a page of one word: read all the same
            soup = BeautifulSoup(data, "html.parser")
    except ParserRejectedMarkup as error:
        raise _invalid(path, "cannot be read as HTML; open it in a browser and save it anew") from error
    named = soup.find("h1") or soup.find("title")
    root = soup.find("main") or soup.find("article") or soup.find("body") or soup
    lines = (line.strip().removesuffix("|").rstrip() for line in _markdown(root).split("\n"))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return _clean(text), named.get_text(" ", strip=True) if named else None


def _markdown(root: Any) -> str:
    """The text below an element in Markdown form. One walk with a stack of its own: pages nest as deep as they like."""
    from bs4.element import CData, NavigableString, Tag

    parts: list[str] = []
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if type(node) is str:  # what ends an element
            parts.append(node)
        elif isinstance(node, NavigableString):
            if type(node) in (NavigableString, CData):  # not a comment, a doctype, a script
                parts.append(re.sub(r"\s+", " ", node))
        elif isinstance(node, Tag) and _NOT_CONTENT.fullmatch(node.name) is None:
            if re.fullmatch("h[1-6]", node.name):
                parts.append(f"\n\n{'#' * int(node.name[1])} {' '.join(node.get_text(' ').split())}\n\n")
            elif node.name == "pre":
                parts.append(f"\n\n```\n{node.get_text().strip(chr(10))}\n```\n\n")
            elif node.name == "br":
                parts.append("\n")
            else:
                line_end = "\n\n" if _BLOCKS.fullmatch(node.name) else ""
                if node.name in ("li", "tr", "dd", "dt"):
                    line_end = "\n"
                parts.append(line_end + "- " if node.name == "li" else line_end)
                stack.append(" | " if node.name in ("td", "th") else line_end)
                stack.extend(reversed(node.contents))
    return "".join(parts)


def _read_pdf(path: Path, data: bytes) -> tuple[str, tuple[Section, ...], str | None]:
    """A PDF's text, its pages and its title."""
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every damage it can repair, some hundred times
    try:
        pdf = pypdf.PdfReader(io.BytesIO(data))
        if pdf.is_encrypted and not pdf.decrypt(""):  # many are protected against changes only: no password to read
            raise _invalid(path, "is encrypted; save a copy without a password")
        title = pdf.metadata.title if pdf.metadata else None
        title = title if isinstance(title, str) else None
        pages = [_clean(text) for text in _pdf_pages(path, data)]
    except InvalidInput:
        raise
    except Exception as error:  # damaged files bring pypdf to raise almost anything
        raise _invalid(path, f"cannot be read as a PDF ({error}); open it in a viewer and save it anew") from error
    sections = []
    text = ""
    for number, page in enumerate(pages, start=1):
        start = len(text)
        text += page.strip() + "\n\n"
        sections.append(Section(start, len(text), page=number))
    if not text.strip():
        raise _invalid(path, "is a PDF without text; a scanned document needs text recognition (OCR) first")
    return text, tuple(sections), title


def _pdf_pages(path: Path, data: bytes) -> list[str]:
    from fsspec.implementations.memory import MemoryFileSystem
    from llama_index.readers.file import PDFReader
    from tenacity import RetryError

    files = MemoryFileSystem()  # the bytes that were hashed, not the file as it may be by now
    name = f"/{sha256_bytes(data)}.pdf"
    files.pipe_file(name, data)
    try:
        return [page.text for page in PDFReader().load_data(Path(name), fs=files)]
    except RetryError as error:
        raise ValueError(str(error.last_attempt.exception())) from error
    finally:
        files.rm_file(name)


def _invalid(path: Path, reason: str) -> InvalidInput:
    return InvalidInput(f"{path.name} {reason}", code="invalid_file")
