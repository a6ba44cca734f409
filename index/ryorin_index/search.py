"""
Searching stores: by the question's vector and by its words, put together, and the passages themselves from SQL.

Each side gives its best candidates among the passages that the filter allows; reciprocal rank fusion makes one list of
them. From it come the answer's passages: those below the floor are left out, of those that say the same the best is
shown, a cross-encoder or a wish for variety may change the order. Every step is noted in the hit's explanation.

What `dense` and `lexical` hold of a store is brought to the store's generation before every search, so an edit in any
process is found by the next search in this one. The tenant is part of every query.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Passage, VectorStore
from ryorin.errors import InvalidInput, NotFound
from ryorin.filters import Compound, Filter, parse_filter
from ryorin.models.registry import Embedder
from ryorin.prompt import PromptPassage
from ryorin.release import Retrieval
from ryorin_index.attributes import StoreAttributes
from ryorin_index.context import widen
from ryorin_index.dense import StoreIndex
from ryorin_index.embed import Embed, Vectors, open_embedder
from ryorin_index.fusion import diversify, fuse
from ryorin_index.lexical import LexicalIndex
from ryorin_index.passages import passage_title
from ryorin_index.rerank import RERANK_CANDIDATES, Rerank, open_reranker
from ryorin_index.store import embedder_of

if TYPE_CHECKING:
    from ryorin_index.maintenance import Maintainer

MAX_QUERY_CHARACTERS = 8000
MAX_QUERIES = 16
CONTEXT_TOKENS = 600  # of the embedder's, of a passage with its surroundings
LEAST_CANDIDATES = 50  # of each side; more for a long answer
MORE_CANDIDATES = 8  # times as many, once, where too few are left of them
_ATTEMPTS = 10  # with a writer that changes the very document found 40 times a second, 3 were too few 1 time in 2000


@dataclass(frozen=True)
class Explanation:
    """
    Why a passage stands where it stands.

    dense_rank, lexical_rank: its place among the candidates of each side, from 1; None where it was not among them.
    cosine, bm25: its score there. fused: the sum of both sides' weight / (60 + rank). rerank: the cross-encoder's.
    mmr_rank: its place by relevance and variety. filtered: whether a filter chose among the documents before.
    folded: passages that say the same and were left out for it, as (passage id, document id).
    """

    dense_rank: int | None
    cosine: float
    lexical_rank: int | None
    bm25: float | None
    fused: float
    rerank: float | None = None
    mmr_rank: int | None = None
    filtered: bool = False
    folded: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Hit:
    """
    A passage that was found.

    score: cosine of the question's and the passage's vectors, -1 to 1; 1.0 for a passage fetched by its id. It says
    how near the passage is, not where it stands: hybrid search orders by both sides, see `explanation`.
    title: the document's title and the heading path. start, end: character offsets in the document's text.
    context: the passage with its surroundings, where they were asked for.
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
    file_id: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    context: str | None = None
    explanation: Explanation | None = None

    @property
    def prompt_passage(self) -> PromptPassage:
        """The passage as it stands in a prompt, with the surroundings that were asked for."""
        return PromptPassage(title=self.title, text=self.context or self.text)


_StoreKey = tuple[str, float]  # id, created at


@dataclass(frozen=True)
class _Scope:
    """Which passages may be found: those that pass the filter and are among `only`, but for those of `without`."""

    chosen: Filter | None
    only: Collection[int] | None
    without: frozenset[int]

    def rest(self, found: list[tuple[float, int]]) -> list[tuple[float, int]]:
        """What was found but for what is left out."""
        return [pair for pair in found if pair[1] not in self.without] if self.without else found


@dataclass(frozen=True)
class _Ranked:
    """One search's candidates, best first, with all that is known of them but their text."""

    order: list[int]
    explained: dict[int, Explanation]
    vectors: Callable[[Sequence[int]], Mapping[int, Vectors]]


