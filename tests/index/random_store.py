"""Rows of passages with random vectors, written straight to SQL, and what a search of them must find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Passage, Tombstone, Vector, VectorStore
from ryorin.digests import new_id, sha256_bytes
from ryorin_index.dense import StoreIndex
from ryorin_index.embed import Vectors
from ryorin_index.parts import Ids
from ryorin_index.store import next_generation


def random_vectors(count: int, dimensions: int, seed: int) -> Vectors:
    """Unit vectors around a few hundred centres, as real ones lie."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((200, dimensions))
    vectors = centres[draw.integers(0, 200, count)] + draw.standard_normal((count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def add_passages(session: Session, store: VectorStore, vectors: Vectors) -> list[int]:
    """A document whose passages have these vectors; returns the passages' ids."""
    generation = next_generation(session, store)
    document = Document(
        id=new_id("doc_"),
        tenant_id=store.tenant_id,
        store_id=store.id,
        source=new_id("s"),
        filename="f",
        title="t",
        media_type="text/plain",
        sha256="0" * 64,
        attributes={},
        generation=generation,
    )
    session.add(document)
    session.flush()
    digests = [sha256_bytes(row.tobytes()) for row in vectors]
    mine = {"tenant_id": store.tenant_id, "embedder_digest": store.embedder_digest}
    session.execute(
        Vector.__table__.insert(),  # type: ignore[attr-defined]
        [{**mine, "sha256": digest, "vector": row.tobytes()} for digest, row in zip(digests, vectors, strict=True)],
    )
    place = {"tenant_id": store.tenant_id, "store_id": store.id, "document_id": document.id}
    more = {"generation": generation, "ordinal": 0, "start": 0, "end": 1}
    session.execute(
        Passage.__table__.insert(),  # type: ignore[attr-defined]
        [{**place, **more, "text": digest, "sha256": digest} for digest in digests],
    )
    return list(session.scalars(select(Passage.id).where(Passage.document_id == document.id)))


def remove_passages(session: Session, store: VectorStore, ids: Sequence[int]) -> None:
    """Delete passages, with their tombstones."""
    generation = next_generation(session, store)
    session.add_all(Tombstone(passage_id=gone, store_id=store.id, generation=generation) for gone in ids)
    session.execute(delete(Passage).where(Passage.id.in_(ids)))


def truth(catalog: Catalog, store: VectorStore) -> tuple[Ids, Vectors]:
    """Ids and vectors of the store's passages, from SQL."""
    with catalog.session() as session:
        rows = session.execute(
            select(Passage.id, Vector.vector)
            .join(Vector, Vector.sha256 == Passage.sha256)
            .where(
                Passage.store_id == store.id,
                Vector.tenant_id == store.tenant_id,
                Vector.embedder_digest == store.embedder_digest,
            )
            .order_by(Passage.id)
        ).all()
    vectors = np.frombuffer(b"".join(row.vector for row in rows), "<f4").reshape(len(rows), store.dimensions)
    return np.asarray([row.id for row in rows], np.int64), vectors


def opened(catalog: Catalog, store: VectorStore) -> StoreIndex:
    """The store's index in a process that has just begun."""
    index = StoreIndex(catalog.settings, store)
    bring_up(catalog, index)
    return index


def bring_up(catalog: Catalog, index: StoreIndex) -> None:
    """What a search does first."""
    with catalog.session() as session:
        index.refresh(session, session.get_one(VectorStore, index.store.id))


def check(catalog: Catalog, index: StoreIndex, query: Vectors, top_k: int, allowed: Ids | None = None) -> None:
    """The index finds what brute force over SQL finds."""
    ids, vectors = truth(catalog, index.store)
    if allowed is not None:
        vectors = vectors[np.isin(ids, allowed)]
        ids = ids[np.isin(ids, allowed)]
    scores = dict(zip(ids.tolist(), (vectors @ query).tolist(), strict=True))
    found = index.search(query, top_k, allowed)
    best = sorted(scores.values(), reverse=True)[:top_k]
    assert np.allclose([score for score, _ in found], best, atol=1e-5), (found, best)
    assert all(abs(scores[each] - score) < 1e-5 for score, each in found)
    assert len({each for _, each in found}) == len(found)
