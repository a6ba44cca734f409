"""
The job that indexes an attached file.

Its end and the document's new passages are one transaction: a worker that was killed leaves a file that is not indexed,
and one that was taken over writes nothing. Vectors are kept as they come, so the next worker embeds only the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from ryorin.blobs import check_blob
from ryorin.catalog import Catalog
from ryorin.catalog.jobs import Lease
from ryorin.catalog.tables import Document, File, VectorStore
from ryorin.errors import InvalidInput
from ryorin.worker import Work
from ryorin_index.chunking import chunking_from_json
from ryorin_index.embed import Embed, open_embedder
from ryorin_index.ingest import Incoming, put_document
from ryorin_index.store import embedder_of

ERROR_CODES = ("unsupported_file", "invalid_file")


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
        put_document(self._catalog, store, incoming, partial(self._embed, store), on_batch, work.finish)

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


def _mine(lease: Lease) -> Select[Document]:
    return select(Document).where(Document.id == lease.params["document_id"], Document.tenant_id == lease.tenant_id)
