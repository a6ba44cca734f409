"""A second working embedder, and documents of one passage for stores whose embedder changes."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from word_embedder import WordEmbedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Passage, Vector, VectorStore
from ryorin.models.registry import Embedder
from ryorin_index.embed import Vectors
from ryorin_index.ingest import Incoming, Outcome, put_document

NEXT = Embedder(name="turned", kind="sentence-transformers", digest="1" * 64, dimensions=64)


class Turned(WordEmbedder):
    """Another embedder: its vectors are those of WordEmbedder the other way round."""

    def query(self, text: str) -> Vectors:
        return super().query(text)[::-1].copy()

    def passages(self, texts: Sequence[str]) -> Vectors:
        return super().passages(texts)[:, ::-1].copy()


def open_embed(name: str) -> WordEmbedder:
    return Turned() if name == "turned" else WordEmbedder()


def put(catalog: Catalog, store: VectorStore, number: int, words: str, embedder: WordEmbedder | None = None) -> Outcome:
    data = f"# Guide {number}\n\n{words} number {number}\n".encode()
    made = embedder or open_embed(store.embedder)
    return put_document(catalog, store, Incoming(f"/d/{number}.md", f"{number}.md", data), lambda: made)


def reread(catalog: Catalog, store: VectorStore) -> VectorStore:
    with catalog.session() as session:
        return session.get_one(VectorStore, store.id)


def without_vector(catalog: Catalog) -> int:
    """Passages that no search could find."""
    with catalog.session() as session:
        return (
            session.scalar(
                select(func.count())
                .select_from(Passage)
                .join(VectorStore, VectorStore.id == Passage.store_id)
                .outerjoin(
                    Vector,
                    (Vector.tenant_id == Passage.tenant_id)
                    & (Vector.embedder_digest == VectorStore.embedder_digest)
                    & (Vector.sha256 == Passage.sha256),
                )
                .where(Vector.sha256.is_(None))
            )
            or 0
        )
