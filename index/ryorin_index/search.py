"""
Searching stores: the question's vector against the passages', and the passages themselves from SQL.

What `dense` holds of a store is brought to the store's generation before every search, so an edit in any process is
found by the next search in this one. The tenant is part of every query.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Passage, VectorStore
from ryorin.errors import InvalidInput, NotFound
from ryorin.prompt import PromptPassage
from ryorin_index.dense import StoreIndex
from ryorin_index.embed import Embed, open_embedder
from ryorin_index.passages import passage_title
from ryorin_index.store import embedder_of

MAX_QUERY_CHARACTERS = 8000
_ATTEMPTS = 10  # with a writer that changes the very document found 40 times a second, 3 were too few 1 time in 2000


@dataclass(frozen=True)
class Hit:
    """
    A passage that was found.

    score: cosine of the question's and the passage's vectors, -1 to 1; 1.0 for a passage fetched by its id.
    title: the document's title and the heading path. start, end: character offsets in the document's text.
    """

    passage_id: int
    store_id: str
    document_id: str
    filename: str
    title: str
    text: str
    score: float
    start: int
    end: int
    page: int | None

    @property
    def prompt_passage(self) -> PromptPassage:
        """The passage as it stands in a prompt."""
        return PromptPassage(title=self.title, text=self.text)


class Searcher:
    """
    Searches the stores of all tenants; one for a process. Blocking and safe to share between threads.

    open_embed: how an embedder is opened; the default asks the model registry.
    """

    def __init__(self, catalog: Catalog, open_embed: Callable[[str], Embed] | None = None) -> None:
        self._catalog = catalog
        self._open_embed = open_embed
        self._embedders: dict[tuple[str, str], Embed] = {}
        self._indexes: dict[str, StoreIndex] = {}
        self._opening = threading.Lock()  # a lock of its own: an embedder may load for seconds, other searches go on
        self._lock = threading.Lock()

    def search(
        self, tenant_id: str, store_ids: Sequence[str], query: str, top_k: int, score_floor: float | None = None
    ) -> list[Hit]:
        """
        The `top_k` passages of the tenant's stores nearest to `query`, best first.

        Raises NotFound for a store the tenant does not have, InvalidInput for an empty query or one of more than
        `MAX_QUERY_CHARACTERS` characters, or for stores of different embedders.
        """
        if not query.strip():
            raise InvalidInput("the query is empty", param="query")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise InvalidInput(
                f"the query has {len(query)} characters, the limit is {MAX_QUERY_CHARACTERS}", param="query"
            )
        with self._catalog.session() as session:
            stores = self._stores(session, tenant_id, store_ids)
        if not stores:
            return []
        hits: list[Hit] = []
        vector, digest = None, ""
        for _ in range(_ATTEMPTS):
            if vector is None or stores[0].embedder_digest != digest:  # the stores' embedder may change meanwhile
                digest = stores[0].embedder_digest
                vector = self._embedder(stores[0]).query(query)  # between transactions: an endpoint may take its time
            with self._catalog.session() as session:
                stores = self._stores(session, tenant_id, store_ids)
                if stores[0].embedder_digest != digest:
                    continue
                scored: list[tuple[float, int]] = []
                for store in stores:
                    index = self._index(store)
                    index.refresh(session, store)
                    scored += index.search(vector, top_k)
                scored = sorted(scored, key=lambda pair: (-pair[0], pair[1]))[:top_k]
                scored = [pair for pair in scored if score_floor is None or pair[0] >= score_floor]
                hits = self._hits(session, tenant_id, {found: score for score, found in scored})
            if len(hits) == len(scored):  # fewer: a document changed between the two; look again
                break
        return sorted(hits, key=lambda hit: (-hit.score, hit.passage_id))

    def passage(self, tenant_id: str, passage_id: int) -> Hit:
        """One passage of the tenant. Raises NotFound, also when it is another tenant's or has been replaced."""
        with self._catalog.session() as session:
            hits = self._hits(session, tenant_id, {passage_id: 1.0})
        if not hits:
            raise NotFound(f"no passage {passage_id}; its document may have changed since", param="passage_id")
        return hits[0]

    def warm(self, tenant_id: str, store_ids: Sequence[str]) -> None:
        """Load the stores and their embedder, so that the first question does not wait for them."""
        with self._catalog.session() as session:
            stores = self._stores(session, tenant_id, store_ids)
            for store in stores:
                self._index(store).refresh(session, store)
        for store in stores:
            self._embedder(store)

    def _stores(self, session: Session, tenant_id: str, store_ids: Sequence[str]) -> Sequence[VectorStore]:
        found = session.scalars(
            select(VectorStore).where(VectorStore.tenant_id == tenant_id, VectorStore.id.in_(store_ids))
        ).all()
        missing = set(store_ids) - {store.id for store in found}
        if missing:
            raise NotFound(f"no vector store {', '.join(sorted(missing))}", param="store")
        if len({store.embedder for store in found}) > 1:
            raise InvalidInput("stores of different embedders cannot be searched together", param="store")
        return found

    def _embedder(self, store: VectorStore) -> Embed:
        key = (store.embedder, store.embedder_digest)
        opened = self._embedders.get(key)
        if opened is None:
            with self._opening:
                opened = self._embedders.get(key) or self._open(store)
                self._embedders[key] = opened
        return opened

    def _open(self, store: VectorStore) -> Embed:
        if self._open_embed is not None:
            return self._open_embed(store.embedder)
        return open_embedder(embedder_of(self._catalog.settings, store))

    def _index(self, store: VectorStore) -> StoreIndex:
        with self._lock:
            known = self._indexes.get(store.id)
            if known is None or known.embedder_digest != store.embedder_digest:
                known = self._indexes[store.id] = StoreIndex(self._catalog.settings, store)
            return known

    def _hits(self, session: Session, tenant_id: str, scores: dict[int, float]) -> list[Hit]:
        rows = session.execute(
            select(Passage, Document)
            .join(Document, Document.id == Passage.document_id)
            .where(Passage.tenant_id == tenant_id, Passage.id.in_(scores))
        )
        return [
            Hit(
                passage_id=passage.id,
                store_id=passage.store_id,
                document_id=document.id,
                filename=document.filename,
                title=passage_title(document.title, passage.heading),
                text=passage.text,
                score=scores[passage.id],
                start=passage.start,
                end=passage.end,
                page=passage.page,
            )
            for passage, document in rows
        ]
