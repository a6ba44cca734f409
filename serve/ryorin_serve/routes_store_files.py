"""
`/v1/vector_stores/{id}/files` and `/file_batches`: what is in a store, and putting files into it.

Documents that an operator added are listed too, each under its own id, as no file was uploaded for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ryorin.catalog.files import get_files
from ryorin.catalog.tables import Document, FileBatch, VectorStore
from ryorin.digests import new_id
from ryorin.errors import InvalidInput, NotFound
from ryorin.scopes import KNOWLEDGE
from ryorin_index.attach import (
    Attachment,
    attach,
    attach_batch,
    cancel_batch,
    detach,
    documents_within,
    set_attributes,
    stands_alone,
    take_store,
)
from ryorin_index.texts import read_text
from ryorin_serve.auth import ScopedRoute
from ryorin_serve.context import POLL_AFTER, Context, made_before, own_store, require_live
from ryorin_serve.paging import Page, list_object, read_page, rows_of
from ryorin_serve.requests import choice, fields_of, idempotency_key, ids, pairs, query_of, read_json
from ryorin_serve.store_files import (
    STATUSES,
    batch_object,
    document_object,
    named,
    own_batch,
    own_document,
    read_chunking,
)

MAX_BATCH_FILES = 2000
FILES = "/v1/vector_stores/{store_id}/files"
BATCHES = "/v1/vector_stores/{store_id}/file_batches"


class StoreFileRoutes:
    """The handlers."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[ScopedRoute]:
        """What is served."""
        return [
            ScopedRoute(FILES, self.create, KNOWLEDGE, methods=["POST"]),
            ScopedRoute(FILES, self.list, KNOWLEDGE),
            ScopedRoute(f"{FILES}/{{file_id}}", self.retrieve, KNOWLEDGE),
            ScopedRoute(f"{FILES}/{{file_id}}", self.update, KNOWLEDGE, methods=["POST"]),
            ScopedRoute(f"{FILES}/{{file_id}}", self.delete, KNOWLEDGE, methods=["DELETE"]),
            ScopedRoute(f"{FILES}/{{file_id}}/content", self.content, KNOWLEDGE),
            ScopedRoute(BATCHES, self.create_batch, KNOWLEDGE, methods=["POST"]),
            ScopedRoute(f"{BATCHES}/{{batch_id}}", self.retrieve_batch, KNOWLEDGE),
            ScopedRoute(f"{BATCHES}/{{batch_id}}/cancel", self.cancel_batch, KNOWLEDGE, methods=["POST"]),
            ScopedRoute(f"{BATCHES}/{{batch_id}}/files", self.list_batch, KNOWLEDGE),
        ]

    async def create(self, request: Request) -> Response:
        """Put a file into the store; it is indexed by a job."""
        body = await self._body(request, ("file_id", "attributes", "chunking_strategy"))
        shown = await self._context.in_thread(self._create, request, body)
        self._context.wake()
        return _response(shown)

    async def list(self, request: Request) -> Response:
        """The store's files, the newest first."""
        page = read_page(request, ("filter",))
        return JSONResponse(await self._context.in_thread(self._list, request, page, False))

    async def retrieve(self, request: Request) -> Response:
        """One file of the store."""
        query_of(request, ())
        return _response(await self._context.in_thread(self._retrieve, request))

    async def update(self, request: Request) -> Response:
        """Give a file other attributes."""
        body = await self._body(request, ("attributes",))
        if "attributes" not in body:
            raise InvalidInput("attributes is missing.", param="attributes")
        return _response(await self._context.in_thread(self._update, request, body))

    async def delete(self, request: Request) -> Response:
        """Take a file out of the store; the file itself stays."""
        query_of(request, ())
        file_id = await self._context.in_thread(self._delete, request)
        return JSONResponse({"id": file_id, "object": "vector_store.file.deleted", "deleted": True})

    async def content(self, request: Request) -> Response:
        """The file's text as it was read; of an archive or an e-mail a text for each document in it."""
        query_of(request, ())
        found = await self._context.in_thread(self._texts, request)
        data = [{"type": "text", "text": text} for text in found if text]
        page = {"object": "vector_store.file_content.page", "data": data, "has_more": False, "next_page": None}
        return JSONResponse(page)

    async def create_batch(self, request: Request) -> Response:
        """Put many files into the store."""
        body = await self._body(request, ("file_ids", "files", "attributes", "chunking_strategy"))
        shown = await self._context.in_thread(self._create_batch, request, body)
        self._context.wake()
        return _response(shown)

    async def retrieve_batch(self, request: Request) -> Response:
        """How far a batch is."""
        query_of(request, ())
        return _response(await self._context.in_thread(self._batch, request, False))

    async def cancel_batch(self, request: Request) -> Response:
        """Cancel what of a batch is not indexed yet."""
        query_of(request, ())
        return _response(await self._context.in_thread(self._batch, request, True))

    async def list_batch(self, request: Request) -> Response:
        """A batch's files."""
        page = read_page(request, ("filter",))
        return JSONResponse(await self._context.in_thread(self._list, request, page, True))

    async def _body(self, request: Request, allowed: tuple[str, ...]) -> dict[str, Any]:
        query_of(request, ())
        return fields_of(await read_json(request, self._context.options.max_body_bytes), allowed)

    def _create(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        (file_id,) = ids([body.get("file_id")], "file_id", 1, 1)
        attributes, chunking = pairs(body, "attributes", strings_only=False), read_chunking(body)
        with _deleted_meanwhile("file_id"), self._context.catalog.session() as session:
            store = _taken(session, request)
            files = get_files(session, store.tenant_id, [file_id])
            return document_object(attach(session, store, Attachment(files[file_id], attributes, chunking)))

    def _list(self, request: Request, page: Page, of_batch: bool) -> dict[str, Any]:
        wanted = request.query_params.get("filter")
        with self._context.catalog.session() as session:
            store = own_store(session, request)
            statement: Select[Any] = select(Document).where(Document.store_id == store.id, stands_alone())
            if of_batch:
                statement = statement.where(Document.batch_id == own_batch(session, store, request).id)

            def find(file_id: str) -> tuple[float, str] | None:
                document = session.scalar(statement.where(named(file_id.replace("\0", "?"))))
                return None if document is None else (document.created_at, document.id)

            chosen = statement
            if wanted is not None:
                chosen = statement.where(Document.status == choice(wanted, "filter", STATUSES))
            rows, more = rows_of(session, chosen, Document.created_at, Document.id, page, find)
        return list_object([document_object(document) for document in rows], more)

    def _retrieve(self, request: Request) -> dict[str, Any]:
        with self._context.catalog.session() as session:
            return document_object(own_document(session, own_store(session, request), request))

    def _update(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        attributes = pairs(body, "attributes", strings_only=False) or {}
        with self._context.catalog.session() as session:
            store = own_store(session, request)
            take_store(session, store)
            document = own_document(session, store, request)
            set_attributes(session, store, document, attributes)
            return document_object(document)

    def _delete(self, request: Request) -> str:
        with self._context.catalog.session() as session:
            store = own_store(session, request)
            take_store(session, store)
            document = own_document(session, store, request)
            detach(session, store, [document])
            return document.file_id or document.id

    def _texts(self, request: Request) -> Sequence[str]:
        with self._context.catalog.session() as session:
            store = own_store(session, request)
            document = own_document(session, store, request)
            documents = (document, *documents_within(session, store, document))
            return [read_text(session, store.tenant_id, each.id) for each in documents]

    def _create_batch(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        wanted = _wanted(body)
        key = idempotency_key(request, "vsfb_", body)
        with _deleted_meanwhile("file_ids"), self._context.catalog.session() as session:
            store = _taken(session, request)
            batch_id = new_id("vsfb_")
            if key is not None:
                earlier, batch_id = made_before(session, FileBatch, store.tenant_id, key, "batch")
                if earlier is not None:
                    return batch_object(session, earlier)
            files = get_files(session, store.tenant_id, list(wanted))
            given = [Attachment(files[file_id], *how) for file_id, how in wanted.items()]
            return batch_object(session, attach_batch(session, store, given, batch_id))

    def _batch(self, request: Request, cancelled: bool) -> dict[str, Any]:
        with self._context.catalog.session() as session:
            store = own_store(session, request)
            if cancelled:
                take_store(session, store)
            batch = own_batch(session, store, request)
            if cancelled:
                cancel_batch(session, batch)
                session.flush()
            return batch_object(session, batch)


@contextmanager
def _deleted_meanwhile(param: str) -> Iterator[None]:
    """A file that is deleted between being found and being attached is one that there is not."""
    try:
        yield
    except IntegrityError:
        raise NotFound("A file was deleted while it was being attached.", param=param) from None


def _taken(session: Session, request: Request) -> VectorStore:
    """The store to add to, its row held."""
    store = own_store(session, request)
    require_live(store)
    take_store(session, store)
    return store


def _wanted(body: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The batch's files: id → (attributes, chunking)."""
    if (body.get("file_ids") is None) == (body.get("files") is None):
        raise InvalidInput("Give one of file_ids and files.", param="file_ids")
    how = pairs(body, "attributes", strings_only=False), read_chunking(body)
    if body.get("file_ids") is not None:
        return dict.fromkeys(ids(body["file_ids"], "file_ids", 1, MAX_BATCH_FILES), how)
    for name in ("attributes", "chunking_strategy"):
        if body.get(name) is not None:
            raise InvalidInput(f"{name} goes into each of files, or with file_ids.", param=name)
    files = body["files"]
    if not isinstance(files, list) or not 1 <= len(files) <= MAX_BATCH_FILES:
        raise InvalidInput(f"files must be a list of 1 to {MAX_BATCH_FILES} objects.", param="files")
    wanted = {}
    for place, raw in enumerate(files):
        where = f"files[{place}]."
        each = fields_of(raw, ("file_id", "attributes", "chunking_strategy"), where)
        (file_id,) = ids([each.get("file_id")], f"{where}file_id", 1, 1)
        wanted[file_id] = (pairs(each, "attributes", strings_only=False, where=where), read_chunking(each, where))
    return wanted


def _response(shown: dict[str, Any]) -> Response:
    return JSONResponse(shown, headers=POLL_AFTER if shown["status"] == "in_progress" else None)
