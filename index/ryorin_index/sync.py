"""
Making a store equal to its sources; and adding files that are named one by one, which is the same without deleting.

Files are read and cut by threads while those before them are embedded, their texts in batches across documents; each
document is then swapped in a transaction of its own. What was done is recorded with the passages, so a run that was
broken off is taken up by the next: it finds what is left.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sqlalchemy import func, or_, select, update

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Source, VectorStore
from ryorin.errors import Conflict, InvalidInput, NotFound, RyorinError, Unavailable
from ryorin_index.chunking import cut_mark, cut_otherwise
from ryorin_index.counting import counter_of
from ryorin_index.embed import Embed
from ryorin_index.ingest import (
    Incoming,
    Outcome,
    Prepared,
    delete_documents,
    fail_document,
    finish_document,
    prepare_document,
    rename_document,
    store_chunking,
)
from ryorin_index.maintenance import maintain_quietly
from ryorin_index.members import WITHIN, open_incoming, vanished_members
from ryorin_index.parse import CONTAINERS, MEDIA_TYPES
from ryorin_index.plan import Feed, Plan, Rename, Work, make_plan, plan_files
from ryorin_index.sources import Item, open_connector
from ryorin_index.sources.folder import Files, find_files
from ryorin_index.vectors import MAX_EMBED_BATCH, embed_missing

READERS = 2
READ_AHEAD = 256  # files read and cut, or waiting to be
DELETE_BATCH = 100


@dataclass
class Report:
    """
    What a run did, by file name. failed: (file, reason). errors: (source, reason) of sources that could not be listed.

    notes: (source, what the operator is told of it, such as that not all of it was seen).
    deleted is what was deleted, kept what a source lost and was not deleted because nobody said so.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    passages: int = 0
    embedded: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """
    After each file, and after each batch of passages: how many of the files to be read are done, passages embedded so
    far, seconds since the start.
    """

    done: int
    total: int
    filename: str
    embedded: int
    seconds: float


OnProgress = Callable[[Progress], None]
OnListed = Callable[[str, int], None]  # the source, how much of it was seen so far


def add_paths(
    catalog: Catalog,
    store: VectorStore,
    paths: Sequence[Path],
    embedder: Callable[[], Embed],
    on_progress: OnProgress = lambda progress: None,
) -> Report:
    """
    Make the store hold what the files at `paths` say now. Every file is a transaction of its own.

    embedder: opens the store's embedder; called only when something must be embedded.
    A file that cannot be read is reported in `failed` and keeps the passages it had. An embedder or a database that
    does not answer ends the run: it would fail for every file.
    """
    started = time.monotonic()
    files, skipped = find_files(paths, frozenset(MEDIA_TYPES))
    plan = plan_files(catalog, store, Feed(Files(files), "files", cut=cut_of(catalog, store)))
    report = _apply(catalog, store, plan, embedder, on_progress, started)
    report.skipped += [path.name for path in skipped]
    return report


def sync_store(
    catalog: Catalog,
    store: VectorStore,
    sources: Sequence[Source],
    embedder: Callable[[], Embed],
    on_progress: OnProgress = lambda progress: None,
    confirm: Callable[[str], bool] = lambda question: False,
    *,
    allow_deletions: bool = False,
    on_listed: OnListed = lambda source, count: None,
) -> Report:
    """
    Make the store equal to its sources.

    embedder: opens the store's embedder; called only when something must be embedded.
    confirm: asked before the documents go of a source that lost most of them; allow_deletions: it is not asked.
    on_listed: told by sources whose listing takes a while how much they have seen.
    A file that cannot be read is reported in `failed` and keeps the passages it had; a source that cannot be listed
    in `errors`. Raises Conflict while another process syncs the store, Unavailable when the embedder does not answer.
    """
    started = time.monotonic()
    with only_one(catalog, store), _feeds(catalog, store, sources, on_listed) as feeds:
        plan = make_plan(catalog, store, feeds, empty_is_fine=allow_deletions)
        kept = [] if allow_deletions else _held_back(plan, confirm)
        report = _apply(catalog, store, plan, embedder, on_progress, started)
        report.kept = kept
        _note_synced(catalog, plan)
        if report.added or report.changed or report.deleted:
            maintain_quietly(catalog, store)
    report.seconds = round(time.monotonic() - started, 3)
    return report


