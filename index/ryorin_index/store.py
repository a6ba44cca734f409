"""Vector stores and their documents in the catalog. A store belongs to one tenant and has one embedder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog, audit
from ryorin.catalog.tables import Document, Passage, Tenant, VectorStore
from ryorin.digests import SHORT, is_name, new_id
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin.models.registry import Embedder, get_embedder, same_vectors
from ryorin.settings import Settings
from ryorin_index.chunking import Chunking

DAY_S = 86400
TOUCH_S = 60.0  # a store's last use is noted that exactly
UNKNOWN_DIGEST = "name:"  # of a store made before digests were kept: only the embedder's name is known


def create_store(
    session: Session, tenant: Tenant, name: str, embedder: Embedder, chunking: Chunking | None = None
) -> VectorStore:
    """
    A new, empty store. Raises InvalidInput for a bad name, Conflict for a taken one.

    chunking: how long its passages are; None for the default that suits the embedder.
    """
    if not is_name(name):
        raise InvalidInput(
            f"store name {name!r}: use lower-case letters, digits and inner hyphens, 48 at most", param="store"
        )
    if _find(session, tenant, name) is not None:
        raise Conflict(f"tenant {tenant.name!r} has a store {name!r} already", param="store")
    store = VectorStore(
        id=new_id("vs_"),
        tenant_id=tenant.id,
        name=name,
        title=name,
        embedder=embedder.name,
        embedder_digest=embedder.digest,
        dimensions=embedder.dimensions,
        chunking=chunking.to_json() if chunking else None,
    )
    session.add(store)
    audit.note(session, tenant.id, "store.create", name, id=store.id)
    session.flush()
    return store


def get_store(session: Session, tenant: Tenant, name: str) -> VectorStore:
    """The tenant's store of that name. Raises NotFound, naming those it has."""
    store = _find(session, tenant, name)
    if store is None:
        known = ", ".join(each.name for each in list_stores(session, tenant)) or "none yet"
        raise NotFound(
            f"tenant {tenant.name!r} has no store {name!r} (known: {known}); "
            f"create it with 'ryorin index create {name} --tenant {tenant.name}'",
            param="store",
        )
    return store


def list_stores(session: Session, tenant: Tenant) -> Sequence[VectorStore]:
    """The tenant's stores by name."""
    return session.scalars(
        select(VectorStore).where(VectorStore.tenant_id == tenant.id).order_by(VectorStore.name)
    ).all()


def store_counts(session: Session, store: VectorStore) -> dict[str, int]:
    """How many documents and passages a store has."""
    return {
        "documents": session.scalar(select(func.count()).where(Document.store_id == store.id)) or 0,
        "passages": session.scalar(select(func.count()).where(Passage.store_id == store.id)) or 0,
    }


def list_documents(session: Session, store: VectorStore) -> list[dict[str, Any]]:
    """The store's documents by source, each with its number of passages."""
    counts = (
        select(Passage.document_id, func.count().label("passages"))
        .where(Passage.store_id == store.id)
        .group_by(Passage.document_id)
        .subquery()
    )
    rows = session.execute(
        select(Document, counts.c.passages)
        .outerjoin(counts, counts.c.document_id == Document.id)
        .where(Document.store_id == store.id)
        .order_by(Document.source)
    )
    return [
        {
            "id": document.id,
            "filename": document.filename,
            "title": document.title,
            "source": document.source,
            "media_type": document.media_type,
            "language": document.language,
            "chunking": document.chunking,
            "passages": passages or 0,
            "updated_at": document.updated_at,
        }
        for document, passages in rows
    ]


def next_generation(session: Session, store: VectorStore) -> int:
    """
    Count the store's generation up and return it; holds the store's row until the transaction ends.

    Raises NotFound when the store was deleted since it was read.
    """
    generation = session.execute(
        update(VectorStore)
        .where(VectorStore.id == store.id)
        .values(generation=VectorStore.generation + 1)
        .returning(VectorStore.generation)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if generation is None:
        raise NotFound(f"store {store.name!r} was deleted meanwhile", param="store")
    return generation


def embedder_of(settings: Settings, store: VectorStore) -> Embedder:
    """
    The embedder of this machine that the store's vectors are of.

    Raises NotFound when this machine does not have it, Conflict when what has its name here is another model: its
    questions would be compared with vectors they have nothing to do with.
    """
    embedder = get_embedder(settings, store.embedder)
    if store.embedder_digest != f"{UNKNOWN_DIGEST}{embedder.name}" and not same_vectors(
        embedder, store.embedder_digest
    ):
        raise Conflict(
            f"store {store.name!r} was built with {store.embedder} {store.embedder_digest[:SHORT]}, this machine's "
            f"{embedder.name} is {embedder.digest[:SHORT]}; bring the former here, or embed the store anew with "
            f"'ryorin index embedder {store.name} {embedder.name}'",
            param="embedder",
        )
    return embedder


def expires_at(store: VectorStore) -> float | None:
    """When the store expires unless it is used; None for never."""
    return None if store.expires_after_days is None else store.last_active_at + DAY_S * store.expires_after_days


def is_expired(store: VectorStore) -> bool:
    """Whether the store has expired: it is kept, but neither searched nor added to."""
    end = expires_at(store)
    return end is not None and end <= time.time()


def live_stores(catalog: Catalog, tenant_id: str, store_ids: Sequence[str]) -> list[str]:
    """Those of the stores that have not expired, in their order; notes that they are in use."""
    now = time.time()
    with catalog.session() as session:
        mine = (VectorStore.tenant_id == tenant_id, VectorStore.id.in_(store_ids))
        expiring = session.scalars(select(VectorStore).where(*mine, VectorStore.expires_after_days.is_not(None))).all()
        expired = {store.id for store in expiring if is_expired(store)}
        stale = [store.id for store in expiring if store.id not in expired and store.last_active_at < now - TOUCH_S]
        if stale:
            session.execute(
                update(VectorStore)
                .where(VectorStore.id.in_(stale))
                .values(last_active_at=now)
                .execution_options(synchronize_session=False)
            )
    return [store_id for store_id in store_ids if store_id not in expired]


def _find(session: Session, tenant: Tenant, name: str) -> VectorStore | None:
    return session.scalar(select(VectorStore).where(VectorStore.tenant_id == tenant.id, VectorStore.name == name))
