"""Files of a store and batches of them as the API shows and takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session
from starlette.requests import Request

from ryorin.catalog.tables import Document, FileBatch, VectorStore
from ryorin.errors import InvalidInput, NotFound
from ryorin_index.attach import stands_alone
from ryorin_index.chunking import MAX_TOKENS, MIN_TOKENS, Chunking
from ryorin_serve.requests import choice, fields_of, integer, path_id, shown_id

STATUSES = ("in_progress", "completed", "failed", "cancelled")


def read_chunking(body: Mapping[str, Any], where: str = "") -> Chunking | None:
    """How to cut: `chunking_strategy` of a body; None for 'auto' and when it is not given."""
    if body.get("chunking_strategy") is None:
        return None
    name = f"{where}chunking_strategy."
    given = fields_of(body["chunking_strategy"], ("type", "static"), name)
    kind = choice(given.get("type"), f"{name}type", ("auto", "static"))
    if kind == "auto":
        if given.get("static") is not None:
            raise InvalidInput(f"{name}static goes with the type 'static'.", param=f"{name}static")
        return None
    sizes = fields_of(given.get("static"), ("max_chunk_size_tokens", "chunk_overlap_tokens"), f"{name}static.")
    name += "static."
    longest = integer(sizes.get("max_chunk_size_tokens"), f"{name}max_chunk_size_tokens", MIN_TOKENS, MAX_TOKENS)
    return Chunking(longest, integer(sizes.get("chunk_overlap_tokens"), f"{name}chunk_overlap_tokens", 0, longest // 2))


def own_document(session: Session, store: VectorStore, request: Request) -> Document:
    """The store's file that the path names, by the file's id or, when no file was uploaded for it, its own."""
    document = session.scalar(select(Document).where(Document.store_id == store.id, named(path_id(request, "file_id"))))
    if document is None:
        raise NotFound(
            f"No file found with id '{shown_id(request, 'file_id')}' in vector store '{store.id}'.", param="file_id"
        )
    return document


def named(file_id: str) -> Any:
    """The condition that a document is shown under this id."""
    mine = or_(Document.file_id == file_id, and_(Document.id == file_id, Document.file_id.is_(None)))
    return and_(mine, stands_alone())


def own_batch(session: Session, store: VectorStore, request: Request) -> FileBatch:
    """The store's batch that the path names."""
    batch = session.scalar(
        select(FileBatch).where(FileBatch.store_id == store.id, FileBatch.id == path_id(request, "batch_id"))
    )
    if batch is None:
        raise NotFound(f"No file batch found with id '{shown_id(request, 'batch_id')}'.", param="batch_id")
    return batch


def document_object(document: Document) -> dict[str, Any]:
    """A file of a store as the API shows it."""
    sizes = document.chunking
    strategy: dict[str, Any] = {"type": "other"}  # it is not cut yet, and nobody said how
    if sizes is not None:
        static = {"max_chunk_size_tokens": sizes["max_tokens"], "chunk_overlap_tokens": sizes["overlap_tokens"]}
        strategy = {"type": "static", "static": static}
    return {
        "id": document.file_id or document.id,
        "object": "vector_store.file",
        "created_at": int(document.created_at),
        "vector_store_id": document.store_id,
        "usage_bytes": document.usage_bytes,
        "status": document.status,
        "last_error": document.error,
        "attributes": document.attributes,
        "chunking_strategy": strategy,
    }


def batch_object(session: Session, batch: FileBatch) -> dict[str, Any]:
    """A batch as the API shows it; a file that a later batch names again counts there."""
    counts = dict.fromkeys(STATUSES, 0)
    for status, count in session.execute(
        select(Document.status, func.count())
        .where(Document.tenant_id == batch.tenant_id, Document.batch_id == batch.id)
        .group_by(Document.status)
    ):
        counts[status] = count
    total = sum(counts.values())
    if counts["in_progress"]:
        status = "in_progress"
    elif batch.cancelled_at is not None:
        status = "cancelled"
    else:
        status = "failed" if total and counts["failed"] == total else "completed"
    return {
        "id": batch.id,
        "object": "vector_store.files_batch",
        "created_at": int(batch.created_at),
        "vector_store_id": batch.store_id,
        "status": status,
        "file_counts": {**counts, "total": total},
    }
