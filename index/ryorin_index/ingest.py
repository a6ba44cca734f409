"""
Putting documents into a store and taking them out.

A document whose bytes are the ones indexed before costs a hash and nothing else. A changed one is parsed and cut; only
texts that have no vector yet are embedded, and passages that did not change stay the rows they are. What a document
was and what it becomes are swapped in one transaction, so a reader sees the old passages or the new ones, and an
interrupted run has lost nothing: run it again.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Passage, Tombstone, VectorStore
from ryorin.digests import new_id, sha256_bytes
from ryorin.errors import Conflict, InvalidInput, NotFound, Unavailable
from ryorin_index.chunking import Chunking, chunking_from_json, default_chunking
from ryorin_index.counting import TokenCounter, counter_of
from ryorin_index.embed import Embed
from ryorin_index.language import document_language
from ryorin_index.members import open_incoming, vanished_members
from ryorin_index.parse import CONTAINERS, MEDIA_TYPES, parse_document
from ryorin_index.passages import PassageDraft, split_document
from ryorin_index.store import next_generation
from ryorin_index.vectors import LOOKUP_BATCH, VectorsGone, embed_missing, require_vectors

MAX_FILE_BYTES = 512 * 1024 * 1024  # the limit of OpenAI's files API
PUT_ATTEMPTS = 10  # with a purge that never rests, 3 were too few


@dataclass(frozen=True)
class Incoming:
    """
    A document on its way into a store.

    source: what it is known by in the store, its resolved path or URL. data: its bytes.
    fingerprint: the source's cheap sign of change, kept with the document.
    attributes: what searches filter by, over what the document says of itself; None keeps those it was given before.
    chunking: how long its passages are; None for the store's. A document that was cut otherwise is cut anew.
    """

    source: str
    filename: str
    data: bytes
    fingerprint: str = ""
    source_id: str | None = None
    file_id: str | None = None
    attributes: dict[str, Any] | None = None
    chunking: Chunking | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a document. passages: how many it has now; embedded: how many of them needed the embedder."""

    change: Literal["added", "changed", "unchanged"]
    document_id: str
    passages: int = 0
    embedded: int = 0


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
            opened_file = open_incoming(_read(path))
        except (InvalidInput, OSError) as error:
            report.failed.append((str(path), str(error)))
            tell(path, done, report.embedded)
            continue
        report.failed += opened_file.refused
        report.skipped += [Path(source).name for source in opened_file.skipped]
        for incoming in opened_file.documents:
            on_batch = partial(_tell_batch, partial(tell, path, done - 1), report.embedded)
            try:
                outcome = put_document(catalog, store, incoming, embed, on_batch)
            except Unavailable:
                raise
            except (InvalidInput, Conflict) as error:
                report.failed.append((incoming.source, str(error)))
            else:
                getattr(report, outcome.change).append(incoming.filename)
                report.passages += outcome.passages
                report.embedded += outcome.embedded
        _remove_vanished(catalog, store, path, opened_file.sources)
        tell(path, done, report.embedded)
    report.seconds = round(time.monotonic() - started, 3)
    return report


def put_document(
    catalog: Catalog,
    store: VectorStore,
    incoming: Incoming,
    embed: Callable[[], Embed],
    on_batch: Callable[[int], None] = lambda embedded: None,
    within: Callable[[Session], None] = lambda session: None,
) -> Outcome:
    """
    Make the store hold what `incoming` says; searches find it when this returns.

    embed: opens the store's embedder; called only when a text has no vector yet.
    on_batch: told after each batch how many passages of this document have been embedded.
    within: called in the transaction that changes the document, at its end; what it raises undoes the change.
    Raises InvalidInput when it cannot be read, and what the store had of it stays; Conflict when another process put
    the same document at the same time, or the store's embedder is no longer the one that `store` says; Unavailable
    when the embedder does not answer.
    """
    for attempt in range(1, PUT_ATTEMPTS + 1):
        try:
            return _put(catalog, store, incoming, embed, on_batch, within)
        except VectorsGone:
            if attempt == PUT_ATTEMPTS:
                raise
    raise AssertionError("not reached")