def dry_run(
    catalog: Catalog,
    store: VectorStore,
    sources: Sequence[Source],
    on_listed: OnListed = lambda source, count: None,
) -> tuple[Report, list[str]]:
    """
    What a sync would do, without doing it; and what it would ask.

    Files whose fingerprint changed are read: those with the bytes they had count as unchanged.
    """
    started = time.monotonic()
    with only_one(catalog, store), _feeds(catalog, store, sources, on_listed) as feeds:
        plan = make_plan(catalog, store, feeds)
        questions = [_question(*held) for held in plan.held]
        report = _report_of(plan)
        for work in plan.work:
            if not work.known:
                report.added.append(work.item.filename)
                continue
            try:
                data = work.feed.connector.read(work.item).data
            except (InvalidInput, OSError, Unavailable) as error:
                report.failed.append((work.item.source, str(error)))
                continue
            same = hashlib.sha256(data).hexdigest() in _digests_of(catalog, work) and not work.cut_otherwise
            (report.unchanged if same else report.changed).append(work.item.filename)
        report.renamed = [(rename.known.source, rename.work.item.source) for rename in plan.renamed]
        report.deleted = [row.source for _, row in plan.gone]
    report.seconds = round(time.monotonic() - started, 3)
    return report, questions


@contextmanager
def only_one(catalog: Catalog, store: VectorStore) -> Iterator[None]:
    """
    Hold the store's sync while the block runs; a process that dies lets go of it.

    Raises Conflict when another process holds it.
    """
    taken = Conflict(f"store {store.name!r} is being synced by another process; wait for it, or end it and repeat this")
    if catalog.engine.dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(f"sync {store.id}".encode()).digest()[:8], signed=True)
        # The lock is the connection's, not a transaction's: none is held open while the run goes on.
        with catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if not connection.scalar(select(func.pg_try_advisory_lock(key))):
                raise taken
            try:
                yield
            finally:
                connection.scalar(select(func.pg_advisory_unlock(key)))
        return
    folder = catalog.settings.home / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{store.id}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        yield


@contextmanager
def _feeds(
    catalog: Catalog, store: VectorStore, sources: Sequence[Source], on_listed: OnListed
) -> Iterator[list[Feed]]:
    """The sources with their connectors, which are closed at the end."""
    feeds: list[Feed] = []
    cut = cut_of(catalog, store)
    try:
        for source in sources:
            attributes = source.options.get("attributes") or None
            connector = open_connector(catalog.settings, source, partial(on_listed, source.uri))
            feeds.append(Feed(connector, source.uri, source.id, attributes, cut))
        yield feeds
    finally:
        for feed in feeds:
            feed.connector.close()


def cut_of(catalog: Catalog, store: VectorStore) -> str:
    """How the store cuts its documents now."""
    return cut_mark(store.embedder_digest, store_chunking(store, counter_of(catalog.settings, store)))


def _held_back(plan: Plan, confirm: Callable[[str], bool]) -> list[str]:
    """Take deletions out of the plan that nobody allows; returns the documents that stay."""
    kept = []
    for held in plan.held:
        if not confirm(_question(*held)):
            kept += [row.source for feed, row in plan.gone if feed is held[0]]
            plan.gone = [(feed, row) for feed, row in plan.gone if feed is not held[0]]
    return kept


def _question(feed: Feed, lost: int, total: int) -> str:
    return f"{feed.name} lost {lost} of its {total} documents; delete them from the store?"


