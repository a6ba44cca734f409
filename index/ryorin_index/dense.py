"""
The vectors of one store, searched with FAISS: segments from files, and what came since from SQL.

What is held here is a cache of the passages' vectors in SQL. Before every search the store's generation is compared
with the one held; when it moved, passages that are gone are hidden and new ones are added, so an edit in any process is
found by the next search in this one, at the cost of what changed. A search works on the state it began with: nothing
waits for a refresh in another thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog.tables import Passage, Tombstone, Vector, VectorStore
from ryorin_index.embed import Vectors
from ryorin_index.parts import Ids, Part, make_part

SMALL_PART = 1024  # parts in memory up to this size are joined at once; larger ones when they are about equal


@dataclass(frozen=True)
class State:
    """What a search sees: the parts at a generation, larger ones first, those in memory only last."""

    generation: int
    parts: tuple[Part, ...]


class StoreIndex:
    """The vectors of one store under one embedder: passage id → vector. Safe to share between threads."""

    def __init__(self, store: VectorStore) -> None:
        self.tenant_id = store.tenant_id
        self.store_id = store.id
        self.embedder_digest = store.embedder_digest
        self.dimensions = store.dimensions
        self._state = State(-1, ())
        self._lock = threading.Lock()  # one refresh at a time; searches take no lock

    @property
    def generation(self) -> int:
        """The store's generation that searches see; -1 before the first refresh."""
        return self._state.generation

    def refresh(self, session: Session, store: VectorStore) -> None:
        """Bring the index to the store's generation at least: hide passages that are gone, add those that came."""
        if store.generation <= self._state.generation:
            return
        with self._lock:
            state = self._state
            if store.generation <= state.generation:
                return
            advanced = self._advance(session, state, store.generation)
            # Read after the tombstones: purging may have come between the store's row and them.
            purged = session.scalar(select(VectorStore.purged_generation).where(VectorStore.id == store.id)) or 0
            if -1 < state.generation < purged:  # what was removed in between is not known any more
                advanced = self._advance(session, State(-1, ()), store.generation)
            self._state = advanced

    def search(self, query: Vectors, top_k: int, allowed: Ids | None = None) -> list[tuple[float, int]]:
        """
        The best `top_k` as (score, passage id), best first.

        query: shape (dim,), unit length. allowed: ids of the passages that may be found; None for all.
        """
        query = np.ascontiguousarray(query, dtype=np.float32)
        if allowed is not None:
            allowed = np.unique(np.asarray(allowed, dtype=np.int64))
        found = [part.search(query, top_k, allowed) for part in self._state.parts]
        pairs = [pair for scores, ids in found for pair in zip(scores.tolist(), ids.tolist(), strict=True)]
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:top_k]

    def vectors_of(self, ids: Ids) -> Vectors:
        """The vectors of passages. Shape: (n_ids, dim), float32; zeros for a passage that is gone."""
        wanted = np.asarray(ids, dtype=np.int64)
        vectors = np.zeros((len(wanted), self.dimensions), np.float32)
        for part in self._state.parts:
            at = np.minimum(np.searchsorted(part.ids, wanted), part.size - 1)
            here = part.ids[at] == wanted
            if part.live is not None:
                here &= part.live[at]
            vectors[here] = part.vectors[at[here]]
        return vectors

    def _advance(self, session: Session, state: State, generation: int) -> State:
        gone = _as_ids(
            session.scalars(
                select(Tombstone.passage_id).where(
                    Tombstone.store_id == self.store_id, Tombstone.generation > state.generation
                )
            ).all()
        )
        rows = session.execute(
            select(Passage.id, Vector.vector)
            .join(
                Vector,
                (Vector.tenant_id == Passage.tenant_id)
                & (Vector.embedder_digest == self.embedder_digest)
                & (Vector.sha256 == Passage.sha256),
            )
            .where(
                Passage.tenant_id == self.tenant_id,
                Passage.store_id == self.store_id,
                Passage.generation > state.generation,
            )
        ).all()
        parts = [part.without(gone) for part in state.parts]
        # A writer may have been ahead of `generation` when the last refresh read: those rows are here already.
        ids = _as_ids([row.id for row in rows])
        fresh = ~np.isin(ids, np.concatenate([part.ids[part.positions(ids)] for part in parts])) if parts else None
        new = self._part([row for at, row in enumerate(rows) if fresh is None or fresh[at]])
        return State(generation, _join([part for part in parts if part.alive], new))

    def _part(self, rows: Sequence[Any]) -> Part:
        vectors = np.frombuffer(b"".join(row.vector for row in rows), dtype="<f4")
        return make_part(_as_ids([row.id for row in rows]), vectors.reshape(len(rows), self.dimensions))


def _join(parts: list[Part], new: Part) -> tuple[Part, ...]:
    """
    Put a new part behind the others. Parts in memory are copied together while the one before is small or not twice as
    large, so that there are few of them and a passage is copied few times.
    """
    if not new.size:
        return tuple(parts)
    joined = [new]
    while parts and not parts[-1].name and parts[-1].alive <= max(SMALL_PART, 2 * sum(part.alive for part in joined)):
        joined.append(parts.pop())
    if len(joined) > 1:
        living = [part.living() for part in joined]
        new = make_part(np.concatenate([ids for ids, _ in living]), np.concatenate([vectors for _, vectors in living]))
    return (*parts, new)


def _as_ids(values: object) -> Ids:
    return np.asarray(values, dtype=np.int64)
