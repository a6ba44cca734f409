"""
Keeping a store equal to its sources as they change, until the process is stopped.

Folders say when something in them changed; every source is synced now and then besides: repositories and buckets say
nothing, and a network's folders not everything. Each round is a sync like any other, of the sources concerned. The
embedder stays loaded. What is away for a while (embedder, database, another sync) is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Source, VectorStore
from ryorin.errors import Conflict, InvalidInput, NotFound, RequirementMissing, RyorinError
from ryorin_index.counting import counter_of
from ryorin_index.embed import Embed, open_embedder
from ryorin_index.ingest import store_chunking
from ryorin_index.parse import parse_document
from ryorin_index.passages import split_document
from ryorin_index.sources.watching import FolderWatch
from ryorin_index.store import embedder_of
from ryorin_index.sync import OnProgress, Report, sync_store

INTERVAL_S = 300.0
RETRY_S = 1.0  # after a failure; it doubles with each further one, but not while another process syncs
LONGEST_RETRY_S = 30.0
_ALL = "*"  # in place of sources' ids


@dataclass(frozen=True)
class Round:
    """One sync and how it ended: with a report, or with an error after which it is tried again."""

    sources: tuple[str, ...]
    report: Report | None = None
    error: str = ""
    retry_in_s: float = 0.0


def watch_store(
    catalog: Catalog,
    store: VectorStore,
    only: Sequence[Source] = (),
    *,
    interval_s: float = INTERVAL_S,
    on_round: Callable[[Round], None] = lambda done: None,
    on_progress: OnProgress = lambda progress: None,
    on_note: Callable[[str], None] = lambda line: None,
) -> None:
    """
    Sync the store, and again whenever a folder of it changes; until KeyboardInterrupt.

    only: the sources to keep to; none means all, also those that are added meanwhile. interval_s: how often every one
    is synced whether it changed or not; 0 for never. on_note: gets lines about the watching itself.
    A source that lost most of its documents keeps them: nobody can be asked. Raises InvalidInput when there is nothing
    to watch, NotFound when the store was deleted or its embedder is not on this machine, RequirementMissing when a
    package or a key of it is missing.
    """
    watcher = _Watcher(catalog, store, {source.id for source in only}, interval_s, on_note)
    kept = _KeptEmbedder(catalog)
    try:
        watcher.begin()
        failures = 0
        ready = False
        while True:
            ids = watcher.next_ids()
            names: tuple[str, ...] = ()
            try:
                row, sources = watcher.read()
                chosen = [source for source in sources if _ALL in ids or source.id in ids]
                names = tuple(source.uri for source in chosen)
                if chosen:
                    report = sync_store(catalog, row, chosen, partial(kept.of, row), on_progress)
                    on_round(Round(names, report))
                watcher.rest(ids)
                if not ready:
                    _warm(catalog, row, kept)
                    ready = True
                failures = 0
            except (RequirementMissing, NotFound):
                raise
            except (RyorinError, SQLAlchemyError, OSError) as error:
                watcher.add(ids)
                delay_s = RETRY_S
                if not isinstance(error, Conflict):
                    delay_s = min(RETRY_S * 2**failures, LONGEST_RETRY_S)
                    failures += 1
                on_round(Round(names, error=_words(error), retry_in_s=delay_s))
                time.sleep(delay_s)
    finally:
        watcher.close()


class _Watcher:
    """Which sources are to be synced next, and the threads that say so."""

    def __init__(
        self, catalog: Catalog, store: VectorStore, only: set[str], interval_s: float, on_note: Callable[[str], None]
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._only = only
        self._interval_s = interval_s
        self._on_note = on_note
        self._all_at = float("inf")
        self._folders: dict[str, FolderWatch] = {}
        self._due: set[str] = set()
        self._told = threading.Condition()

    def begin(self) -> None:
        """Watch the folders; every source is due."""
        self.read()
        if not self._interval_s and not self._folders:
            raise InvalidInput(
                f"store {self._store.name!r} has no folder to watch and an interval of 0 syncs nothing else; "
                "give an interval, or add a folder with 'ryorin index source add'",
                param="interval",
            )
        self.add({_ALL})
        self._set_time()

    def read(self) -> tuple[VectorStore, list[Source]]:
        """
        The store and its sources as they are now; folders among them are watched from here on.

        Raises NotFound when the store was deleted.
        """
        with self._catalog.session() as session:
            row = session.get(VectorStore, self._store.id)
            if row is None:
                raise NotFound(f"store {self._store.name!r} was deleted meanwhile", param="store")
            every = session.scalars(
                select(Source).where(Source.store_id == row.id).order_by(Source.created_at, Source.id)
            )
            sources = [source for source in every if not self._only or source.id in self._only]
        folders = {source.id: source for source in sources if source.kind == "folder"}
        for gone in set(self._folders) - set(folders):
            self._folders.pop(gone).close()
        for source_id in [each for each in folders if each not in self._folders]:
            watch = FolderWatch(folders[source_id].uri, partial(self.add, {source_id}), self._on_note)
            self._folders[source_id] = watch
            watch.start()
        return row, sources

    def add(self, ids: set[str]) -> None:
        """These are to be synced."""
        with self._told:
            self._due |= ids
            self._told.notify()

    def next_ids(self) -> set[str]:
        """Wait until something is to be synced."""
        with self._told:
            while not self._due and (left_s := self._all_at - time.monotonic()) > 0:
                self._told.wait(min(left_s, threading.TIMEOUT_MAX))
            if time.monotonic() >= self._all_at:
                self._due.add(_ALL)
            ids, self._due = self._due, set()
        return ids

    def rest(self, ids: set[str]) -> None:
        """These are synced: after a round of all the interval begins, so that a long one does not follow on itself."""
        if _ALL in ids:
            with self._told:
                self._set_time()

    def close(self) -> None:
        """End the threads."""
        for folder in self._folders.values():
            folder.close()

    def _set_time(self) -> None:
        self._all_at = time.monotonic() + (self._interval_s or float("inf"))


class _KeptEmbedder:
    """The store's embedder, opened once; anew when the store has another one."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._digest = ""
        self._opened: Embed | None = None

    def of(self, store: VectorStore) -> Embed:
        if self._opened is None or self._digest != store.embedder_digest:
            self._opened = None  # the memory of the former is free before the next is read
            self._opened = open_embedder(embedder_of(self._catalog.settings, store))
            self._digest = store.embedder_digest
        return self._opened


def _warm(catalog: Catalog, store: VectorStore, kept: _KeptEmbedder) -> None:
    """Load what reading, cutting and embedding need, for which the first edit should not wait."""
    kept.of(store)
    counter = counter_of(catalog.settings, store)
    split_document(parse_document(Path("warm.md"), b"# Warm\n\nWords.\n"), store_chunking(store, counter), counter)


def _words(error: Exception) -> str:
    if isinstance(error, SQLAlchemyError):
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        return f"the catalog's database does not answer: {reason}"
    return str(error)