def _put(
    catalog: Catalog,
    store: VectorStore,
    incoming: Incoming,
    embed: Callable[[], Embed],
    on_batch: Callable[[int], None],
    within: Callable[[Session], None],
) -> Outcome:
    sha256 = sha256_bytes(incoming.data)
    counter = counter_of(catalog.settings, store)
    chunking = incoming.chunking or store_chunking(store, counter)
    with catalog.session() as session:
        before = _document(session, store, incoming.source)
        if before is not None and _same(before, incoming, sha256, chunking):
            _touch(before, incoming)
            before.status, before.error = "completed", None
            within(session)
            return Outcome("unchanged", before.id)
    parsed = parse_document(Path(incoming.filename), incoming.data)
    drafts = split_document(parsed, chunking, counter)
    embedded = _embed_missing(catalog, store, drafts, parsed.title, embed, on_batch)
    conflict = Conflict(f"{incoming.filename} was indexed by another process at the same time; run the command again")
    try:
        with catalog.session() as session:
            generation = next_generation(session, store)
            document = _document(session, store, incoming.source)
            if (document.sha256 if document else None) != (before.sha256 if before else None):
                raise conflict
            if document is None:
                document = Document(
                    id=new_id("doc_"),
                    tenant_id=store.tenant_id,
                    store_id=store.id,
                    source=incoming.source,
                    attributes={},
                    own_attributes={},
                )
                session.add(document)
            _touch(document, incoming)
            _set_attributes(document, parsed.attributes, incoming.attributes)
            document.title, document.media_type, document.text = parsed.title, parsed.media_type, parsed.text
            document.language, document.chunking = document_language(parsed.text), chunking.to_json()
            document.sha256, document.status, document.error = sha256, "completed", None
            document.generation, document.updated_at = generation, time.time()
            document.usage_bytes = len(parsed.text.encode()) + 4 * store.dimensions * len(drafts)
            session.flush()
            _swap_passages(session, store, document, drafts, generation)
            session.flush()
            require_vectors(session, store, generation)
            within(session)
            document_id = document.id
    except IntegrityError as error:
        raise conflict from error
    return Outcome("added" if before is None else "changed", document_id, len(drafts), embedded)


def store_chunking(store: VectorStore, counter: TokenCounter) -> Chunking:
    """How long a store's passages are, where a document does not say otherwise."""
    return default_chunking(counter.limit) if store.chunking is None else chunking_from_json(store.chunking)


def delete_documents(
    session: Session, store: VectorStore, documents: Sequence[Document], generation: int | None = None
) -> None:
    """
    Delete documents of the store with their passages, in the session's transaction.

    generation: the one that the transaction has begun; None counts the store's up.
    """
    generation = generation or next_generation(session, store)
    for document in documents:
        gone = list(session.scalars(select(Passage.id).where(Passage.document_id == document.id)))
        bury_passages(session, store, gone, generation)
        session.delete(document)
        session.flush()


def remove_documents(catalog: Catalog, store: VectorStore, names: Sequence[str]) -> list[str]:
    """
    Delete documents, named by file name, source path or id; searches stop finding them at once.

    All or nothing. Raises NotFound for a name that no document has, InvalidInput for one that several have.
    """
    with catalog.session() as session:
        chosen = []
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
            chosen.append(found[0])
        chosen = list(dict.fromkeys(chosen))
        delete_documents(session, store, chosen)
        return [document.source for document in chosen]


def _remove_vanished(catalog: Catalog, store: VectorStore, path: Path, present: set[str]) -> None:
    if path.suffix.lower() not in CONTAINERS:
        return
    with catalog.session() as session:
        if gone := vanished_members(session, store, str(path), present):
            delete_documents(session, store, gone)


def _tell_batch(tell: Callable[[int], None], before: int, embedded: int) -> None:
    tell(before + embedded)


