"""
A store as LlamaIndex sees it: a vector store for its indexes, and a retriever for its query engines.

Reading is our search, with its modes and filters. Writing goes through SQL as everything does: a node becomes a
document of the store, which is cut and embedded by the store's own rules, so what is found is the same whoever put it
there. The vectors that LlamaIndex made of a node or a question are not used, and questions need none
(`is_embedding_query` is false): an index over this store may have a `MockEmbedding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from sqlalchemy import select

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, VectorStore
from ryorin.errors import InvalidInput
from ryorin.filters import Filter, parse_filter
from ryorin.release import Retrieval
from ryorin_index.embed import Embed
from ryorin_index.ingest import Incoming, delete_documents, put_document
from ryorin_index.search import Hit, Searcher

NODE_ID, REFERENCE = "node_id", "ref_doc_id"  # the attributes that keep what LlamaIndex calls a node and its document
DEFAULT_MMR = 0.5
_MODES = {
    VectorStoreQueryMode.DEFAULT: "dense",
    VectorStoreQueryMode.HYBRID: "hybrid",
    VectorStoreQueryMode.TEXT_SEARCH: "lexical",
    VectorStoreQueryMode.SPARSE: "lexical",
    VectorStoreQueryMode.MMR: "dense",
}
_OPERATORS = {
    FilterOperator.EQ: "eq",
    FilterOperator.NE: "ne",
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "lte",
    FilterOperator.IN: "in",
    FilterOperator.NIN: "nin",
}


class RyorinVectorStore(BasePydanticVectorStore):
    """
    One store of a tenant as a LlamaIndex vector store.

    Example:
        vector_store = RyorinVectorStore(catalog, store, searcher)
        index = VectorStoreIndex.from_vector_store(vector_store, embed_model=MockEmbedding(embed_dim=1))
        index.as_query_engine(llm=llm, vector_store_query_mode="hybrid").query("May I return an opened kettle?")
    """

    stores_text: bool = True
    is_embedding_query: bool = False
    _catalog: Catalog = PrivateAttr()
    _store: VectorStore = PrivateAttr()
    _searcher: Searcher = PrivateAttr()

    def __init__(self, catalog: Catalog, store: VectorStore, searcher: Searcher | None = None) -> None:
        super().__init__(stores_text=True, is_embedding_query=False)
        self._catalog = catalog
        self._store = store
        self._searcher = searcher or Searcher(catalog)

    @property
    def client(self) -> Searcher:
        """What searches."""
        return self._searcher

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """
        Put each node into the store as a document; one that is there is replaced. Returns the nodes' ids.

        Metadata that is text, a number or a truth value becomes attributes to filter by.
        """
        for node in nodes:
            reference = node.ref_doc_id or node.node_id
            attributes = {key: value for key, value in node.metadata.items() if isinstance(value, str | int | float)}
            incoming = Incoming(
                source=_source(reference, node.node_id),
                filename=f"{node.node_id}.txt",
                data=node.get_content(MetadataMode.NONE).encode(),
                attributes={**attributes, NODE_ID: node.node_id, REFERENCE: reference},
            )
            put_document(self._catalog, self._store, incoming, self._embed)
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Take the nodes of a LlamaIndex document out of the store."""
        with self._catalog.session() as session:
            gone = session.scalars(
                select(Document).where(
                    Document.tenant_id == self._store.tenant_id,
                    Document.store_id == self._store.id,
                    Document.source.startswith(_source(ref_doc_id, ""), autoescape=True),
                )
            ).all()
            if gone:
                delete_documents(session, self._store, gone)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """
        Search the store by the question's text.

        Raises InvalidInput for a query of a vector alone, a mode, a filter or a number of results that the store does
        not have.
        """
        if query.query_str is None:
            raise InvalidInput("the store searches by the question's text; the query has none", param="query_str")
        if query.mode not in _MODES:
            known = ", ".join(mode.value for mode in _MODES)
            raise InvalidInput(f"mode is {query.mode.value!r}; known: {known}", param="mode")
        top_k = query.similarity_top_k
        if query.mode == VectorStoreQueryMode.HYBRID and query.hybrid_top_k is not None:
            top_k = query.hybrid_top_k
        how: dict[str, Any] = {"top_k": top_k, "mode": _MODES[query.mode]}
        if query.mode == VectorStoreQueryMode.HYBRID and query.alpha is not None:
            how |= {"dense_weight": query.alpha, "lexical_weight": 1 - query.alpha}
        if query.mode == VectorStoreQueryMode.MMR:
            how["mmr"] = DEFAULT_MMR if query.mmr_threshold is None else query.mmr_threshold
        hits = self._searcher.search(
            self._store.tenant_id,
            [self._store.id],
            query.query_str,
            retrieval=Retrieval(**how),
            chosen=_filter(query),
        )
        return VectorStoreQueryResult(
            nodes=[_node(hit) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[str(hit.passage_id) for hit in hits],
        )

    def _embed(self) -> Embed:
        return self._searcher.embedder(self._store)


class RyorinRetriever(BaseRetriever):
    """Stores of a tenant as a LlamaIndex retriever; `retrieval` says how, as in a release."""

    def __init__(
        self, searcher: Searcher, tenant_id: str, store_ids: Sequence[str], retrieval: Retrieval | None = None
    ) -> None:
        super().__init__()
        self._searcher = searcher
        self._tenant_id = tenant_id
        self._store_ids = list(store_ids)
        self._retrieval = retrieval or Retrieval()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self._searcher.search(
            self._tenant_id, self._store_ids, query_bundle.query_str, retrieval=self._retrieval
        )
        return [NodeWithScore(node=_node(hit), score=hit.score) for hit in hits]


def _source(reference: str, node_id: str) -> str:
    return f"llama-index:{reference}/{node_id}"


def _node(hit: Hit) -> TextNode:
    place = {"filename": hit.filename, "title": hit.title, "page": hit.page, "document_id": hit.document_id}
    return TextNode(
        id_=str(hit.passage_id),
        text=hit.context or hit.text,
        metadata={**place, **hit.attributes},
        relationships={
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id=str(hit.attributes.get(REFERENCE, hit.document_id)))
        },
        start_char_idx=hit.start if hit.context is None else None,
        end_char_idx=hit.end if hit.context is None else None,
    )


def _filter(query: VectorStoreQuery) -> Filter | None:
    """LlamaIndex's filters, with its lists of documents and nodes, in our grammar."""
    parts = []
    if query.filters is not None and query.filters.filters:
        parts.append(_compound(query.filters))
    for key, values in ((REFERENCE, query.doc_ids), (NODE_ID, query.node_ids)):
        if values:  # an index over a store gives an empty list when it means all
            parts.append({"type": "in", "key": key, "value": list(values)})
    return parse_filter({"type": "and", "filters": parts}) if parts else None


def _compound(filters: MetadataFilters) -> dict[str, Any]:
    condition = filters.condition.value if filters.condition is not None else "and"
    return {"type": condition, "filters": [_comparison(each) for each in filters.filters]}


def _comparison(each: MetadataFilter | MetadataFilters) -> dict[str, Any]:
    if isinstance(each, MetadataFilters):
        return _compound(each)
    if each.operator not in _OPERATORS:
        known = ", ".join(operator.value for operator in _OPERATORS)
        raise InvalidInput(f"operator {each.operator.value!r} is not supported; known: {known}", param="filters")
    return {"type": _OPERATORS[each.operator], "key": each.key, "value": each.value}
