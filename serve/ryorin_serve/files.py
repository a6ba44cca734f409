"""Uploaded files in the catalog: keeping one, deleting one with all that was made of it, clearing expired ones away."""

from __future__ import annotations

import time
from collections import defaultdict

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from ryorin.blobs import BlobWriter, keeping
from ryorin.catalog import Catalog, audit
from ryorin.catalog.files import expired_files, get_file, remove_unneeded_blobs
from ryorin.catalog.tables import Document, File, VectorStore
from ryorin.digests import new_id
from ryorin.errors import NotFound
from ryorin_index.attach import detach, take_store
from ryorin_serve.context import IDEMPOTENCY_S
from ryorin_serve.requests import key_reused

ATTEMPTS = 5
STALE_UPLOAD_S = 86400


def keep_file(catalog: Catalog, writer: BlobWriter, file: File) -> File:
    """
    Write the file's row and give its blob its name; the row that is there when its id says it is the same request.

    Raises InvalidInput when that was a request for another file.
    """
    with keeping(catalog.settings.blobs_dir):
        file.sha256, file.bytes = writer.keep(), writer.length
        for _ in range(ATTEMPTS):
            try:
                with catalog.session() as session:
                    earlier = session.get(File, file.id)
                    if earlier is None:
                        session.add(file)
                        return file
                    if earlier.created_at > time.time() - IDEMPOTENCY_S:
                        return _same(earlier, file)
                    file.id = new_id("file-")
            except IntegrityError:  # the same request, at the same time
                file = File(**{name: getattr(file, name) for name in File.__table__.columns.keys()})  # noqa: SIM118
    raise AssertionError("not reached")


def delete_file(catalog: Catalog, tenant_id: str, file_id: str) -> None:
    """Delete the tenant's file and take it out of every store. Raises NotFound."""
    with catalog.session() as session:
        get_file(session, tenant_id, file_id)
    _delete(catalog, tenant_id, file_id)


def clear_away(catalog: Catalog) -> None:
    """Delete files that have expired, and what uploads left that were broken off by a crash a day ago."""
    with catalog.session() as session:
        expired = [(file.tenant_id, file.id) for file in expired_files(session)]
    for tenant_id, file_id in expired:
        with audit.acting("expires_after"):
            _delete(catalog, tenant_id, file_id)
    for path in catalog.settings.blobs_dir.glob("new.*"):
        try:
            if path.stat().st_mtime < time.time() - STALE_UPLOAD_S:
                path.unlink()
        except FileNotFoundError:
            continue


def _delete(catalog: Catalog, tenant_id: str, file_id: str) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with catalog.session() as session:
                by_store: dict[str, list[Document]] = defaultdict(list)
                for document in session.scalars(
                    select(Document).where(Document.tenant_id == tenant_id, Document.file_id == file_id)
                ):
                    by_store[document.store_id].append(document)
                for store_id, documents in sorted(by_store.items()):
                    store = session.get_one(VectorStore, store_id)
                    take_store(session, store)
                    detach(session, store, documents)
                file = session.get(File, file_id)
                if file is None or file.tenant_id != tenant_id:
                    raise NotFound(f"No such File object: {file_id}", param="file_id")
                session.delete(file)
                audit.note(session, tenant_id, "file.delete", file_id, filename=file.filename, stores=sorted(by_store))
                sha256 = file.sha256
            break
        except IntegrityError:  # it was attached to one more store meanwhile
            if attempt == ATTEMPTS:
                raise
    remove_unneeded_blobs(catalog, [sha256])


def _same(earlier: File, file: File) -> File:
    for name in ("sha256", "filename", "purpose"):
        if getattr(earlier, name) != getattr(file, name):
            raise key_reused("file")
    return earlier
