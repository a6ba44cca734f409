"""
Reading a document and cutting it into passages.

Every format becomes one text in Markdown form (headings as '#' lines), so there is one way to cut: LlamaIndex's
MarkdownNodeParser gives the sections, its SentenceSplitter cuts those that are too long. PDFs come page by page from
LlamaIndex's PDFReader. Passages carry the character offsets of their text in the document's text.
"""

from __future__ import annotations

import bisect
import io
import logging
import re
import warnings
from collections.abc import Sequence
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
MAX_PASSAGE_UNITS = 240  # about 300 tokens of an E5 tokenizer, whose limit is 512
MAX_TITLE_CHARACTERS = 200  # titles and headings stand before every passage they name, in the index and in the prompt
_UNIT = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|\w{1,16}?(?=[぀-ヿ㐀-鿿]|\b)|\w{16}|[^\w\s]")
_HEADING = re.compile(r"(#{1,6})\s+(.*)")
_NOT_CONTENT = re.compile("script|style|nav|footer|aside|form|noscript|template|iframe|rt|rp")  # rt: furigana
_BLOCKS = re.compile(
    "address|article|blockquote|caption|dd|details|div|dl|dt|fieldset|figcaption|figure|header|hr|li|main|ol|p|"
    "section|summary|table|tbody|thead|tr|ul"
)
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_NOT_TEXT = str.maketrans({**_CONTROLS, 0x0B: "\n", 0x0C: "\n", 0x85: "\n"})  # vertical tab, form feed, next line
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ParsedDocument:
    """
    A document's text.

    page_starts: the offset in `text` where each page begins; empty for formats without pages.
    """

    text: str
    title: str
    media_type: str
    page_starts: tuple[int, ...] = ()

    def page_at(self, offset: int) -> int | None:
        """The page that an offset lies on, from 1."""
        return bisect.bisect_right(self.page_starts, offset) if self.page_starts else None


@dataclass(frozen=True)
class PassageDraft:
    """A passage before it has a vector. heading: the path below the document's title, ' > ' between its parts."""

    text: str
    heading: str
    start: int
    end: int
    page: int | None

    def title(self, document_title: str) -> str:
        """The line that names the passage in a prompt."""
        return passage_title(document_title, self.heading)

    def embedded_text(self, document_title: str) -> str:
        """What is embedded: the title says what a short section is about."""
        return f"{self.title(document_title)}\n{self.text}"

    def sha256(self, document_title: str) -> str:
        """Digest of the embedded text: the same digest, the same vector."""
        return sha256_bytes(self.embedded_text(document_title).encode())


def passage_title(document_title: str, heading: str) -> str:
    """'Returns > Unopened goods', or the document's title alone."""
    return f"{document_title} > {heading}" if heading else document_title


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
    starts: tuple[int, ...] = ()
    if media_type == "application/pdf":
        text, starts, title = _read_pdf(path, data)
    elif media_type == "text/html":
        text, title = _read_html(path, data)
    else:
        text, title = _clean(_decode(path, data)), None
        if media_type == "text/markdown":
            title = next((match[2].strip() for match in map(_HEADING.fullmatch, text.split("\n")) if match), None)
    if not text.strip():
        raise _invalid(path, "has no text in it; a scanned document needs text recognition (OCR) first")
    return ParsedDocument(text, _one_line(_clean(title or "")) or _one_line(path.stem), media_type, starts)


def split_document(document: ParsedDocument) -> list[PassageDraft]:
    """
    The passages of a document, in order: one a section or page, several where it is too long for one.

    A document that has headings and nothing below them is cut as plain text: what it says is in its headings.
    """
    if document.page_starts:
        ends = (*document.page_starts[1:], len(document.text))
        sections = [(start, end, "") for start, end in zip(document.page_starts, ends, strict=True)]
    elif document.media_type == "text/plain":
        sections = [(0, len(document.text), "")]
    else:
        sections = _sections(document)
    return _drafts(document, sections) or _drafts(document, [(0, len(document.text), "")])


def _drafts(document: ParsedDocument, sections: Sequence[tuple[int, int, str]]) -> list[PassageDraft]:
    return [
        PassageDraft(document.text[start:end], heading, start, end, document.page_at(start))
        for section_start, section_end, heading in sections
        for start, end in _pieces(document.text, section_start, section_end)
    ]


def _sections(document: ParsedDocument) -> list[tuple[int, int, str]]:
    """Sections as (start, end, heading path), their heading lines left out, found by LlamaIndex's Markdown parser."""
    from llama_index.core.node_parser import MarkdownNodeParser
    from llama_index.core.schema import Document, MetadataMode

    class Source(Document):
        """Every node notes the hash of what it came from: computed anew each time, of the whole text."""

        @property
        def hash(self) -> str:
            return ""

    parser = MarkdownNodeParser.from_defaults(header_path_separator="\x1f", include_prev_next_rel=False)
    found = []
    cursor = 0
    for node in parser.get_nodes_from_documents([Source(text=document.text)]):
        content = node.get_content(metadata_mode=MetadataMode.NONE)
        start = document.text.index(content, cursor)
        cursor = start + len(content)
        path = [part for part in str(node.metadata["header_path"]).split("\x1f") if part]
        first, _, _ = content.partition("\n")
        if match := _HEADING.fullmatch(first):
            path.append(match[2])
            if len(match[2]) <= MAX_TITLE_CHARACTERS:  # a longer one is text that was marked up as a heading: kept
                start += len(first)
        path = [_one_line(part) for part in path]
        if path and path[0] == document.title:
            path = path[1:]
        found.append((start, cursor, " > ".join(path)))
    return found


def _pieces(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """A section as offsets of pieces that are small enough, stripped of white space; none for an empty section."""
    section = text[start:end]
    if not section.strip():
        return []
    if len(_units(section)) <= MAX_PASSAGE_UNITS:
        return [(start + len(section) - len(section.lstrip()), start + len(section.rstrip()))]
    from llama_index.core.node_parser import SentenceSplitter

    # No overlap: a piece begins where the one before it ended, white space aside, so its offset is certain.
    splitter = SentenceSplitter(
        chunk_size=MAX_PASSAGE_UNITS, chunk_overlap=0, tokenizer=_units, paragraph_separator="\n\n"
    )
    found = []
    cursor = 0
    for piece in splitter.split_text(section):
        at = section.index(piece, cursor)
        cursor = at + len(piece)
        found.append((start + at, start + cursor))
    return found


def _units(text: str) -> list[str]:
    """
    Words, Japanese characters and marks: within a third of an E5 tokenizer's count, and without loading one.

    A run of letters without end (base64, Thai, a minified script) counts as one unit for every 16 of them.
    """
    return _UNIT.findall(text)


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


def _one_line(text: str) -> str:
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


def _read_pdf(path: Path, data: bytes) -> tuple[str, tuple[int, ...], str | None]:
    """A PDF's text, the offsets of its pages and its title."""
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
    starts = []
    text = ""
    for page in pages:
        starts.append(len(text))
        text += page.strip() + "\n\n"
    if not text.strip():
        raise _invalid(path, "is a PDF without text; a scanned document needs text recognition (OCR) first")
    return text, tuple(starts), title


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