class Searcher:
    """
    Searches the stores of all tenants; one for a process. Blocking and safe to share between threads.

    open_embed: how an embedder is opened; the default asks the model registry. open_rerank: the same for a reranker.
    """

    def __init__(
        self,
        catalog: Catalog,
        open_embed: Callable[[str], Embed] | None = None,
        open_rerank: Callable[[str, str | None], Rerank] = open_reranker,
    ) -> None:
        self._catalog = catalog
        self._open_embed = open_embed
        self._open_rerank = open_rerank
        self._embedders: dict[tuple[str, str], Embed] = {}
        self._rerankers: dict[tuple[str, str | None], Rerank] = {}
        self._indexes: dict[_StoreKey, StoreIndex] = {}
        self._lexical: dict[_StoreKey, LexicalIndex] = {}
        self._attributes: dict[_StoreKey, StoreAttributes] = {}
        self._foreseen: dict[tuple[str, str], Vectors] = {}  # (embedder's digest, question) → its vector
        self._maintainer: Maintainer | None = None
        self._opening = threading.Lock()  # a lock of its own: an embedder may load for seconds, other searches go on
        self._lock = threading.Lock()

    def search(
        self,
        tenant_id: str,
        store_ids: Sequence[str],
        query: str,
        top_k: int | None = None,
        score_floor: float | None = None,
        *,
        retrieval: Retrieval | None = None,
        chosen: Filter | None = None,
        only: Collection[int] | None = None,
        without: Collection[int] = (),
    ) -> list[Hit]:
        """
        The passages of the tenant's stores that answer `query` best, best first.

        retrieval: how to search, hybrid unless it says otherwise. top_k, score_floor: in place of what it says.
        chosen: a filter beside that of `retrieval`; both must hold. only: passages that may be found; None for all.
        without: passages that are not found, as if no store held them.
        Raises NotFound for a store the tenant does not have, InvalidInput for an empty query or one of more than
        `MAX_QUERY_CHARACTERS` characters, or for stores of different embedders; Conflict when another reranker lies
        where the one was that `retrieval` pins: nothing is ranked with another model silently.
        """
        return self.search_many(
            tenant_id,
            store_ids,
            [query],
            top_k,
            score_floor,
            retrieval=retrieval,
            chosen=chosen,
            only=only,
            without=without,
        )

    def search_many(
        self,
        tenant_id: str,
        store_ids: Sequence[str],
        queries: Sequence[str],
        top_k: int | None = None,
        score_floor: float | None = None,
        *,
        retrieval: Retrieval | None = None,
        chosen: Filter | None = None,
        only: Collection[int] | None = None,
        without: Collection[int] = (),
    ) -> list[Hit]:
        """
        As `search`, for several wordings of one question: their lists are fused, a hit's score is its best.

        Raises InvalidInput also for no query or more than `MAX_QUERIES`.
        """
        how = retrieval or Retrieval()
        if top_k is not None:
            how = replace(how, top_k=top_k)
        if score_floor is not None:
            how = replace(how, score_floor=min(1.0, max(-1.0, score_floor)))
        scope = _Scope(
            _both(chosen, parse_filter(how.filters) if how.filters is not None else None), only, frozenset(without)
        )
        _check(queries)
        with self._catalog.session() as session:
            stores = self._stores(session, tenant_id, store_ids)
        if not stores or not how.enabled:
            return []
        rerank = self._reranker(how.reranker, how.reranker_digest) if how.reranker else None
        candidates = max(LEAST_CANDIDATES, 4 * how.top_k)
        hits: list[Hit] = []
        ranked = _Ranked([], {}, lambda ids: {})
        vectors: list[Vectors] = []
        digest = ""
        for _ in range(_ATTEMPTS):
            if not vectors or stores[0].embedder_digest != digest:  # the stores' embedder may change meanwhile
                digest = stores[0].embedder_digest
                embed = self.embedder(stores[0])
                # between transactions: an endpoint takes its time
                vectors = [self._vector(embed, digest, query) for query in queries]
            with self._catalog.reading() as session:
                stores = self._stores(session, tenant_id, store_ids)
                if stores[0].embedder_digest != digest:
                    continue
                for count in (candidates, MORE_CANDIDATES * candidates):
                    found = self._ranked(session, stores, queries, vectors, how, scope, count)
                    ranked = _folded(session, tenant_id, found)
                    if len(ranked.order) >= how.top_k or ranked.order == found.order:
                        break  # otherwise copies of the same took the places: look further down
                wanted = ranked.order[: RERANK_CANDIDATES if rerank else how.top_k]
                if how.mmr is not None and rerank is None:
                    wanted, ranked = _varied(ranked, how)
                hits = self._hits(session, tenant_id, wanted, ranked.explained)
            if len(hits) == len(wanted):  # fewer: a document changed between the two; look again
                break
        if rerank is not None:  # a model's work, with no connection held
            hits = _reranked(rerank, queries, hits, ranked, how)
        return hits if how.context == "passage" else self._widened(tenant_id, hits, how)

    def foresee(self, tenant_id: str, store_ids: Sequence[str], queries: Sequence[str]) -> None:
        """
        Embed questions that will be searched soon, in one call of the embedder; searching them then embeds nothing.

        Those that were foreseen before are forgotten. Raises as `search`.
        """
        _check(queries, most=None)
        with self._catalog.session() as session:
            stores = self._stores(session, tenant_id, store_ids)
        if stores:
            vectors = self.embedder(stores[0]).queries(queries)
            digest = stores[0].embedder_digest
            self._foreseen = {(digest, query): vector for query, vector in zip(queries, vectors, strict=True)}

    def passage(self, tenant_id: str, passage_id: int) -> Hit:
        """One passage of the tenant. Raises NotFound, also when it is another tenant's or has been replaced."""
        with self._catalog.session() as session:
            hits = self._hits(session, tenant_id, [passage_id], {})
        if not hits:
            raise NotFound(f"no passage {passage_id}; its document may have changed since", param="passage_id")
        return hits[0]

    def warm(self, tenant_id: str, store_ids: Sequence[str], retrieval: Retrieval) -> None:
        """Load the stores, their embedder and the reranker, so that the first question does not wait for them."""
        with self._catalog.reading() as session:
            stores = self._stores(session, tenant_id, store_ids)
            for store in stores:
                self._index(store).refresh(session, store)
                self._words(store).refresh(session, store)
        for store in stores:
            self.embedder(store)
        if retrieval.reranker:
            self._reranker(retrieval.reranker, retrieval.reranker_digest)

    def maintain(self) -> None:
        """Keep the files of the stores that are searched in order from now on; for a process that searches for long."""
        from ryorin_index.maintenance import Maintainer

        self._maintainer = Maintainer(self._catalog, self._in_use)
        self._maintainer.start()

    def close(self) -> None:
        """End what `maintain` began."""
        if self._maintainer is not None:
            self._maintainer.stop()
            self._maintainer = None

    def _in_use(self) -> Sequence[VectorStore]:
        """The stores that were searched. What is held of those that are gone is let go."""
        with self._lock:
            known = {*self._indexes, *self._lexical, *self._attributes}
        with self._catalog.session() as session:
            found = session.scalars(select(VectorStore).where(VectorStore.id.in_({each for each, _ in known}))).all()
        gone = known - {_key(store) for store in found}
        with self._lock:
            for key in gone:
                for held in (self._indexes, self._lexical, self._attributes):
                    held.pop(key, None)
        return found

    def _ranked(
        self,
        session: Session,
        stores: Sequence[VectorStore],
        queries: Sequence[str],
        vectors: Sequence[Vectors],
        how: Retrieval,
        scope: _Scope,
        count: int,
    ) -> _Ranked:
        """The best `count` candidates of both sides in one order, those below the floor left out."""
        indexes = []
        dense: list[list[tuple[float, int]]] = [[] for _ in queries]
        lexical: list[list[tuple[float, int]]] = [[] for _ in queries]
        for store in stores:
            index = self._index(store)
            index.refresh(session, store)
            indexes.append(index)
            allowed = None
            if scope.chosen is not None:
                allowed = self._documents(store).allowed(session, store, scope.chosen)
            if scope.only is not None:
                some = np.asarray(sorted(scope.only), np.int64)
                allowed = some if allowed is None else np.intersect1d(allowed, some)
            wanted = count + len(scope.without)
            if how.mode != "lexical":
                for at, vector in enumerate(vectors):
                    dense[at] += scope.rest(index.search(vector, wanted, allowed))
            if how.mode != "dense":
                words = self._words(store)
                words.refresh(session, store)
                may = None if allowed is None else set(allowed.tolist())
                for at, query in enumerate(queries):
                    lexical[at] += scope.rest(words.search(query, wanted, may))
        dense, lexical = ([sorted(each, key=_best_first)[:count] for each in side] for side in (dense, lexical))

        def vectors_of(ids: Sequence[int]) -> Mapping[int, Vectors]:
            rows = np.zeros((len(ids), stores[0].dimensions), np.float32)
            for index in indexes:
                rows += index.vectors_of(np.asarray(ids, np.int64))  # zeros but in its own store
            return dict(zip(ids, rows, strict=True))

        weights = (how.dense_weight, how.lexical_weight) if how.mode == "hybrid" else (1.0, 1.0)
        fused = fuse(
            [
                (weight, [passage for _, passage in each])
                for weight, side in zip(weights, (dense, lexical), strict=True)
                for each in side
            ]
        )
        found = vectors_of(list(fused))
        cosines = {passage: max(float(vector @ found[passage]) for vector in vectors) for passage in fused}
        dense_ranks, lexical_ranks = _ranks(dense), _ranks(lexical)
        bm25 = {passage: score for each in lexical for score, passage in reversed(each)}
        explained = {
            passage: Explanation(
                dense_rank=dense_ranks.get(passage),
                cosine=cosines[passage],
                lexical_rank=lexical_ranks.get(passage),
                bm25=bm25.get(passage),
                fused=score,
                filtered=scope.chosen is not None,
            )
            for passage, score in fused.items()
            if how.score_floor is None or cosines[passage] >= how.score_floor
        }
        return _Ranked(list(explained), explained, vectors_of)

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

    def embedder(self, store: VectorStore) -> Embed:
        """The store's embedder, loaded once."""
        return self._opened(store.embedder, store.embedder_digest, lambda: embedder_of(self._catalog.settings, store))

    def embedder_of_model(self, embedder: Embedder) -> Embed:
        """An embedder of this machine, loaded once, also for the stores that use it."""
        return self._opened(embedder.name, embedder.digest, lambda: embedder)

    def _opened(self, name: str, digest: str, find: Callable[[], Embedder]) -> Embed:
        key = (name, digest)
        opened = self._embedders.get(key)
        if opened is None:
            with self._opening:
                opened = self._embedders.get(key)
                if opened is None:
                    if self._open_embed is not None:
                        opened = self._open_embed(name)
                    else:  # stores may know the same embedder by an earlier digest
                        found = find()
                        own = (found.name, found.digest)
                        opened = self._embedders.get(own) or open_embedder(found)
                        self._embedders[own] = opened
                    self._embedders[key] = opened
        return opened

    def _vector(self, embed: Embed, digest: str, query: str) -> Vectors:
        known = self._foreseen.get((digest, query))
        return embed.query(query) if known is None else known

    def _index(self, store: VectorStore) -> StoreIndex:
        with self._lock:
            known = self._indexes.get(_key(store))
            if known is None or known.embedder_digest != store.embedder_digest:
                known = self._indexes[_key(store)] = StoreIndex(self._catalog.settings, store)
            return known

    def _reranker(self, name: str, digest: str | None) -> Rerank:
        opened = self._rerankers.get((name, digest))
        if opened is None:
            with self._opening:
                opened = self._rerankers.get((name, digest)) or self._open_rerank(name, digest)
                self._rerankers[name, digest] = opened
        return opened

    def _words(self, store: VectorStore) -> LexicalIndex:
        with self._lock:
            if _key(store) not in self._lexical:
                self._lexical[_key(store)] = LexicalIndex(self._catalog.settings.home, store.tenant_id, store.id)
            return self._lexical[_key(store)]

    def _documents(self, store: VectorStore) -> StoreAttributes:
        with self._lock:
            return self._attributes.setdefault(_key(store), StoreAttributes(store.id))

    def _widened(self, tenant_id: str, hits: Sequence[Hit], how: Retrieval) -> list[Hit]:
        """The hits with their surroundings; one whose text stands in a better one's is left out."""
        mode: Literal["neighbours", "section"] = "section" if how.context == "section" else "neighbours"
        with self._catalog.reading() as session:
            spans = widen(session, tenant_id, [hit.passage_id for hit in hits], mode, CONTEXT_TOKENS)
        kept, said = [], set()
        for hit in hits:
            start, end, text = spans.get(hit.passage_id, (hit.start, hit.end, hit.text))
            if (hit.document_id, start, end) not in said:
                said.add((hit.document_id, start, end))
                kept.append(replace(hit, context=text))
        return kept

    def _hits(
        self, session: Session, tenant_id: str, ids: Sequence[int], explained: Mapping[int, Explanation]
    ) -> list[Hit]:
        """The passages in the order of `ids`; those that are gone are missing."""
        rows = session.execute(
            select(
                Passage,
                Document.filename,
                Document.title,
                Document.file_id,
                Document.attributes,
            )
            .join(Document, Document.id == Passage.document_id)
            .where(Passage.tenant_id == tenant_id, Passage.id.in_(ids))
        ).all()
        hits = {
            passage.id: Hit(
                passage_id=passage.id,
                store_id=passage.store_id,
                document_id=passage.document_id,
                filename=filename,
                title=passage_title(title, passage.heading),
                text=passage.text,
                score=explained[passage.id].cosine if passage.id in explained else 1.0,
                start=passage.start,
                end=passage.end,
                page=passage.page,
                file_id=file_id,
                attributes=attributes,
                explanation=explained.get(passage.id),
            )
            for passage, filename, title, file_id, attributes in rows
        }
        return [hits[found] for found in ids if found in hits]


