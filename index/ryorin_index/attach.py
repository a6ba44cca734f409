"""
Uploaded files in stores: attaching and detaching them, and batches of them.

A file in a store is a document whose source is `file:<id>`; attaching it writes the document and puts a job into the
queue, in one transaction (`attach_job` does it). Whoever changes a store here takes its row first, so that two requests
for the same file follow each other.

What lies in an uploaded archive or e-mail is a document for each, of the same file, with 'file:<id>!/' and its name as
its source: they are searched, and come, change and go with the file's own document, which alone stands for the file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from ryorin.catalog import jobs
from ryorin.catalog.tables import Document, File, FileBatch, VectorStore
from ryorin.digests import new_id
from ryorin_index.chunking import Chunking
from ryorin_index.ingest import delete_documents
from ryorin_index.members import vanished_members
from ryorin_index.parse import CONTAINERS
from ryorin_index.store import next_generation

JOB_KIND = "index_file"


@dataclass(frozen=True)
class Attachment:
    """A file for a store. attributes, chunking: what searches filter by and how to cut it; None keeps what it has."""

    file: File
    attributes: dict[str, Any] | None = None
    chunking: Chunking | None = None


def take_store(session: Session, store: VectorStore) -> None:
    """Note that the store is in use, and hold its row until the transaction ends."""
    session.execute(
        update(VectorStore)
        .where(VectorStore.id == store.id)
        .values(last_active_at=time.time())
        .execution_options(synchronize_session="fetch")
    )


def stands_alone() -> ColumnElement[bool]:
    """The condition that a document is not one of those that lie in an uploaded file."""
    return or_(Document.file_id.is_(None), Document.source == "file:" + Document.file_id)


def documents_within(session: Session, store: VectorStore, document: Document) -> list[Document]:
    """The documents that lie in an uploaded file; none of what an operator added, whose members stand alone."""
    if document.file_id is None or PurePath(document.filename).suffix.lower() not in CONTAINERS:
        return []
    return vanished_members(session, store, document.source, ())


def attach(session: Session, store: VectorStore, given: Attachment, batch_id: str | None = None) -> Document:
    """
    Put a file into the store, to be indexed. One that is there, or on its way, and is to be cut as it was, stays.

    The caller holds the store's row (`take_store`).
    """
    file = given.file
    source = f"file:{file.id}"
    document = session.scalar(select(Document).where(Document.store_id == store.id, Document.source == source))
    if document is None:
        document = Document(
            id=new_id("doc_"),
            tenant_id=store.tenant_id,
            store_id=store.id,
            file_id=file.id,
            source=source,
            filename=file.filename,
            title=file.filename,
            media_type="",
            sha256="",
            text="",
            attributes=given.attributes or {},
            own_attributes={},
            status="cancelled",
        )
        session.add(document)
    elif given.attributes is not None:
        set_attributes(session, store, document, given.attributes)
    document.batch_id = batch_id or document.batch_id
    chunking = None if given.chunking is None else given.chunking.to_json()
    if document.status in ("failed", "cancelled") or (chunking is not None and chunking != document.chunking):
        document.status, document.error = "in_progress", None
        params = {"document_id": document.id, "chunking": chunking}
        jobs.cancel(session, store.tenant_id, [_key(document)])  # one that is at work on what was asked before
        jobs.enqueue(session, store.tenant_id, JOB_KIND, params, key=_key(document), again=True)
    session.flush()
    return document


def set_attributes(session: Session, store: VectorStore, document: Document, attributes: dict[str, Any]) -> None:
    """Give a document and what lies in it other attributes, over those they say of themselves."""
    for each in (document, *documents_within(session, store, document)):
        wanted = each.own_attributes | attributes
        if each.attributes != wanted:
            each.attributes = wanted
            each.generation, each.updated_at = next_generation(session, store), time.time()


def detach(session: Session, store: VectorStore, documents: Sequence[Document]) -> None:
    """Take documents out of the store, with what lies in them; what indexes them now ends."""
    jobs.cancel(session, store.tenant_id, [_key(document) for document in documents])
    every = [*documents, *(each for document in documents for each in documents_within(session, store, document))]
    delete_documents(session, store, list(dict.fromkeys(every)))


def attach_batch(session: Session, store: VectorStore, given: Sequence[Attachment], batch_id: str) -> FileBatch:
    """Attach files in one go."""
    batch = FileBatch(id=batch_id, tenant_id=store.tenant_id, store_id=store.id)
    session.add(batch)
    session.flush()
    for each in given:
        attach(session, store, each, batch.id)
    return batch


def cancel_batch(session: Session, batch: FileBatch) -> None:
    """Cancel what of the batch is not indexed yet."""
    waiting = session.scalars(
        select(Document).where(
            Document.tenant_id == batch.tenant_id, Document.batch_id == batch.id, Document.status == "in_progress"
        )
    ).all()
    jobs.cancel(session, batch.tenant_id, [_key(document) for document in waiting])
    for document in waiting:
        document.status = "cancelled"
    if batch.cancelled_at is None:
        batch.cancelled_at = time.time()


def _key(document: Document) -> str:
    return f"{JOB_KIND}:{document.id}"
