"""
`/v1/files`. A file's bytes come back whatever its purpose is: they are the tenant's own.

A file to learn from is read when it comes: its status says whether it can be used, `status_details` which lines cannot.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from ryorin.blobs import BlobWriter, blob_path
from ryorin.catalog.files import get_file, is_kept
from ryorin.catalog.tables import File
from ryorin.errors import InvalidInput, NotFound
from ryorin.scopes import KNOWLEDGE, TRAIN
from ryorin_serve.auth import ScopedRoute
from ryorin_serve.context import Context
from ryorin_serve.files import delete_file, keep_file
from ryorin_serve.paging import Page, list_object, read_page, rows_of
from ryorin_serve.requests import caller_of, choice, idempotent_id, integer, path_id, query_of, shown_id
from ryorin_serve.uploads import receive

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
# Who reads files to learn from; named and not imported, because a gateway may do without the trainer.
CHECKER = ("ryorin_train.datasets.formats", "what_is_wrong")
MIN_EXPIRES_S, MAX_EXPIRES_S = 3600, 30 * 86400
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"


class FileRoutes:
    """The handlers."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[ScopedRoute]:
        """What is served."""
        return [
            ScopedRoute("/v1/files", self.create, KNOWLEDGE, TRAIN, methods=["POST"]),
            ScopedRoute("/v1/files", self.list, KNOWLEDGE, TRAIN),
            ScopedRoute("/v1/files/{file_id}", self.retrieve, KNOWLEDGE, TRAIN),
            ScopedRoute("/v1/files/{file_id}", self.delete, KNOWLEDGE, TRAIN, methods=["DELETE"]),
            ScopedRoute("/v1/files/{file_id}/content", self.content, KNOWLEDGE, TRAIN),
        ]

    async def create(self, request: Request) -> Response:
        """Upload a file."""
        context = self._context
        query_of(request, ())
        file_id, _ = idempotent_id(request, "file-")
        writer = await context.in_thread(BlobWriter, context.catalog.settings.blobs_dir)
        with writer:
            upload = await receive(
                request, writer, context.options.max_file_bytes, ("purpose", ANCHOR, SECONDS), context.in_thread
            )
            now = time.time()
            file = File(
                id=file_id,
                tenant_id=caller_of(request).tenant_id,
                filename=upload.filename,
                purpose=choice(upload.fields.get("purpose"), "purpose", PURPOSES),
                created_at=now,
                expires_at=_expires_at(upload.fields, now),
            )
            if file.purpose == "fine-tune":
                file.status_details = await context.in_thread(_what_is_wrong, file.filename, writer.lines())
            kept = await context.in_thread(keep_file, context.catalog, writer, file)
        return JSONResponse(file_object(kept))

    async def list(self, request: Request) -> Response:
        """The caller's files, the newest first."""
        page = read_page(request, ("purpose",), default=10_000, most=10_000)
        purpose = request.query_params.get("purpose")
        return JSONResponse(await self._context.in_thread(self._list, caller_of(request).tenant_id, page, purpose))

    async def retrieve(self, request: Request) -> Response:
        """One file."""
        return JSONResponse(file_object(await self._context.in_thread(self._file, request)))

    async def delete(self, request: Request) -> Response:
        """Delete a file, and take it out of the vector stores it is in."""
        file = await self._context.in_thread(self._file, request)
        await self._context.in_thread(delete_file, self._context.catalog, file.tenant_id, file.id)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        """The file's bytes."""
        file = await self._context.in_thread(self._file, request)
        path = blob_path(self._context.catalog.settings.blobs_dir, file.sha256)
        headers = {"x-content-type-options": "nosniff"}
        return FileResponse(path, media_type="application/octet-stream", filename=file.filename, headers=headers)

    def _file(self, request: Request) -> File:
        query_of(request, ())
        with self._context.catalog.session() as session:
            try:
                return get_file(session, caller_of(request).tenant_id, path_id(request, "file_id"))
            except NotFound:
                raise NotFound(f"No such File object: {shown_id(request, 'file_id')}", param="file_id") from None

    def _list(self, tenant_id: str, page: Page, purpose: str | None) -> dict[str, Any]:
        mine = (File.tenant_id == tenant_id, is_kept(time.time()))
        statement = select(File).where(*mine)
        if purpose is not None:
            statement = statement.where(File.purpose == choice(purpose, "purpose", PURPOSES))
        with self._context.catalog.session() as session:

            def find(file_id: str) -> tuple[float, str] | None:
                file = session.scalar(statement.where(File.id == file_id.replace("\0", "?")))
                return None if file is None else (file.created_at, file.id)

            rows, more = rows_of(session, statement, File.created_at, File.id, page, find)
        return list_object([file_object(file) for file in rows], more)


def file_object(file: File) -> dict[str, Any]:
    """A file as the API shows it."""
    shown: dict[str, Any] = {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed" if file.status_details is None else "error",
    }
    if file.status_details is not None:
        shown["status_details"] = file.status_details
    if file.expires_at is not None:
        shown["expires_at"] = int(file.expires_at)
    return shown


def _expires_at(fields: dict[str, str], now: float) -> float | None:
    if ANCHOR not in fields and SECONDS not in fields:
        return None
    choice(fields.get(ANCHOR), ANCHOR, ("created_at",))
    given = fields.get(SECONDS, "")
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise InvalidInput(
            f"{SECONDS} is {given!r}; use an integer from {MIN_EXPIRES_S} to {MAX_EXPIRES_S}.", param=SECONDS
        )
    return now + integer(int(given), SECONDS, MIN_EXPIRES_S, MAX_EXPIRES_S)


def _what_is_wrong(filename: str, lines: Iterator[bytes]) -> str | None:
    """Why a file cannot be learned from; None when it can, or when only the job can tell: the trainer is elsewhere."""
    module, function = CHECKER
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    found: str | None = getattr(importlib.import_module(module), function)(filename, lines)
    return found
