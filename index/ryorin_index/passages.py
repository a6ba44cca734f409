"""
Cutting a document's text into passages.

LlamaIndex's MarkdownNodeParser gives the sections of a text with headings, its SentenceSplitter cuts those that are too
long. Passages carry the character offsets of their text in the document's text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ryorin.digests import sha256_bytes
from ryorin_index.parse import HEADING, MAX_TITLE_CHARACTERS, ParsedDocument, Section, one_line

MAX_PASSAGE_UNITS = 240  # about 300 tokens of an E5 tokenizer, whose limit is 512
_UNIT = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|\w{1,16}?(?=[぀-ヿ㐀-鿿]|\b)|\w{16}|[^\w\s]")


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
        return embedded_text(document_title, self.heading, self.text)

    def sha256(self, document_title: str) -> str:
        """Digest of the embedded text: the same digest, the same vector."""
        return sha256_bytes(self.embedded_text(document_title).encode())


def embedded_text(document_title: str, heading: str, text: str) -> str:
    """What is embedded of a passage."""
    return f"{passage_title(document_title, heading)}\n{text}"


def passage_title(document_title: str, heading: str) -> str:
    """'Returns > Unopened goods', or the document's title alone."""
    return f"{document_title} > {heading}" if heading else document_title


def split_document(document: ParsedDocument) -> list[PassageDraft]:
    """
    The passages of a document, in order: one a section or page, several where it is too long for one.

    A document that has headings and nothing below them is cut as plain text: what it says is in its headings.
    """
    whole = (Section(0, len(document.text)),)
    sections = document.sections
    if not sections:
        sections = whole if document.media_type == "text/plain" else tuple(_sections(document))
    return _drafts(document, sections) or _drafts(document, whole)


def _drafts(document: ParsedDocument, sections: Sequence[Section]) -> list[PassageDraft]:
    return [
        PassageDraft(document.text[start:end], section.heading, start, end, section.page)
        for section in sections
        for start, end in _pieces(document.text, section.start, section.end)
    ]


def _sections(document: ParsedDocument) -> list[Section]:
    """Sections, their heading lines left out, found by LlamaIndex's Markdown parser."""
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
        if match := HEADING.fullmatch(first):
            path.append(match[2])
            if len(match[2]) <= MAX_TITLE_CHARACTERS:  # a longer one is text that was marked up as a heading: kept
                start += len(first)
        path = [one_line(part) for part in path]
        if path and path[0] == document.title:
            path = path[1:]
        found.append(Section(start, cursor, " > ".join(path)))
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
