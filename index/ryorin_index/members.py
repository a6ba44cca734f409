"""
Files within files: the members of an archive and the attachments of an e-mail are documents of their own.

Their source is the file's with '!/' and their name in it, so those that vanished from it are found and removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sqlalchemy import select

from ryorin.catalog.tables import Document, VectorStore
from ryorin_index.parse import expand

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ryorin_index.ingest import Incoming

WITHIN = "!/"


@dataclass(frozen=True)
class Opened:
    """
    What a file brings. documents: each to be put; an archive is none itself, an e-mail is the first of its own.

    refused: (source, reason) of members that cannot be read. skipped: sources of members in other formats.
    """

    documents: tuple[Incoming, ...]
    refused: tuple[tuple[str, str], ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def sources(self) -> set[str]:
        """What the file holds now, readable or not."""
        return {document.source for document in self.documents} | {source for source, _ in self.refused}


def open_incoming(incoming: Incoming) -> Opened:
    """
    The documents of a file: itself, or what lies in it.

    Raises InvalidInput, code 'invalid_file', for an archive that cannot be opened or holds too much.
    """
    path = Path(incoming.filename)
    found = expand(path, incoming.data)
    documents = [] if path.suffix.lower() == ".zip" else [incoming]
    for name, data in found.members:
        filename = PurePosixPath(name).name
        documents.append(replace(incoming, source=f"{incoming.source}{WITHIN}{name}", filename=filename, data=data))
    return Opened(
        tuple(documents),
        tuple((f"{incoming.source}{WITHIN}{name}", f"{name} {reason}") for name, reason in found.refused),
        tuple(f"{incoming.source}{WITHIN}{name}" for name in found.skipped),
    )


def vanished_members(session: Session, store: VectorStore, source: str, present: Iterable[str]) -> list[Document]:
    """The documents that the store has as members of `source` and that are no longer in it."""
    there = set(present)
    members = session.scalars(
        select(Document).where(
            Document.store_id == store.id, Document.source.startswith(source + WITHIN, autoescape=True)
        )
    )
    return [document for document in members if document.source not in there]