def _report_of(plan: Plan) -> Report:
    return Report(
        unchanged=list(plan.unchanged),
        failed=list(plan.failed),
        errors=list(plan.errors),
        notes=list(plan.notes),
        skipped=[suffix or "(no suffix)" for suffix in plan.skipped.elements()],
    )


def _apply(
    catalog: Catalog,
    store: VectorStore,
    plan: Plan,
    embedder: Callable[[], Embed],
    on_progress: OnProgress,
    started: float,
) -> Report:
    """Carry a plan out: renames first, so that what they free can be used, deletions last."""
    report = _report_of(plan)
    opened: list[Embed] = []

    def embed() -> Embed:
        if not opened:
            opened.append(embedder())
        return opened[0]

    def tell(filename: str, done: int, embedded: int) -> None:
        on_progress(Progress(done, len(plan.work), filename, embedded, time.monotonic() - started))

    for rename in plan.renamed:
        try:
            with catalog.session() as session:
                rename_document(session, store, rename.known.id, _renamed(rename))
            report.renamed.append((rename.known.source, rename.work.item.source))
        except (Conflict, NotFound) as error:
            report.failed.append((rename.work.item.source, str(error)))
    _index(catalog, store, plan.work, embed, report, tell)
    for at in range(0, len(plan.gone), DELETE_BATCH):
        rows = [row for _, row in plan.gone[at : at + DELETE_BATCH]]
        _delete(catalog, store, [row.id for row in rows])
        report.deleted += [row.source for row in rows]
    report.seconds = round(time.monotonic() - started, 3)
    return report


def _index(
    catalog: Catalog,
    store: VectorStore,
    works: Sequence[Work],
    embed: Callable[[], Embed],
    report: Report,
    tell: Callable[[str, int, int], None],
) -> None:
    """Read, cut, embed and write; several files are under way at once."""
    waiting: deque[tuple[Work, Future[_Read]]] = deque()
    coming = iter(works)
    done = 0
    with ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:
        try:
            while True:
                while len(waiting) < READ_AHEAD and (work := next(coming, None)) is not None:
                    waiting.append((work, pool.submit(_prepare, catalog, store, work)))
                if not waiting:
                    return
                batch: list[tuple[Work, _Read]] = []
                texts: dict[str, str] = {}
                # Whatever is ready goes to the embedder together; it never waits for more than one file.
                while waiting and len(texts) < MAX_EMBED_BATCH and (not batch or waiting[0][1].done()):
                    work, future = waiting.popleft()
                    read = future.result()
                    batch.append((work, read))
                    for _, result in read.results:
                        if isinstance(result, Prepared):
                            texts.update(result.texts)
                on_batch = partial(_tell_batch, tell, batch[0][0].item.filename, done, report.embedded)
                report.embedded += embed_missing(catalog, store, texts, embed, on_batch)
                for work, read in batch:
                    _write(catalog, store, work, read, embed, report)
                    done += 1
                    tell(work.item.filename, done, report.embedded)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _tell_batch(tell: Callable[[str, int, int], None], filename: str, done: int, before: int, embedded: int) -> None:
    tell(filename, done, before + embedded)


@dataclass(frozen=True)
class _Failure:
    source: str
    error: Exception


@dataclass(frozen=True)
class _Read:
    """What became of an item's documents. sources: what it holds now, None when it could not be opened."""

    results: Sequence[tuple[str, Prepared | Outcome | _Failure]]
    sources: set[str] | None = None
    skipped: Sequence[str] = ()


def _prepare(catalog: Catalog, store: VectorStore, work: Work) -> _Read:
    """Read an item and cut the documents in it; in a thread of its own."""
    feed, item = work.feed, work.item
    try:
        content = feed.connector.read(item)
        opened = open_incoming(_incoming(feed, item, content.data, content.fingerprint))
    except (InvalidInput, OSError, Unavailable) as error:
        return _Read([(item.filename, _Failure(item.source, error))])
    results: list[tuple[str, Prepared | Outcome | _Failure]] = []
    for source, reason in opened.refused:
        results.append((source, _Failure(source, InvalidInput(reason, code="invalid_file"))))
    for document in opened.documents:
        try:
            results.append((document.filename, prepare_document(catalog, store, document)))
        except (InvalidInput, Conflict, OSError) as error:
            results.append((document.filename, _Failure(document.source, error)))
    return _Read(results, opened.sources, opened.skipped)


