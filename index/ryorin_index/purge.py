"""
Forgetting what nothing needs: tombstones that no reader goes by any more, vectors of texts that are gone, whole stores.

Readers. A reader whose generation is older than `purged_generation` loads the store anew, so a tombstone may go at any
time; the last ones are kept because following them is cheaper.

Writers. Between a writer's look at which texts have vectors and its transaction, vectors may go. It notices, because it
looks again after it wrote its passages (`vectors.require_vectors`). For that look to be certain, vectors are deleted
while the tenant's row is held: on PostgreSQL every insertion of a passage shares that row through its foreign key, on
SQLite there is one writer at a time.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from ryorin.blobs import blob_path
from ryorin.catalog import Catalog, audit
from ryorin.catalog.tables import (
    Document,
    FileBatch,
    Passage,
    Release,
    Snapshot,
    Source,
    Tenant,
    Tombstone,
    Vector,
    VectorStore,
)
from ryorin.errors import Conflict
from ryorin_index.snapshots import passage_digests
from ryorin_index.store import next_generation

KEEP_GENERATIONS = 1000  # a reader that missed more changes than this loads the store anew
BATCH = 500  # vectors looked at while the tenant's row is held


@dataclass(frozen=True)
class Purged:
    """What was removed, or would be: tombstones of the store, vectors of its tenant, their bytes."""

    tombstones: int
    vectors: int
    bytes: int


def purge_store(
    catalog: Catalog, store: VectorStore, *, keep_generations: int = KEEP_GENERATIONS, dry_run: bool = False
) -> Purged:
    """
    Remove the store's tombstones but those of its last generations, and the tenant's vectors that nothing needs.

    Needed are vectors of passages under their store's present and future embedder, and of texts in snapshots under any.
    Raises as `check_blob` does when a snapshot cannot be read: what it names is not known then.
    """
    tombstones = purge_tombstones(catalog, store, keep_generations=keep_generations, dry_run=dry_run)
    vectors, size = purge_vectors(catalog, store.tenant_id, dry_run=dry_run)
    return Purged(tombstones, vectors, size)


def purge_tombstones(
    catalog: Catalog, store: VectorStore, *, keep_generations: int = KEEP_GENERATIONS, dry_run: bool = False
) -> int:
    """Remove tombstones of generations before the last `keep_generations`; returns how many."""
    with catalog.session() as session:
        limit = select(VectorStore.generation - keep_generations).where(VectorStore.id == store.id).scalar_subquery()
        old = (Tombstone.store_id == store.id, Tombstone.generation <= limit)
        count = session.scalar(select(func.count()).select_from(Tombstone).where(*old)) or 0
        if count and not dry_run:
            session.execute(
                update(VectorStore)
                .where(VectorStore.id == store.id)
                .values(purged_generation=VectorStore.generation - keep_generations)
            )
            count = session.execute(delete(Tombstone).where(*old)).rowcount  # type: ignore[attr-defined]
    return int(count)


def purge_vectors(catalog: Catalog, tenant_id: str, *, dry_run: bool = False) -> tuple[int, int]:
    """Remove the tenant's vectors that nothing needs; returns (how many, their bytes)."""
    with catalog.session() as session:
        digests = session.scalars(select(Vector.embedder_digest).where(Vector.tenant_id == tenant_id).distinct()).all()
    count, size = 0, 0
    for digest in digests:
        needed = _Needed(catalog.settings.blobs_dir, tenant_id, digest)
        with catalog.session() as session:
            needed.read(session)  # the bulk of it while nobody waits
        last: str | None = ""
        while last is not None:
            with catalog.session() as session:
                if not dry_run:
                    _hold(session, tenant_id)
                needed.read(session)
                rows = session.execute(
                    select(Vector.sha256, func.length(Vector.vector))
                    .where(Vector.tenant_id == tenant_id, Vector.embedder_digest == digest, Vector.sha256 > last)
                    .order_by(Vector.sha256)
                    .limit(BATCH)
                ).all()
                unused = {sha256: length for sha256, length in rows if bytes.fromhex(sha256) not in needed.texts}
                if unused and not dry_run:
                    session.execute(
                        delete(Vector)
                        .where(
                            Vector.tenant_id == tenant_id,
                            Vector.embedder_digest == digest,
                            Vector.sha256.in_(unused),
                        )
                        .execution_options(synchronize_session=False)
                    )
            count, size = count + len(unused), size + sum(unused.values())
            last = rows[-1].sha256 if rows else None
    return count, size


