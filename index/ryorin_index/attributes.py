"""Which passages a filter allows: the attributes of a store's documents, in memory, at the store's generation."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog.tables import Document, Passage, Tombstone, VectorStore
from ryorin.filters import Filter, filter_attributes
from ryorin_index.parts import Ids

KEPT_ANSWERS = 32  # filters whose passages are remembered until the store changes


class StoreAttributes:
    """The attributes of one store's documents, and which passages are whose. Safe to share between threads."""

    def __init__(self, store_id: str) -> None:
        self.store_id = store_id
        self._lock = threading.Lock()
        self._forget()

    def allowed(self, session: Session, store: VectorStore, chosen: Filter) -> Ids:
        """
        The passages of the documents that pass, at the store's generation. Shape: (n,), int64, ascending.

        A document that came after that generation passes no filter until the next search.
        """
        with self._lock:
            self._refresh(session, store)
            known = self._answers.get(chosen)
            if known is None:
                passing = [place for place, attributes in self._attributes.items() if chosen.holds(attributes)]
                known = self._passages[np.isin(self._places, np.asarray(passing, np.int64))]
                while len(self._answers) >= KEPT_ANSWERS:
                    del self._answers[next(iter(self._answers))]
                self._answers[chosen] = known
            return known

    def _forget(self) -> None:
        self._generation = -1
        self._place_of: dict[str, int] = {}  # document id → a number for it
        self._attributes: dict[int, dict[str, Any]] = {}
        self._passages: Ids = np.empty(0, np.int64)
        self._places: Ids = np.empty(0, np.int64)  # of each passage's document
        self._answers: dict[Filter, Ids] = {}

    def _refresh(self, session: Session, store: VectorStore) -> None:
        if store.generation <= self._generation:
            return
        if store.purged_generation > self._generation:
            self._forget()
        after, upto = self._generation, store.generation
        gone = session.scalars(
            select(Tombstone.passage_id).where(
                Tombstone.store_id == store.id, Tombstone.generation > after, Tombstone.generation <= upto
            )
        ).all()
        came = session.execute(
            select(Passage.id, Passage.document_id).where(
                Passage.tenant_id == store.tenant_id,
                Passage.store_id == store.id,
                Passage.generation > after,
                Passage.generation <= upto,
            )
        ).all()
        stays = ~np.isin(self._passages, np.asarray(gone, np.int64))
        places = [self._place(row.document_id) for row in came]
        passages = np.concatenate([self._passages[stays], np.asarray([row.id for row in came], np.int64)])
        order = np.argsort(passages, kind="stable")
        self._passages = passages[order]
        self._places = np.concatenate([self._places[stays], np.asarray(places, np.int64)])[order]
        for row in session.execute(
            select(
                Document.id,
                Document.attributes,
                Document.filename,
                Document.source,
                Document.title,
                Document.language,
                Document.media_type,
            ).where(Document.store_id == store.id, Document.generation > after, Document.generation <= upto)
        ):
            fields = {
                "document_id": row.id,
                "filename": row.filename,
                "source": row.source,
                "title": row.title,
                "language": row.language,
                "media_type": row.media_type,
            }
            self._attributes[self._place(row.id)] = filter_attributes(row.attributes, fields)
        self._generation = upto
        self._answers.clear()

    def _place(self, document_id: str) -> int:
        return self._place_of.setdefault(document_id, len(self._place_of))
