"""
Vectors in SQL, kept by the digest of their text: who has one, making those that are missing, and proof that none is.

Vectors are removed by `purge` when nothing needs them. A text may lose its vector between the look at what is there and
the transaction that adds its passage; so whoever adds passages calls `require_vectors` in that transaction, after
they were written. Purging holds the tenant's row, which every insertion of a passage shares, so one of the two sees
what the other did.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.database import insert_into
from ryorin.catalog.tables import Passage, Tenant, Vector, VectorStore
from ryorin.errors import Conflict, RyorinError
from ryorin_index.embed import Embed

EMBED_BATCH, MAX_EMBED_BATCH = 16, 512  # texts of the first batch and of the largest
BATCH_S = 2.0  # batches grow while one takes less: large ones keep the cores busy, small ones show progress
LOOKUP_BATCH = 500  # parameters of one statement


@dataclass(frozen=True)
class VectorSpace:
    """Vectors that may be compared: one tenant's, of one embedder. A store is one too."""

    tenant_id: str
    embedder_digest: str
    dimensions: int


class VectorsGone(Conflict):
    """Texts lost their vectors between two looks; embedding them again mends it."""


def embed_missing(
    catalog: Catalog,
    space: VectorSpace | VectorStore,
    texts: Mapping[str, str],
    embed: Callable[[], Embed],
    on_batch: Callable[[int], None] = lambda embedded: None,
) -> int:
    """
    Give every text a vector that has none; each batch is kept as soon as it is there. Returns how many were embedded.

    texts: digest → text. Batches are of texts of like length, because a batch takes the time of its longest.
    """
    with catalog.session() as session:
        known = known_digests(session, space, list(texts))
    missing = sorted((digest for digest in texts if digest not in known), key=lambda digest: len(texts[digest]))
    size, done = EMBED_BATCH, 0
    while done < len(missing):
        batch = missing[done : done + size]
        began = time.monotonic()
        vectors = embed_texts(space, {digest: texts[digest] for digest in batch}, embed())
        if time.monotonic() - began < BATCH_S:
            size = min(2 * size, MAX_EMBED_BATCH)
        with catalog.session() as session:
            keep_vectors(session, space, vectors)
        done += len(batch)
        on_batch(done)
    return len(missing)


def embed_held(session: Session, store: VectorStore, texts: Mapping[str, str], embed: Callable[[], Embed]) -> int:
    """
    The same in a transaction of the caller's, which has written already: until it ends no vector of the tenant goes.

    For texts whose vectors were purged between two looks, time and again; others that purge wait for the embedder, on
    SQLite all that write.
    """
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer at a time
        session.execute(
            select(Tenant.id).where(Tenant.id == store.tenant_id).with_for_update(read=True, key_share=True)
        )
    known = known_digests(session, store, list(texts))
    missing = {digest: text for digest, text in texts.items() if digest not in known}
    if missing:
        keep_vectors(session, store, embed_texts(store, missing, embed()))
    return len(missing)


def embed_texts(space: VectorSpace | VectorStore, texts: Mapping[str, str], embed: Embed) -> dict[str, bytes]:
    """The vectors of texts as they are kept. Raises RyorinError when the embedder gives what cannot be one."""
    rows = embed.passages(list(texts.values()))
    if rows.shape != (len(texts), space.dimensions):
        raise RyorinError(
            f"embedder gave vectors of shape {rows.shape} for {len(texts)} texts, not of {space.dimensions} dimensions"
        )
    if not np.isfinite(rows).all():
        raise RyorinError("the embedder gave a vector that is not finite")
    return {digest: row.astype("<f4").tobytes() for digest, row in zip(texts, rows, strict=True)}


def keep_vectors(session: Session, space: VectorSpace | VectorStore, vectors: Mapping[str, bytes]) -> None:
    """Write vectors by their texts' digests; those that another process wrote meanwhile stay."""
    rows = [
        {"tenant_id": space.tenant_id, "embedder_digest": space.embedder_digest, "sha256": digest, "vector": vector}
        for digest, vector in sorted(vectors.items())  # in one order, or two processes could wait for each other
    ]
    session.execute(insert_into(session.get_bind(), Vector).on_conflict_do_nothing(), rows)


def known_digests(session: Session, space: VectorSpace | VectorStore, digests: Sequence[str]) -> set[str]:
    """Those of `digests` whose text has a vector."""
    known: set[str] = set()
    mine = (Vector.tenant_id == space.tenant_id, Vector.embedder_digest == space.embedder_digest)
    for at in range(0, len(digests), LOOKUP_BATCH):
        batch = digests[at : at + LOOKUP_BATCH]
        known.update(session.scalars(select(Vector.sha256).where(*mine, Vector.sha256.in_(batch))))
    return known


def require_vectors(session: Session, store: VectorStore, generation: int) -> None:
    """
    Check that every passage added at `generation` has a vector of the store's present embedder.

    Raises Conflict when the store's embedder is no longer the one that `store`, read earlier, says; VectorsGone when
    vectors were purged. Both leave the transaction to be rolled back.
    """
    digest, name = session.execute(
        select(VectorStore.embedder_digest, VectorStore.embedder).where(VectorStore.id == store.id)
    ).one()
    if digest != store.embedder_digest:
        raise Conflict(
            f"store {store.name!r} changed its embedder from {store.embedder} to {name} meanwhile; run it again"
        )
    gone = session.scalar(
        select(Passage.id)
        .outerjoin(
            Vector,
            (Vector.tenant_id == Passage.tenant_id)
            & (Vector.embedder_digest == digest)
            & (Vector.sha256 == Passage.sha256),
        )
        .where(Passage.store_id == store.id, Passage.generation == generation, Vector.sha256.is_(None))
        .limit(1)
    )
    if gone is not None:
        raise VectorsGone(f"vectors of store {store.name!r} were purged while they were needed; run it again")
