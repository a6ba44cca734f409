"""
The vectors of one store, searched with FAISS: segments from files, and what came since from SQL.

What is held here is a cache of the passages' vectors in SQL. Before every search the store's generation is compared
with the one held; when it moved, passages that are gone are hidden and new ones are added, so an edit in any process is
found by the next search in this one, at the cost of what changed. A search works on the state it began with: nothing
waits for a refresh in another thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog.tables import Passage, Tombstone, Vector, VectorStore
from ryorin.settings import Settings
from ryorin_index.embed import Vectors
from ryorin_index.parts import Ids, Part, make_part
from ryorin_index.segments import folder_of, load_parts, manifest_numbers, newest_manifest

SMALL_PART = 1024  # parts in memory up to this size are joined at once; larger ones when they are about equal
LOOK_EVERY_S = 0.5  # how often a search looks whether another process wrote new files
LOOKUP_BATCH = 500  # parameters of one statement


@dataclass(frozen=True)
class State:
    """What a search sees: the parts at a generation, larger ones first, those in memory only last."""

    generation: int
    parts: tuple[Part, ...]


class StoreIndex:
    """The vectors of one store under one embedder: passage id → vector. Safe to share between threads."""

    def __init__(self, settings: Settings, store: VectorStore) -> None:
        self.store = store
        self.embedder_digest = store.embedder_digest
        self._folder: Path = folder_of(settings, store)
        self._state = State(-1, ())
        self._number = 0  # of the manifest whose segments are held
        self._lock = threading.Lock()  # one refresh at a time; searches take no lock
        self._adopting = threading.Lock()
        self._looked_s = time.monotonic()

    @property
    def generation(self) -> int:
        """The store's generation that searches see; -1 before the first refresh."""
        return self._state.generation

    @property
    def state(self) -> State:
        """What a search that began now would see."""
        return self._state

    def refresh(self, session: Session, store: VectorStore) -> None:
        """
        Bring the index to the store's generation at least: hide passages that are gone, add those that came.

        Segments that another process merged are loaded by a thread of their own; nothing waits for it.
        """
        self._look()
        if store.generation <= self._state.generation:
            return
        with self._lock:
            state = self._state
            if store.generation <= state.generation:
                return
            if state.generation < 0:
                state = self._load(session)
            while True:
                advanced = self._advance(session, state, store.generation)
                # Read after the tombstones: purging may have come between the store's row and them.
                purged = session.scalar(select(VectorStore.purged_generation).where(VectorStore.id == self.store.id))
                if (purged or 0) <= state.generation:
                    break
                state = self._load(session)  # what was removed in between is not known any more
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
        pairs = [pair for scores, ids in found for pair in zip((-scores).tolist(), ids.tolist(), strict=True)]
        pairs.sort()
        return [(-score, passage) for score, passage in pairs[:top_k]]

    def vectors_of(self, ids: Ids) -> Vectors:
        """The vectors of passages. Shape: (n_ids, dim), float32; zeros for a passage that is gone."""
        wanted = np.asarray(ids, dtype=np.int64)
        vectors = np.zeros((len(wanted), self.store.dimensions), np.float32)
        for part in self._state.parts:
            at = np.minimum(np.searchsorted(part.ids, wanted), part.size - 1)
            here = part.ids[at] == wanted
            if part.live is not None:
                here &= part.live[at]
            vectors[here] = part.vectors[at[here]]
        return vectors

    def _load(self, session: Session) -> State:
        """
        The passages that were there at the generation it returns: from the files what they have, the rest from SQL.

        Which there are is what SQL says. Writers may change documents while this reads; `_advance` brings that.
        """
        generation = session.scalar(select(VectorStore.generation).where(VectorStore.id == self.store.id)) or 0
        parts: list[Part] = []
        for _ in range(3):
            manifest = newest_manifest(self._folder, self.store)
            if manifest is None:
                break
            parts, damaged = load_parts(self._folder, manifest, self._state.parts)
            self._number = manifest.number
            if not damaged or manifest.number == max(manifest_numbers(self._folder), default=0):
                break  # else a merge removed files between the two
        ids = passage_ids(session, self.store)
        parts = [part.without(np.setdiff1d(part.ids, ids, assume_unique=True)) for part in parts]
        held = np.concatenate([part.ids for part in parts]) if parts else ids[:0]
        new = read_vectors(session, self.store, np.setdiff1d(ids, held))
        return State(generation, _join([part for part in parts if part.alive], new))

    def _advance(self, session: Session, state: State, generation: int) -> State:
        gone = session.scalars(
            select(Tombstone.passage_id).where(
                Tombstone.store_id == self.store.id, Tombstone.generation > state.generation
            )
        ).all()
        # One statement, so that it sees what a writer's transaction took away or what it put in its place.
        rows = session.execute(_vectors_query(self.store).where(Passage.generation > state.generation)).all()
        new = _as_part(rows, self.store.dimensions)
        # A writer may have been ahead of `generation` when the last refresh read: those rows are here already.
        for part in state.parts:
            new = new.without(part.ids[part.positions(new.ids)])
        parts = [part.without(np.asarray(gone, np.int64)) for part in state.parts]
        return State(max(generation, state.generation), _join([part for part in parts if part.alive], _compact(new)))

    def _look(self) -> None:
        """Let a thread take over newer files, if there are some."""
        if time.monotonic() - self._looked_s < LOOK_EVERY_S or self._state.generation < 0:
            return
        self._looked_s = time.monotonic()
        newest = max(manifest_numbers(self._folder), default=0)
        if newest > self._number and not self._adopting.locked():
            threading.Thread(target=self.adopt, name="ryorin-segments", daemon=True).start()

    def adopt(self) -> None:
        """Take over the newest segments, with the passages that are held now: searches find the same as before."""
        with self._adopting:
            manifest = newest_manifest(self._folder, self.store)
            if manifest is None or manifest.number <= self._number:
                return
            parts, damaged = load_parts(self._folder, manifest, self._state.parts)
            if damaged:
                return
            with self._lock:
                if manifest.generation > self._state.generation:
                    return  # after the next refresh
                living = [part.living()[0] for part in self._state.parts]
                ids = np.concatenate(living or [np.empty(0, np.int64)])
                parts = [part.without(np.setdiff1d(part.ids, ids, assume_unique=True)) for part in parts]
                held = np.concatenate([part.ids for part in parts] or [ids[:0]])
                rest = [_compact(part.without(held)) for part in self._state.parts]
                new = make_part(
                    np.concatenate([part.ids for part in rest] or [ids[:0]]),
                    np.concatenate([part.vectors for part in rest] or [np.empty((0, self.store.dimensions), "<f4")]),
                )
                self._state = State(self._state.generation, _join([part for part in parts if part.alive], new))
                self._number = manifest.number


