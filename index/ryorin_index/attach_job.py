"""
The job that indexes an attached file.

Its end and the document's new passages are one transaction: a worker that was killed leaves a file that is not indexed,
and one that was taken over writes nothing. Vectors are kept as they come, so the next worker embeds only the rest.
Of an archive or an e-mail all that can be read is indexed, in that one transaction; what cannot is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from ryorin.blobs import check_blob
from ryorin.catalog import Catalog
from ryorin.catalog.jobs import Lease, LeaseLost
from ryorin.catalog.tables import Document, File, Passage, VectorStore
from ryorin.digests import sha256_bytes
from ryorin.errors import InvalidInput
from ryorin.worker import Work
from ryorin_index.attach import documents_within, set_attributes
from ryorin_index.chunking import chunking_from_json
from ryorin_index.counting import counter_of
from ryorin_index.embed import Embed, open_embedder
from ryorin_index.ingest import (
    Incoming,
    Prepared,
    delete_documents,
    finish_documents,
    prepare_document,
    put_document,
    store_chunking,
    usage_bytes,
)
from ryorin_index.members import WITHIN, Opened, open_incoming, vanished_members
from ryorin_index.parse import CONTAINERS, MEDIA_TYPES
from ryorin_index.store import embedder_of

ERROR_CODES = ("unsupported_file", "invalid_file")
MAX_TOLD = 5  # members that an error names


class IndexFile:
    """
    Handler of the jobs 'index_file'.

    open_embed: opens a store's embedder; the default loads it. It is the handler's own: a question to a running server
    does not wait for a batch of passages.
    """

    def __init__(self, catalog: Catalog, open_embed: Callable[[VectorStore], Embed] | None = None) -> None:
        self._catalog = catalog
        self._open_embed = open_embed or (lambda store: open_embedder(embedder_of(catalog.settings, store)))
        self._opened: dict[str, Embed] = {}

    def run(self, work: Work) -> None:
        """Parse, cut and embed the file; searches find it when the job has succeeded."""
        found = self._find(work.lease)
        if found is None:  # detached since
            with self._catalog.session() as session:
                work.finish(session)
            return
        document, store, file = found
        chunking = work.lease.params.get("chunking")
        incoming = Incoming(
            source=document.source,
            filename=file.filename,
            data=check_blob(self._catalog.settings.blobs_dir, file.sha256).read_bytes(),
            file_id=file.id,
            chunking=None if chunking is None else chunking_from_json(chunking),
        )

        def on_batch(embedded: int) -> None:
            work.progress = {"passages_embedded": embedded}
            work.check()

        work.check()
        embed = partial(self._embed, store)
        if Path(file.filename).suffix.lower() not in CONTAINERS:
            put_document(self._catalog, store, incoming, embed, on_batch, work.finish)
            return
        opened = open_incoming(incoming)
        prepared, refused = self._prepare(store, opened, file, work)
        finish = partial(self._finish, work, store, incoming, opened.sources, refused)
        finish_documents(self._catalog, store, prepared, embed, on_batch, finish)

    def _prepare(self, store: VectorStore, opened: Opened, file: File, work: Work) -> tuple[list[Prepared], list[str]]:
        """
        What is to be written of a container, and why the rest is not.

        Raises InvalidInput when nothing in it can be read.
        """
        prepared, refused = [], [reason for _, reason in opened.refused]
        readable = False
        for document in opened.documents:
            work.check()
            inside = document.source.partition(WITHIN)[2].replace(WITHIN, "/")
            try:
                shown = replace(document, filename=f"{file.filename}/{inside}" if inside else file.filename)
                result = prepare_document(self._catalog, store, shown)
            except InvalidInput as error:
                refused.append(f"{inside}: {error.message}" if inside else error.message)
                continue
            readable = True
            if isinstance(result, Prepared):
                prepared.append(result)
        if not readable:
            raise InvalidInput(_told(file.filename, refused), code="invalid_file")
        return prepared, refused

    def _finish(
        self,
        work: Work,
        store: VectorStore,
        incoming: Incoming,
        present: set[str],
        refused: Sequence[str],
        session: Session,
    ) -> None:
        """The file's own document, and the end of the job."""
        document = session.scalar(_mine(work.lease))
        if document is None:
            raise LeaseLost(f"job {work.lease.job_id}: its document is gone")
        if gone := vanished_members(session, store, incoming.source, present):
            delete_documents(session, store, gone)
        own = document.own_attributes
        given = {key: value for key, value in document.attributes.items() if own.get(key) != value}
        set_attributes(session, store, document, given)
        chunking = incoming.chunking or store_chunking(store, counter_of(self._catalog.settings, store))
        document.chunking, document.media_type = chunking.to_json(), MEDIA_TYPES[Path(incoming.filename).suffix.lower()]
        document.sha256, document.status, document.updated_at = sha256_bytes(incoming.data), "completed", time.time()
        document.error = {"code": "invalid_file", "message": _told(incoming.filename, refused)} if refused else None
        session.flush()
        mine = session.scalar(select(func.count()).where(Passage.document_id == document.id)) or 0
        within = sum(each.usage_bytes for each in documents_within(session, store, document))
        document.usage_bytes = usage_bytes(store, document.text, mine) + within
        work.finish(session)

    def failed(self, session: Session, lease: Lease, error: Exception) -> None:
        """Say so in the document; the client sees why when the file is the reason."""
        document = session.scalar(_mine(lease))
        if document is None:
            return
        if isinstance(error, InvalidInput):
            code = error.code if error.code in ERROR_CODES else "invalid_file"
            message = error.message
        else:
            code, message = (
                "server_error",
                f"The server could not index the file; its log has more under {lease.job_id}.",
            )
        document.status, document.error = "failed", {"code": code, "message": message}

    def _find(self, lease: Lease) -> tuple[Document, VectorStore, File] | None:
        with self._catalog.session() as session:
            document = session.scalar(_mine(lease))
            if document is None or document.file_id is None:
                return None
            store = session.get_one(VectorStore, document.store_id)
            return document, store, session.get_one(File, document.file_id)

    def _embed(self, store: VectorStore) -> Embed:
        if store.embedder_digest not in self._opened:
            self._opened[store.embedder_digest] = self._open_embed(store)
        return self._opened[store.embedder_digest]


def index_file(catalog: Catalog) -> IndexFile:
    """The handler, for `ryorin.worker.KINDS`."""
    return IndexFile(catalog)


def _told(filename: str, refused: Sequence[str]) -> str:
    """In words that a client sees what of a container is not indexed."""
    if not refused:
        return f"{filename} holds no file of a format that is read."
    more = f" and {len(refused) - MAX_TOLD} more" if len(refused) > MAX_TOLD else ""
    return f"{len(refused)} of the files in {filename} cannot be read: {'; '.join(refused[:MAX_TOLD])}{more}"


def _mine(lease: Lease) -> Select[Document]:
    return select(Document).where(Document.id == lease.params["document_id"], Document.tenant_id == lease.tenant_id)
