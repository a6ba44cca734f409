"""
`/v1/vector_stores`: stores and their search.

Stores that an operator made are here too. One that is made here has its id as the operators' name; what the API calls
its name is the title.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ryorin.catalog import audit
from ryorin.catalog.files import get_files
from ryorin.catalog.tables import Document, Tenant, VectorStore
from ryorin.catalog.tenants import lock_tenant
from ryorin.digests import new_id
from ryorin.errors import InvalidInput, NotFound, Unavailable
from ryorin.filters import parse_filter
from ryorin.models.registry import Embedder, get_embedder
from ryorin.scopes import KNOWLEDGE
from ryorin_index.attach import Attachment, attach, stands_alone, take_store
from ryorin_index.purge import delete_store
from ryorin_index.search import MAX_QUERIES
from ryorin_index.store import expires_at, is_expired
from ryorin_serve.auth import Caller, ScopedRoute
from ryorin_serve.context import POLL_AFTER, Context, made_before, own_store, require_live
from ryorin_serve.paging import Page, list_object, read_page, rows_of
from ryorin_serve.ranking import read_ranking
from ryorin_serve.requests import (
    caller_of,
    choice,
    fields_of,
    idempotency_key,
    ids,
    integer,
    pairs,
    query_of,
    read_json,
    text,
)
from ryorin_serve.store_files import STATUSES, read_chunking

MAX_NAME_CHARACTERS = 256
MAX_DESCRIPTION_CHARACTERS = 512
MAX_CREATE_FILES = 500
MAX_DAYS = 365


class StoreRoutes:
    """The handlers."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[ScopedRoute]:
        """What is served."""
        return [
            ScopedRoute("/v1/vector_stores", self.create, KNOWLEDGE, methods=["POST"]),
            ScopedRoute("/v1/vector_stores", self.list, KNOWLEDGE),
            ScopedRoute("/v1/vector_stores/{store_id}", self.retrieve, KNOWLEDGE),
            ScopedRoute("/v1/vector_stores/{store_id}", self.modify, KNOWLEDGE, methods=["POST"]),
            ScopedRoute("/v1/vector_stores/{store_id}", self.delete, KNOWLEDGE, methods=["DELETE"]),
            ScopedRoute("/v1/vector_stores/{store_id}/search", self.search, KNOWLEDGE, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """Make a store, and put files into it."""
        allowed = ("name", "description", "file_ids", "metadata", "expires_after", "chunking_strategy")
        body = await self._body(request, allowed)
        shown = await self._context.in_thread(self._create, request, body)
        self._context.wake()
        return _response(shown)

    async def list(self, request: Request) -> Response:
        """The caller's stores, the newest first."""
        page = read_page(request)
        return JSONResponse(await self._context.in_thread(self._list, caller_of(request), page))

    async def retrieve(self, request: Request) -> Response:
        """One store."""
        query_of(request, ())
        return _response(await self._context.in_thread(self._retrieve, request))

    async def modify(self, request: Request) -> Response:
        """Change a store's name, metadata or expiry. One that has expired is in use again."""
        body = await self._body(request, ("name", "metadata", "expires_after"))
        return _response(await self._context.in_thread(self._modify, request, body))

    async def delete(self, request: Request) -> Response:
        """Delete a store; its files stay. Refused while a release answers from it."""
        query_of(request, ())
        store_id = await self._context.in_thread(self._delete, request)
        return JSONResponse({"id": store_id, "object": "vector_store.deleted", "deleted": True})

    async def search(self, request: Request) -> Response:
        """The passages that suit a question or several."""
        allowed = ("query", "filters", "max_num_results", "ranking_options", "rewrite_query")
        body = await self._body(request, allowed)
        return JSONResponse(await self._context.in_thread(self._search, request, body))

    async def _body(self, request: Request, allowed: tuple[str, ...]) -> dict[str, Any]:
        query_of(request, ())
        return fields_of(await read_json(request, self._context.options.max_body_bytes), allowed)

    def _create(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        catalog, tenant_id = self._context.catalog, caller_of(request).tenant_id
        chunking = read_chunking(body)
        file_ids = ids(body.get("file_ids") or [], "file_ids", 0, MAX_CREATE_FILES)
        title = text(body, "name", MAX_NAME_CHARACTERS) or ""
        description = text(body, "description", MAX_DESCRIPTION_CHARACTERS) or ""
        metadata = pairs(body, "metadata", strings_only=True) or {}
        days = _days(body)
        key = idempotency_key(request, "vs_", body)
        store_id = new_id("vs_")
        with catalog.session() as session:
            if key is not None:
                lock_tenant(session, session.get_one(Tenant, tenant_id))
                earlier, store_id = made_before(session, VectorStore, tenant_id, key, "vector store")
                if earlier is not None:
                    return store_objects(session, [earlier])[0]
            files = get_files(session, tenant_id, file_ids)
            embedder = self._embedder()
            store = VectorStore(
                id=store_id,
                tenant_id=tenant_id,
                name=store_id,
                title=title,
                description=description,
                attributes=metadata,
                embedder=embedder.name,
                embedder_digest=embedder.digest,
                dimensions=embedder.dimensions,
                chunking=None if chunking is None else chunking.to_json(),
                expires_after_days=days,
            )
            session.add(store)
            audit.note(session, tenant_id, "store.create", title or store_id, id=store_id)
            session.flush()
            for file_id in file_ids:
                attach(session, store, Attachment(files[file_id], chunking=chunking))
            return store_objects(session, [store])[0]

    def _embedder(self) -> Embedder:
        try:
            return get_embedder(self._context.catalog.settings, self._context.options.embedder)
        except NotFound as missing:
            raise Unavailable(
                f"This server has no embedder for new vector stores: {missing.message}", code="no_embedder"
            ) from missing

    def _list(self, caller: Caller, page: Page) -> dict[str, Any]:
        statement = select(VectorStore).where(VectorStore.tenant_id == caller.tenant_id)
        with self._context.catalog.session() as session:

            def find(store_id: str) -> tuple[float, str] | None:
                store = session.scalar(statement.where(VectorStore.id == store_id.replace("\0", "?")))
                return None if store is None else (store.created_at, store.id)

            rows, more = rows_of(session, statement, VectorStore.created_at, VectorStore.id, page, find)
            return list_object(store_objects(session, rows), more)

    def _retrieve(self, request: Request) -> dict[str, Any]:
        with self._context.catalog.session() as session:
            return store_objects(session, [own_store(session, request)])[0]

    def _modify(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        title = text(body, "name", MAX_NAME_CHARACTERS)
        metadata = pairs(body, "metadata", strings_only=True)
        days = _days(body)
        with self._context.catalog.session() as session:
            store = own_store(session, request)
            take_store(session, store)
            if title is not None:
                store.title = title
            if "metadata" in body:
                store.attributes = metadata or {}
            if "expires_after" in body:
                store.expires_after_days = days
            session.flush()
            return store_objects(session, [store])[0]

    def _delete(self, request: Request) -> str:
        with self._context.catalog.session() as session:
            store = own_store(session, request)
        delete_store(self._context.catalog, store)
        return store.id

    def _search(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        queries = _queries(body.get("query"))
        retrieval = read_ranking(body, integer(body.get("max_num_results", 10), "max_num_results", 1, 50))
        if body.get("rewrite_query") not in (None, False):
            raise InvalidInput(
                "rewrite_query must be false: this server searches for what is asked.", param="rewrite_query"
            )
        chosen = None if body.get("filters") is None else parse_filter(body["filters"])
        with self._context.catalog.session() as session:
            store = own_store(session, request)
            require_live(store)
        hits = self._context.searcher.search_many(
            store.tenant_id, [store.id], queries, retrieval=retrieval, chosen=chosen
        )
        with self._context.catalog.session() as session:
            take_store(session, store)
        return {
            "object": "vector_store.search_results.page",
            "search_query": queries,
            "data": [
                {
                    "file_id": hit.file_id or hit.document_id,
                    "filename": hit.filename,
                    "score": round(hit.score, 6),
                    "attributes": hit.attributes,
                    "content": [{"type": "text", "text": hit.text}],
                }
                for hit in hits
            ],
            "has_more": False,
            "next_page": None,
        }


def store_objects(session: Session, stores: Sequence[VectorStore]) -> list[dict[str, Any]]:
    """Stores as the API shows them, counted in one statement."""
    counts = {store.id: dict.fromkeys(STATUSES, 0) for store in stores}
    sizes = dict.fromkeys(counts, 0)
    for store_id, status, count, size in session.execute(
        select(Document.store_id, Document.status, func.count(), func.sum(Document.usage_bytes))
        .where(Document.store_id.in_(counts), stands_alone())
        .group_by(Document.store_id, Document.status)
    ):
        counts[store_id][status] = count
        sizes[store_id] += int(size)
    return [_store_object(store, counts[store.id], sizes[store.id]) for store in stores]


def _store_object(store: VectorStore, counts: dict[str, int], size: int) -> dict[str, Any]:
    end = expires_at(store)
    shown = {
        "id": store.id,
        "object": "vector_store",
        "created_at": int(store.created_at),
        "name": store.title,
        "description": store.description,
        "usage_bytes": size,
        "file_counts": {**counts, "total": sum(counts.values())},
        "status": "expired" if is_expired(store) else "in_progress" if counts["in_progress"] else "completed",
        "last_active_at": int(store.last_active_at),
        "expires_at": None if end is None else int(end),
        "metadata": store.attributes,
    }
    if store.expires_after_days is not None:
        shown["expires_after"] = {"anchor": "last_active_at", "days": store.expires_after_days}
    return shown


def _response(shown: dict[str, Any]) -> Response:
    return JSONResponse(shown, headers=POLL_AFTER if shown["status"] == "in_progress" else None)


def _days(body: dict[str, Any]) -> int | None:
    if body.get("expires_after") is None:
        return None
    given = fields_of(body["expires_after"], ("anchor", "days"), "expires_after.")
    choice(given.get("anchor"), "expires_after.anchor", ("last_active_at",))
    return integer(given.get("days"), "expires_after.days", 1, MAX_DAYS)


def _queries(value: Any) -> list[str]:
    queries = [value] if isinstance(value, str) else value
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise InvalidInput("query must be a string or a list of strings.", param="query")
    if not 1 <= len(queries) <= MAX_QUERIES:
        raise InvalidInput(f"query has {len(queries)} strings; give 1 to {MAX_QUERIES}.", param="query")
    return queries