def passage_ids(session: Session, store: VectorStore) -> Ids:
    """Ids of the store's passages, ascending."""
    rows = session.scalars(select(Passage.id).where(Passage.tenant_id == store.tenant_id, Passage.store_id == store.id))
    return np.sort(np.asarray(rows.all(), dtype=np.int64))


def read_vectors(session: Session, store: VectorStore, ids: Ids) -> Part:
    """A part of those of the passages that are there and have a vector of the store's embedder."""
    query = _vectors_query(store)
    rows: list[Any] = []
    for at in range(0, len(ids), LOOKUP_BATCH):
        rows += session.execute(query.where(Passage.id.in_(ids[at : at + LOOKUP_BATCH].tolist())))
    return _as_part(rows, store.dimensions)


def _vectors_query(store: VectorStore) -> Any:
    return (
        select(Passage.id, Vector.vector)
        .join(
            Vector,
            (Vector.tenant_id == Passage.tenant_id)
            & (Vector.embedder_digest == store.embedder_digest)
            & (Vector.sha256 == Passage.sha256),
        )
        .where(Passage.tenant_id == store.tenant_id, Passage.store_id == store.id)
    )


def _as_part(rows: Sequence[Any], dimensions: int) -> Part:
    vectors = np.frombuffer(b"".join(row.vector for row in rows), "<f4")
    return make_part(np.asarray([row.id for row in rows], np.int64), vectors.reshape(len(rows), dimensions))


def _compact(part: Part) -> Part:
    return part if part.live is None else make_part(*part.living())


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