class _Needed:
    """
    The texts that need a vector of one embedder, as digests in bytes.

    Reading again costs what was added since: passages come with a generation of their store, snapshots never change.
    """

    def __init__(self, blobs_dir: Path, tenant_id: str, embedder_digest: str) -> None:
        self.texts: set[bytes] = set()
        self._blobs_dir = blobs_dir
        self._tenant_id = tenant_id
        self._embedder_digest = embedder_digest
        self._generations: dict[str, int] = {}
        self._snapshots: set[str] = set()

    def read(self, session: Session) -> None:
        stores = session.execute(
            select(VectorStore.id, VectorStore.generation).where(
                VectorStore.tenant_id == self._tenant_id,
                or_(
                    VectorStore.embedder_digest == self._embedder_digest,
                    VectorStore.next_embedder_digest == self._embedder_digest,
                ),
            )
        ).all()
        for store_id, generation in stores:
            since = self._generations.get(store_id, -1)
            if generation > since:
                texts = session.scalars(
                    select(Passage.sha256).where(Passage.store_id == store_id, Passage.generation > since)
                )
                self.texts.update(map(bytes.fromhex, texts))
                self._generations[store_id] = generation
        for snapshot in session.scalars(select(Snapshot).where(Snapshot.tenant_id == self._tenant_id)).all():
            if snapshot.id not in self._snapshots:
                self.texts.update(map(bytes.fromhex, passage_digests(self._blobs_dir, snapshot)))
                self._snapshots.add(snapshot.id)


def delete_store(catalog: Catalog, store: VectorStore, *, force: bool = False) -> None:
    """
    Delete a store with its documents, passages, snapshots and sources, then the vectors that only it needed.

    Raises Conflict when a release names it: always for the live one, which could answer nothing without it; for others
    unless `force`, because going back to them is not possible afterwards.
    """
    with catalog.session() as session:
        next_generation(session, store)  # holds the row: writers are done, or find that the store is gone
        check_releases(session, store, force)
        audit.note(session, store.tenant_id, "store.delete", store.name, id=store.id)
        blobs = list(session.scalars(select(Snapshot.sha256).where(Snapshot.store_id == store.id)))
        for table in (Tombstone, Passage, Document, Snapshot, Source, FileBatch):
            session.execute(
                delete(table).where(table.store_id == store.id).execution_options(synchronize_session=False)
            )
        session.execute(
            delete(VectorStore).where(VectorStore.id == store.id).execution_options(synchronize_session=False)
        )
    for sha256 in blobs:
        blob_path(catalog.settings.blobs_dir, sha256).unlink(missing_ok=True)
    shutil.rmtree(catalog.settings.home / "index" / store.id, ignore_errors=True)
    purge_vectors(catalog, store.tenant_id)


def _hold(session: Session, tenant_id: str) -> None:
    """Keep every other transaction from inserting rows of the tenant until this one ends."""
    if session.get_bind().dialect.name == "postgresql":  # stronger than an UPDATE's lock, which foreign keys pass by
        session.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update())
    else:
        session.execute(update(Tenant).where(Tenant.id == tenant_id).values(name=Tenant.name))


def check_releases(session: Session, store: VectorStore, force: bool) -> None:
    """Raise Conflict when the store cannot be deleted because of the releases that name it."""
    tenant = session.get_one(Tenant, store.tenant_id)
    releases = session.scalars(select(Release).where(Release.tenant_id == tenant.id).order_by(Release.version))
    named = [release for release in releases if store.id in release.store_ids]
    if any(release.id == tenant.live_release_id for release in named):
        raise Conflict(
            f"the live release of tenant {tenant.name!r} answers from store {store.name!r}; "
            "promote one without it first",
            param="store",
        )
    if named and not force:
        versions = ", ".join(str(release.version) for release in named)
        raise Conflict(
            f"releases {versions} of tenant {tenant.name!r} name store {store.name!r} and could not be promoted again; "
            "--force deletes it all the same",
            param="store",
        )