def _read(path: Path) -> Incoming:
    if not _is_text(str(path)):
        raise InvalidInput(f"{path.name} has a name that is not UTF-8; rename it", code="invalid_file")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise InvalidInput(f"{path.name} has {size:,} bytes, the limit is {MAX_FILE_BYTES:,}", code="invalid_file")
    return Incoming(source=str(path), filename=path.name, data=path.read_bytes())


def _document(session: Session, store: VectorStore, source: str) -> Document | None:
    return session.scalar(select(Document).where(Document.store_id == store.id, Document.source == source))


def _same(document: Document, incoming: Incoming, sha256: str, chunking: Chunking) -> bool:
    attributes = document.attributes
    if incoming.attributes is not None:
        attributes = document.own_attributes | incoming.attributes
    return (document.sha256, document.filename, document.attributes, document.chunking) == (
        sha256,
        incoming.filename,
        attributes,
        chunking.to_json(),
    )


def _touch(document: Document, incoming: Incoming) -> None:
    """What is known of a document without reading it."""
    document.filename, document.fingerprint = incoming.filename, incoming.fingerprint
    document.source_id = incoming.source_id or document.source_id
    document.file_id = incoming.file_id or document.file_id


def _set_attributes(document: Document, own: dict[str, Any], given: dict[str, Any] | None) -> None:
    """What a document says of itself, and over it what its operator says; None keeps what that said before."""
    if given is None:
        before = document.own_attributes
        given = {key: value for key, value in document.attributes.items() if before.get(key) != value}
    document.attributes, document.own_attributes = own | given, own


def _swap_passages(
    session: Session, store: VectorStore, document: Document, drafts: Sequence[PassageDraft], generation: int
) -> None:
    """Make the document's passages those of `drafts`: rows whose text stays are kept, others removed or added."""
    present: dict[str, list[Passage]] = defaultdict(list)
    for passage in session.scalars(
        select(Passage).where(Passage.document_id == document.id).order_by(Passage.ordinal.desc())
    ):
        present[passage.sha256].append(passage)
    for ordinal, draft in enumerate(drafts):
        digest = draft.sha256(document.title)
        place = {
            "ordinal": ordinal,
            "heading": draft.heading,
            "start": draft.start,
            "end": draft.end,
            "page": draft.page,
            "tokens": draft.tokens,
            "language": draft.language,
            "fold_key": draft.fold_key,
        }
        if present[digest]:
            passage = present[digest].pop()
            for name, value in place.items():
                setattr(passage, name, value)
            continue
        session.add(
            Passage(
                tenant_id=store.tenant_id,
                store_id=store.id,
                document_id=document.id,
                generation=generation,
                text=draft.text,
                sha256=digest,
                **place,
            )
        )
    bury_passages(session, store, [passage.id for left in present.values() for passage in left], generation)


def bury_passages(session: Session, store: VectorStore, passage_ids: Sequence[int], generation: int) -> None:
    """Delete passages and leave the tombstones that readers go by."""
    for at in range(0, len(passage_ids), LOOKUP_BATCH):
        batch = passage_ids[at : at + LOOKUP_BATCH]
        session.add_all(Tombstone(passage_id=gone, store_id=store.id, generation=generation) for gone in batch)
        session.execute(delete(Passage).where(Passage.id.in_(batch)).execution_options(synchronize_session="fetch"))


def _embed_missing(
    catalog: Catalog,
    store: VectorStore,
    drafts: Sequence[PassageDraft],
    title: str,
    embed: Callable[[], Embed],
    on_batch: Callable[[int], None],
) -> int:
    """Give every draft's text a vector; each batch is kept as soon as it is there. Returns how many were embedded."""
    texts = {draft.sha256(title): draft.embedded_text(title) for draft in drafts}
    return embed_missing(catalog, store, texts, embed, on_batch)


def _is_text(name: str) -> bool:
    """Whether a name can be kept: Python holds the bytes of one that is not UTF-8 as halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