def _key(store: VectorStore) -> _StoreKey:
    """A store that was deleted and made again by the same Idempotency-Key has the id of before, and nothing else."""
    return store.id, store.created_at


def _check(queries: Sequence[str], most: int | None = MAX_QUERIES) -> None:
    if most is not None and not 1 <= len(queries) <= most:
        raise InvalidInput(f"there are {len(queries)} queries; 1 to {MAX_QUERIES} are searched at once", param="query")
    for query in queries:
        if not query.strip():
            raise InvalidInput("the query is empty", param="query")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise InvalidInput(
                f"the query has {len(query)} characters, the limit is {MAX_QUERY_CHARACTERS}", param="query"
            )


def _both(one: Filter | None, other: Filter | None) -> Filter | None:
    if one is None or other is None:
        return one or other
    return Compound("and", (one, other))


def _best_first(pair: tuple[float, int]) -> tuple[float, int]:
    return -pair[0], pair[1]


def _ranks(lists: Iterable[Sequence[tuple[float, int]]]) -> dict[int, int]:
    """Passage id → its best place in any of the lists, from 1."""
    ranks: dict[int, int] = {}
    for each in lists:
        for rank, (_, passage) in enumerate(each, start=1):
            ranks[passage] = min(rank, ranks.get(passage, rank))
    return ranks


