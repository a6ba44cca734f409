"""
Uploaded files: rows of the catalog, whose bytes lie in the blob folder.

Two files may share a blob, of two tenants too, and a dataset or a snapshot may be the same bytes: a blob goes when no
row needs it. A file that has expired is not found any longer; `expired_files` are for whoever clears them away.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from ryorin.blobs import blob_path, keeping
from ryorin.catalog.database import Catalog
from ryorin.catalog.tables import Dataset, File, Snapshot
from ryorin.errors import NotFound


def is_kept(now: float) -> ColumnElement[bool]:
    """The condition that a file has not expired."""
    return or_(File.expires_at.is_(None), File.expires_at > now)


def get_file(session: Session, tenant_id: str, file_id: str) -> File:
    """A file of the tenant. Raises NotFound in the same words for what does not exist and what is another's."""
    return get_files(session, tenant_id, [file_id])[file_id]


def get_files(session: Session, tenant_id: str, file_ids: Sequence[str]) -> dict[str, File]:
    """Files of the tenant by id. Raises NotFound for the first that there is none of."""
    found: dict[str, File] = {}
    for at in range(0, len(file_ids), 500):  # parameters of one statement
        mine = (File.tenant_id == tenant_id, File.id.in_(file_ids[at : at + 500]), is_kept(time.time()))
        found.update((file.id, file) for file in session.scalars(select(File).where(*mine)))
    for file_id in file_ids:
        if file_id not in found:
            raise NotFound(f"No such File object: {file_id}", param="file_id")
    return found


def expired_files(session: Session) -> Sequence[File]:
    """Files of all tenants that have expired."""
    return session.scalars(select(File).where(File.expires_at <= time.time())).all()


def remove_unneeded_blobs(catalog: Catalog, digests: Iterable[str]) -> None:
    """Remove those of the blobs that no row needs any longer; to be called after the transaction that freed them."""
    for digest in set(digests):
        with keeping(catalog.settings.blobs_dir, alone=True):
            with catalog.session() as session:
                needed = any(
                    session.scalar(select(column).where(column == digest).limit(1))
                    for column in (File.sha256, Dataset.digest, Snapshot.sha256)
                )
            if not needed:
                blob_path(catalog.settings.blobs_dir, digest).unlink(missing_ok=True)
