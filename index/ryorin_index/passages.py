"""
Cutting a document's text into passages.

LlamaIndex's MarkdownNodeParser gives the sections of a text with headings; `ryorin_index.packing` cuts those that are
too long. Passages carry the character offsets of their text in the document's text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

from ryorin.digests import sha256_bytes
from ryorin_index.chunking import Chunking, default_chunking
from ryorin_index.counting import E5_LIMIT, EstimatedTokens, TokenCounter
from ryorin_index.folds import fold_key
from ryorin_index.language import document_language, passage_language
from ryorin_index.packing import Piece, pack, strip_span
from ryorin_index.parse import HEADING, MAX_TITLE_CHARACTERS, ParsedDocument, Section, one_line

COUNTED_AT_ONCE = 64
LIKELY_CHARACTERS = 5  # of a token: a longer section will hardly be a passage as it is


@dataclass(frozen=True)
class PassageDraft:
    """
    A passage before it has a vector.

    heading: the path below the document's title, ' > ' between its parts. tokens: of the text, by the embedder's count.
    """

    text: str
    heading: str
    start: int
    end: int
    page: int | None
    tokens: int = 0
    language: str = ""

    @property
    def fold_key(self) -> str:
        """The same for passages that say the same. Made when it is asked for, which is not for those that stay."""
        return fold_key(self.heading, self.text)

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


def split_document(
    document: ParsedDocument, chunking: Chunking | None = None, counter: TokenCounter | None = None
) -> list[PassageDraft]:
    """
    The passages of a document, in order: one a section or page, several where it is too long for one.

    chunking: their sizes; the default for `counter`. counter: counts the embedder's tokens; E5's estimated ones unless
    given. A document that has headings and nothing below them is cut as plain text: what it says is in its headings.
    """
    counter = counter or EstimatedTokens(E5_LIMIT)
    chunking = chunking or default_chunking(counter.limit)
    whole = (Section(0, len(document.text)),)
    sections = document.sections
    if not sections:
        sections = whole if document.media_type == "text/plain" else tuple(_sections(document))
    language = document_language(document.text)
    for chosen in (sections, whole):
        drafts = [
            PassageDraft(
                text=(text := document.text[piece.start : piece.end]),
                heading=section.heading,
                start=piece.start,
                end=piece.end,
                page=section.page,
                tokens=piece.tokens,
                language=passage_language(text, language),
            )
            for section, piece in _pieces(document.text, chosen, chunking, counter)
        ]
        if drafts:
            return drafts
    return []


def _sections(document: ParsedDocument) -> list[Section]:
    """Sections, their heading lines left out, found by LlamaIndex's Markdown parser."""
    with _IMPORTING:
        parser, source, bare = _markdown_parser()
    found = []
    cursor = 0
    for node in parser.get_nodes_from_documents([source(text=document.text)]):
        content = node.get_content(metadata_mode=bare)
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


# Documents are prepared by several threads, and LlamaIndex's modules import one another in circles: two threads that
# import different ones of them first can find them half made.
_IMPORTING = Lock()


@cache
def _markdown_parser() -> tuple[Any, Any, Any]:
    """
    LlamaIndex's parser, the class of what it reads, and how its nodes give nothing but their text: made once, since
    pydantic takes 10 ms for a class.
    """
    from llama_index.core.node_parser import MarkdownNodeParser
    from llama_index.core.schema import Document, MetadataMode

    class Source(Document):
        """Every node notes the hash of what it came from: computed anew each time, of the whole text."""

        @property
        def hash(self) -> str:
            return ""

    parser = MarkdownNodeParser.from_defaults(header_path_separator="\x1f", include_prev_next_rel=False)
    return parser, Source, MetadataMode.NONE


def _pieces(
    text: str, sections: Sequence[Section], chunking: Chunking, counter: TokenCounter
) -> Iterator[tuple[Section, Piece]]:
    """
    Every section's pieces: itself, stripped of white space, where it is short enough; none for an empty one.

    What is likely too long is not counted first: packing does it, with the places of the tokens.
    """
    for at in range(0, len(sections), COUNTED_AT_ONCE):
        batch = sections[at : at + COUNTED_AT_ONCE]
        spans = [strip_span(text, section.start, section.end) for section in batch]
        short = [span for span in spans if span[1] - span[0] <= LIKELY_CHARACTERS * chunking.max_tokens]
        counted = dict(zip(short, counter.counts([text[start:end] for start, end in short]), strict=True))
        for section, (start, end) in zip(batch, spans, strict=True):
            tokens = counted.get((start, end))
            if start == end:
                continue
            if tokens is not None and tokens <= chunking.max_tokens:
                yield section, Piece(start, end, tokens)
            else:
                yield from ((section, piece) for piece in pack(text, start, end, chunking, counter))