def _folded(session: Session, tenant_id: str, ranked: _Ranked) -> _Ranked:
    """Of passages that say the same, the best; it notes the others."""
    rows = session.execute(
        select(Passage.id, Passage.document_id, Passage.fold_key).where(
            Passage.tenant_id == tenant_id, Passage.id.in_(ranked.order), Passage.fold_key != ""
        )
    )
    known = {row.id: row for row in rows}
    shown: dict[str, int] = {}
    others: dict[int, list[tuple[int, str]]] = {}
    order = []
    for passage in ranked.order:
        row = known.get(passage)
        first = shown.setdefault(row.fold_key, passage) if row is not None else passage
        if row is None or first == passage:
            order.append(passage)
        else:
            others.setdefault(first, []).append((passage, row.document_id))
    explained = dict(ranked.explained)
    for passage, folded in others.items():
        explained[passage] = replace(explained[passage], folded=tuple(folded))
    return replace(ranked, order=order, explained=explained)


def _varied(ranked: _Ranked, how: Retrieval) -> tuple[list[int], _Ranked]:
    """The passages that MMR chooses, in its order."""
    assert how.mmr is not None
    relevance = {passage: ranked.explained[passage].fused for passage in ranked.order}
    chosen = diversify(relevance, ranked.vectors(ranked.order), how.top_k, how.mmr)
    explained = dict(ranked.explained)
    for rank, passage in enumerate(chosen, start=1):
        explained[passage] = replace(explained[passage], mmr_rank=rank)
    return chosen, replace(ranked, explained=explained)


def _reranked(
    rerank: Rerank, queries: Sequence[str], hits: Sequence[Hit], ranked: _Ranked, how: Retrieval
) -> list[Hit]:
    """The best by the cross-encoder, or by it and by variety."""
    if not hits:
        return []
    texts = [f"{hit.title}\n{hit.text}" for hit in hits]
    scores = [max(each) for each in zip(*(rerank.scores(query, texts) for query in queries), strict=True)]
    found = {}
    for score, hit in sorted(zip(scores, hits, strict=True), key=lambda pair: -pair[0]):
        assert hit.explanation is not None
        found[hit.passage_id] = replace(hit, explanation=replace(hit.explanation, rerank=score))
    if how.mmr is None:
        return list(found.values())[: how.top_k]
    relevance = dict(zip((hit.passage_id for hit in hits), scores, strict=True))
    chosen = diversify(relevance, ranked.vectors(list(relevance)), how.top_k, how.mmr)
    varied = []
    for rank, passage in enumerate(chosen, start=1):
        explanation = found[passage].explanation
        assert explanation is not None
        varied.append(replace(found[passage], explanation=replace(explanation, mmr_rank=rank)))
    return varied
