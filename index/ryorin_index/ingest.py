"""
Adding and removing documents.

A file whose bytes are the ones indexed before costs a hash and nothing else. A changed one is parsed and cut; only
passages that are new to the document are embedded. What a document was and what it becomes are swapped in one
transaction, so a reader sees the old passages or the new ones, and an interrupted run has lost nothing: run it again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Passage, VectorStore
from ryorin.digests import new_id, sha256_bytes
from ryorin.errors import Conflict, InvalidInput, NotFound, RyorinError, Unavailable
from ryorin_index.documents import MEDIA_TYPES, PassageDraft, parse_document, split_document
from ryorin_index.embed import Embed
from ryorin_index.store import next_generation

MAX_FILE_BYTES = 512 * 1024 * 1024  # the limit of OpenAI's files API
EMBED_BATCH = 16


@dataclass
class Report:
    """What a run of `add_paths` did. failed: (file, reason)."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    passages: int = 0
    embedded: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """
    After each file, and after each batch of passages within one: how many of all files are done, passages embedded so
    far, seconds since the start.
    """

    done: int
    total: int
    filename: str
    embedded: int
    seconds: float


def find_files(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """
    The files that `paths` name, folders searched through: (those of a supported format, the others found in folders).

    Hidden files and folders, and links inside folders, are passed over. Raises InvalidInput for a path that does not
    exist and OSError for a folder that may not be read; a file that is named itself is taken whatever its format, so
    that its error is reported.
    """
    files: dict[Path, None] = {}
    skipped: list[Path] = []
    for path in paths:
        if path.is_dir():
            for found in sorted(_walk(path)):
                if found.suffix.lower() in MEDIA_TYPES:
                    files[found.resolve()] = None
                else:
                    skipped.append(found)
        elif path.is_file():
            files[path.resolve()] = None
        else:
            raise InvalidInput(f"{path}: no such file or folder", param="path")
    return list(files), skipped


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder that are neither hidden nor links."""

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and not path.is_symlink() and path.is_file():
                yield path


def add_paths(
    catalog: Catalog,
    store: VectorStore,
    paths: Sequence[Path],
    embedder: Callable[[], Embed],
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Report:
    """
    Make the store hold what the files at `paths` say now. Every file is a transaction of its own.

    embedder: opens the store's embedder; called only when something must be embedded.
    A file that cannot be read is reported in `failed` and keeps the passages it had. An embedder or a database that
    does not answer ends the run: it would fail for every file.
    """
    started = time.monotonic()
    files, skipped = find_files(paths)
    report = Report(skipped=[path.name for path in skipped])
    opened: list[Embed] = []

    def embed() -> Embed:
        if not opened:
            opened.append(embedder())
        return opened[0]

    def tell(path: Path, done: int, embedded: int) -> None:
        on_progress(Progress(done, len(files), path.name, embedded, time.monotonic() - started))

    for done, path in enumerate(files, start=1):
        try:
            _add_file(catalog, store, path, embed, report, partial(tell, path, done - 1))
        except Unavailable:
            raise
        except (InvalidInput, Conflict, OSError) as error:
            report.failed.append((str(path), str(error)))
        tell(path, done, report.embedded)
    report.seconds = round(time.monotonic() - started, 3)
    return report


def remove_documents(catalog: Catalog, store: VectorStore, names: Sequence[str]) -> list[str]:
    """
    Delete documents, named by file name, source path or id; searches stop finding them at once.

    All or nothing. Raises NotFound for a name that no document has, InvalidInput for one that several have.
    """
    with catalog.session() as session:
        next_generation(session, store)
        removed = []
        for name in dict.fromkeys(names):
            wanted = {name, str(Path(name).resolve())}
            found = session.scalars(
                select(Document).where(
                    Document.store_id == store.id,
                    Document.filename.in_(wanted) | Document.source.in_(wanted) | Document.id.in_(wanted),
                )
            ).all()
            if not found:
                raise NotFound(f"store {store.name!r} has no document {name!r}; 'ryorin index documents' lists them")
            if len(found) > 1:
                sources = ", ".join(document.source for document in found)
                raise InvalidInput(f"{name!r} names {len(found)} documents ({sources}); give the path of one")
            session.execute(delete(Passage).where(Passage.document_id == found[0].id))
            session.delete(found[0])
            session.flush()
            removed.append(found[0].source)
    return removed


def _add_file(
    catalog: Catalog,
    store: VectorStore,
    path: Path,
    embed: Callable[[], Embed],
    report: Report,
    on_batch: Callable[[int], None],
) -> None:
    """on_batch: told after each batch of passages how many the whole run has embedded."""
    if not _is_text(str(path)):
        raise InvalidInput(f"{path.name} has a name that is not UTF-8; rename it", code="invalid_file")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise InvalidInput(f"{path.name} has {size:,} bytes, the limit is {MAX_FILE_BYTES:,}", code="invalid_file")
    data = path.read_bytes()
    sha256 = sha256_bytes(data)
    with catalog.session() as session:
        before = _document(session, store, path)
        if before is not None and before.sha256 == sha256:
            report.unchanged.append(path.name)
            return
        kept = _vectors(session, before.id) if before is not None else {}
    parsed = parse_document(path, data)
    drafts = split_document(parsed)
    wanted = {draft.sha256(parsed.title): draft for draft in drafts}
    missing = [draft for digest, draft in wanted.items() if digest not in kept]
    embedded = report.embedded
    vectors = kept | _embed(embed, missing, parsed.title, store, lambda count: on_batch(embedded + count))
    try:
        with catalog.session() as session:
            generation = next_generation(session, store)
            document = _document(session, store, path)
            if (document.sha256 if document else None) != (before.sha256 if before else None):
                raise Conflict(f"{path.name} was indexed by another process at the same time; run the command again")
            if document is None:
                document = Document(id=new_id("doc_"), tenant_id=store.tenant_id, store_id=store.id, source=str(path))
                session.add(document)
            document.filename, document.title, document.media_type = path.name, parsed.title, parsed.media_type
            document.sha256, document.text, document.updated_at = sha256, parsed.text, time.time()
            session.flush()
            session.execute(delete(Passage).where(Passage.document_id == document.id))
            session.add_all(
                Passage(
                    tenant_id=store.tenant_id,
                    store_id=store.id,
                    document_id=document.id,
                    generation=generation,
                    ordinal=ordinal,
                    text=draft.text,
                    sha256=draft.sha256(parsed.title),
                    heading=draft.heading,
                    start=draft.start,
                    end=draft.end,
                    page=draft.page,
                    vector=vectors[draft.sha256(parsed.title)],
                )
                for ordinal, draft in enumerate(drafts)
            )
    except IntegrityError as error:
        raise Conflict(f"{path.name} was indexed by another process at the same time; run the command again") from error
    (report.added if before is None else report.changed).append(path.name)
    report.passages += len(drafts)
    report.embedded += len(missing)


def _document(session: Session, store: VectorStore, path: Path) -> Document | None:
    return session.scalar(select(Document).where(Document.store_id == store.id, Document.source == str(path)))


def _vectors(session: Session, document_id: str) -> dict[str, bytes]:
    rows = session.execute(select(Passage.sha256, Passage.vector).where(Passage.document_id == document_id))
    return {row.sha256: row.vector for row in rows}


def _embed(
    embed: Callable[[], Embed],
    drafts: Sequence[PassageDraft],
    title: str,
    store: VectorStore,
    on_batch: Callable[[int], None],
) -> dict[str, bytes]:
    vectors: dict[str, bytes] = {}
    for batch in _batches(drafts):
        rows = embed().passages([draft.embedded_text(title) for draft in batch])
        if rows.shape != (len(batch), store.dimensions):
            raise RyorinError(
                f"embedder gave vectors of shape {rows.shape}, store {store.name!r} has {store.dimensions} dimensions"
            )
        if not np.isfinite(rows).all():
            raise RyorinError("the embedder gave a vector that is not finite")
        for draft, row in zip(batch, rows, strict=True):
            vectors[draft.sha256(title)] = row.astype("<f4").tobytes()
        on_batch(len(vectors))
    return vectors


def _is_text(name: str) -> bool:
    """Whether a name can be kept: Python holds the bytes of one that is not UTF-8 as halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _batches(drafts: Sequence[PassageDraft]) -> Iterator[Sequence[PassageDraft]]:
    for at in range(0, len(drafts), EMBED_BATCH):
        yield drafts[at : at + EMBED_BATCH]