def _incoming(feed: Feed, item: Item, data: bytes, fingerprint: str) -> Incoming:
    return Incoming(
        source=item.source,
        filename=item.filename,
        data=data,
        fingerprint=fingerprint + feed.mark,
        source_id=feed.id,
        attributes=feed.attributes,
    )


def _renamed(rename: Rename) -> Incoming:
    incoming = _incoming(rename.work.feed, rename.work.item, b"", rename.fingerprint)
    if cut_otherwise(rename.known.fingerprint, incoming.fingerprint):  # the plan has it among what is cut anew
        return replace(incoming, fingerprint=rename.known.fingerprint)
    return incoming


def _write(
    catalog: Catalog, store: VectorStore, work: Work, read: _Read, embed: Callable[[], Embed], report: Report
) -> None:
    """Put an item's documents in place, note those that failed, delete those that are no longer in it."""
    failures = 0
    for name, result in read.results:
        try:
            if isinstance(result, _Failure):
                raise result.error
            outcome = result if isinstance(result, Outcome) else finish_document(catalog, store, result, embed)
        except (InvalidInput, Conflict, OSError, Unavailable) as error:
            if isinstance(error, Unavailable) and not isinstance(result, _Failure):
                raise  # the embedder does not answer: nor would it for the next
            source = result.incoming.source if isinstance(result, Prepared) else work.item.source
            failed = result if isinstance(result, _Failure) else _Failure(source, error)
            failures += _note_failure(catalog, store, failed, report)
        else:
            getattr(report, outcome.change).append(name)
            report.passages += outcome.passages
            report.embedded += outcome.embedded
    report.skipped += [source.rpartition("/")[2] for source in read.skipped]
    if work.item.filename[work.item.filename.rfind(".") :].lower() in CONTAINERS and read.sources is not None:
        with catalog.session() as session:
            if gone := vanished_members(session, store, work.item.source, read.sources):
                delete_documents(session, store, gone)
                report.deleted += [document.source for document in gone]
            if failures:  # or what failed in it would not be tried again: it has no row to say so
                members = Document.source.startswith(work.item.source + WITHIN, autoescape=True)
                all_of_it = or_(Document.source == work.item.source, members)
                # Nothing has this fingerprint; it still says how they were cut.
                again = update(Document).where(Document.store_id == store.id, all_of_it)
                session.execute(again.values(fingerprint=work.feed.cut))


def _note_failure(catalog: Catalog, store: VectorStore, failure: _Failure, report: Report) -> int:
    report.failed.append((failure.source, str(failure.error)))
    error = failure.error
    noted = error if isinstance(error, RyorinError) else InvalidInput(str(error), code="invalid_file")
    with catalog.session() as session:
        fail_document(session, store, failure.source, noted)
    return 1


def _delete(catalog: Catalog, store: VectorStore, ids: Sequence[str]) -> None:
    with catalog.session() as session:
        documents = session.scalars(select(Document).where(Document.store_id == store.id, Document.id.in_(ids))).all()
        if documents:
            delete_documents(session, store, documents)


def _digests_of(catalog: Catalog, work: Work) -> set[str]:
    with catalog.session() as session:
        return set(session.scalars(select(Document.sha256).where(Document.id.in_([row.id for row in work.known]))))


def _note_synced(catalog: Catalog, plan: Plan) -> None:
    with catalog.session() as session:
        for feed in plan.listed:
            session.execute(
                update(Source).where(Source.id == feed.id).values(state=feed.connector.state, synced_at=time.time())
            )
