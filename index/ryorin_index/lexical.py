"""
The lexical index of a store: BM25 over the passages' words, titles included.

Like the vectors' files it is a cache of SQL. Most of it lies on disk, in a tantivy index that several processes share;
what is newer than that is held in memory as a small tail, which is exact. So an edit is found by the next search and
costs no file; when the tail has grown, one process writes it to disk, under a lock, and the others read it from there.

The generation stands in the tantivy index itself, in a document of its own that is swapped in the same commit as the
passages: a process that dies leaves the commit before it. Tantivy's files end with their CRC-32, and all are verified
before they are read; what is damaged is made again from SQL.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from ryorin.catalog.tables import Document, Passage, Tombstone, VectorStore
from ryorin.errors import Conflict
from ryorin_index.bm25 import FIELDS, Statistics, Tail
from ryorin_index.passages import passage_title
from ryorin_index.words import words_of

VERSION = 1  # of the schema and of the words: another one is another folder
TAIL_LIMIT = 512  # passages in memory at most before they are written to disk
TITLE_WEIGHT = 1.0
MAX_QUERY_WORDS = 128
LOCK_WAIT_S = 5.0  # for a process that is writing what this one needs
RETRY_S = 30.0  # after the disk refused to be written
TERM_SET_LIMIT = 20_000  # allowed passages that are named in the query; of more, what is not allowed is left out after
_WRITER_BYTES = 15_000_000  # tantivy's least
_ROWS = 1000
_COMPONENTS = ("fast", "fieldnorm", "idx", "pos", "store", "term")
_FOOTER_MAGIC = 1337

logger = logging.getLogger(__name__)


class Damaged(Exception):
    """What lies on disk is not what was written there."""


@dataclass(frozen=True)
class _Disk:
    """The index on disk, opened at one commit. words: of each field, of all passages that were ever added."""

    index: Any
    searcher: Any
    generation: int = -1
    passages: int = 0
    added: int = 0
    words: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FIELDS, 0))

    @property
    def mean_words(self) -> dict[str, float]:
        return {name: self.words[name] / self.added if self.added else 0.0 for name in FIELDS}


class LexicalIndex:
    """The words of one store's passages at one generation. Safe to share between threads."""

    def __init__(self, home: Path, tenant_id: str, store_id: str) -> None:
        self.tenant_id = tenant_id
        self.store_id = store_id
        self.generation = -1
        self._folder = home / "index" / store_id / f"lexical-{VERSION}"
        self._disk: _Disk | None = None
        self._tail = Tail()
        self._gone: set[int] = set()  # on disk, but no longer in the store
        self._verified: set[tuple[str, int, int]] = set()
        self._refused_at = -RETRY_S
        self._lock = threading.Lock()

    def refresh(self, session: Session, store: VectorStore) -> None:
        """Bring the index to the store's generation, as `session` sees it; costs what changed since the last time."""
        with self._lock:
            if self.generation >= store.generation:
                return
            if self._disk is None or store.purged_generation > self.generation:
                self._reopen(store)
            size = len(self._tail) + len(self._gone) + _count_since(session, store, self.generation)
            if size > TAIL_LIMIT:
                self._fold(session, store)
            self._read_tail(session, store)

    def search(
        self, query: str, top_k: int, allowed: Collection[int] | None = None, title_weight: float = TITLE_WEIGHT
    ) -> list[tuple[float, int]]:
        """
        The best `top_k` passages as (BM25, passage id), best first; none when no word of the query is in the store.

        allowed: the passages that may be found; None means all.
        """
        words = list(dict.fromkeys(words_of(query)))[:MAX_QUERY_WORDS]
        if not words or top_k < 1 or (allowed is not None and not allowed):
            return []
        weights = {"title": title_weight, "text": 1.0}
        with self._lock:
            disk, gone = self._disk, frozenset(self._gone)
            known = self._statistics(words)
            found = self._tail.scores(words, weights, known)
        if allowed is not None:
            may = allowed if isinstance(allowed, set | frozenset) else set(allowed)
            found = {passage: score for passage, score in found.items() if passage in may}
        if disk is not None and disk.passages:
            found.update(_search_disk(disk, words, weights, known, top_k, gone, allowed))
        best = sorted(((score, passage) for passage, score in found.items()), key=lambda pair: (-pair[0], pair[1]))
        return best[:top_k]

    def fold(self, session: Session, store: VectorStore) -> None:
        """Write what is in memory only to disk, whatever its size; another process's writing is waited for."""
        self.refresh(session, store)
        with self._lock:
            if self._tail or self._gone:
                self._fold(session, store)
                self._read_tail(session, store)

    def rebuild(self, session: Session, store: VectorStore) -> None:
        """Make the files on disk anew from SQL, whatever is there; another process's writing is waited for."""
        with self._lock:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._folder.with_suffix(".lock")) as mine:
                if not mine:
                    raise Conflict(f"another process writes the words of store {store.name!r}; run it again later")
                shutil.rmtree(self._folder, ignore_errors=True)
            self._reopen(store)
        self.fold(session, store)

    def verify(self) -> list[str]:
        """What is wrong with the files on disk, in words; empty when all is well or nothing is there."""
        if not (self._folder / "meta.json").exists():
            return []
        try:
            _open_disk(self._folder, set())
        except Damaged as error:
            return [str(error)]
        return []

    def _statistics(self, words: Sequence[str]) -> Statistics:
        disk, tail = self._disk, self._tail
        counts = {}
        for name in FIELDS:
            for word in words:
                on_disk = disk.searcher.doc_freq(name, word) if disk is not None and disk.passages else 0
                counts[name, word] = on_disk + tail.with_word(name, word)
        added = (disk.added if disk else 0) + len(tail)
        total = {name: (disk.words[name] if disk else 0) + tail.total_words[name] for name in FIELDS}
        return Statistics(
            passages=(disk.passages - 1 if disk else 0) + len(tail),  # one is the marker
            with_word=counts,
            mean_words={name: total[name] / added if added else 0.0 for name in FIELDS},
        )

    def _reopen(self, store: VectorStore) -> None:
        """Read what lies on disk, and forget what is in memory."""
        try:
            disk = _open_disk(self._folder, self._verified)
        except Damaged as error:
            logger.warning("the lexical index of store %s is damaged (%s); it is made again", self.store_id, error)
            disk = None
        if disk is not None and (
            disk.generation < store.purged_generation  # what was deleted since cannot be known
            or disk.generation > store.generation  # the catalog was put back to an earlier state
        ):
            disk = None
        self._disk = disk
        self._tail = Tail()
        self._gone = set()
        self.generation = disk.generation if disk is not None else -1

    def _read_tail(self, session: Session, store: VectorStore) -> None:
        """Take over what changed since `self.generation`."""
        if self.generation >= store.generation:
            return
        for gone in _gone_since(session, store, self.generation):
            if gone in self._tail:
                self._tail.discard(gone)
            elif self._disk is not None:
                self._gone.add(gone)
        for passage_id, words in _added_since(session, store, self.generation):
            self._tail.add(passage_id, words)
        self.generation = store.generation

    def _fold(self, session: Session, store: VectorStore) -> None:
        """Write to disk what is newer, unless another process does; then what is on disk is read anew."""
        if time.monotonic() - self._refused_at < RETRY_S:
            return
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._folder.with_suffix(".lock")) as mine:
                if mine:
                    _write(self._folder, session, store, self._verified)
        except (OSError, ValueError) as error:  # tantivy's own errors are ValueErrors
            self._refused_at = time.monotonic()
            logger.warning("the lexical index of store %s was not written: %s", self.store_id, error)
            return
        self._reopen(store)


def _search_disk(
    disk: _Disk,
    words: Sequence[str],
    weights: dict[str, float],
    known: Statistics,
    top_k: int,
    gone: frozenset[int],
    allowed: Collection[int] | None,
) -> dict[int, float]:
    """Passage id → BM25 of the best on disk. The words' weights are corrected by what the tail changes in them."""
    from tantivy import Occur, Query

    schema = disk.index.schema
    clauses = []
    for name in FIELDS:
        for word in words:
            on_disk = disk.searcher.doc_freq(name, word)
            if not on_disk:
                continue
            alone = Statistics(disk.passages, {(name, word): on_disk}, {}).idf(name, word)
            boost = weights[name] * known.idf(name, word) / alone
            if boost > 0:
                clauses.append((Occur.Should, Query.boost_query(Query.term_query(schema, name, word, "freq"), boost)))
    if not clauses:
        return {}
    query = Query.boolean_query(clauses)
    wanted = None if allowed is None else (allowed if isinstance(allowed, set | frozenset) else set(allowed))
    if wanted is not None and len(wanted) <= TERM_SET_LIMIT:
        only = Query.const_score_query(Query.term_set_query(schema, "id", sorted(wanted)), 0.0)
        query = Query.boolean_query([(Occur.Must, only), (Occur.Must, query)])
        wanted = None
    limit = top_k
    while True:
        hits = disk.searcher.search(query, limit=limit, count=False).hits
        ids = disk.searcher.fast_field_values("id", [address for _, address in hits])
        found = {
            passage: score
            for (score, _), passage in zip(hits, ids, strict=True)
            if passage not in gone and (wanted is None or passage in wanted)
        }
        if len(found) >= top_k or len(hits) < limit:
            return found
        limit *= 2


def _count_since(session: Session, store: VectorStore, generation: int) -> int:
    """How many passages came or went after a generation."""
    came = select(func.count()).where(*_mine(store), *_between(Passage.generation, generation, store))
    went = select(func.count()).where(
        Tombstone.store_id == store.id, *_between(Tombstone.generation, generation, store)
    )
    return (session.scalar(came) or 0) + (session.scalar(went) or 0)


def _gone_since(session: Session, store: VectorStore, generation: int) -> list[int]:
    return list(
        session.scalars(
            select(Tombstone.passage_id).where(
                Tombstone.store_id == store.id, *_between(Tombstone.generation, generation, store)
            )
        )
    )


def _added_since(session: Session, store: VectorStore, generation: int) -> Iterator[tuple[int, dict[str, list[str]]]]:
    """The passages that came after a generation, with their words."""
    rows = session.execute(
        select(Passage.id, Passage.heading, Passage.text, Document.title)
        .join(Document, Document.id == Passage.document_id)
        .where(*_mine(store), *_between(Passage.generation, generation, store))
        .execution_options(yield_per=_ROWS)
    )
    for row in rows:
        yield row.id, {"title": words_of(passage_title(row.title, row.heading)), "text": words_of(row.text)}


def _mine(store: VectorStore) -> tuple[ColumnElement[bool], ...]:
    return Passage.tenant_id == store.tenant_id, Passage.store_id == store.id


def _between(column: Any, generation: int, store: VectorStore) -> tuple[ColumnElement[bool], ...]:
    """After `generation`, but not newer than what is being read: that comes whole, the next time."""
    return column > generation, column <= store.generation


def _write(folder: Path, session: Session, store: VectorStore, verified: set[tuple[str, int, int]]) -> None:
    """One commit that brings the index on disk to the store's generation; the caller holds the lock."""
    from tantivy import Document as Row

    try:
        disk = _open_disk(folder, verified)
    except Damaged:
        disk = None
    if disk is not None and (disk.generation < store.purged_generation or disk.generation > store.generation):
        disk = None
    if disk is not None and disk.generation >= store.generation:
        return
    if disk is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        disk = _Disk(_new_index(folder), None)
    words = dict(disk.words)
    added = disk.added
    writer = disk.index.writer(heap_size=_WRITER_BYTES, num_threads=1)
    try:
        writer.delete_documents_by_term("marker", 1)
        for gone in _gone_since(session, store, disk.generation):
            writer.delete_documents_by_term("id", gone)
        for passage_id, found in _added_since(session, store, disk.generation):
            writer.delete_documents_by_term("id", passage_id)
            row = Row()
            row.add_integer("id", passage_id)
            for name in FIELDS:
                row.add_text(name, " ".join(found[name]))
                words[name] += len(found[name])
            writer.add_document(row)
            added += 1
        marker = Row()
        for name, value in (("marker", 1), ("generation", store.generation), ("added", added)):
            marker.add_integer(name, value)
        for name in FIELDS:
            marker.add_integer(f"{name}_words", words[name])
        writer.add_document(marker)
        writer.commit()
    finally:
        writer.wait_merging_threads()


def _new_index(folder: Path) -> Any:
    from tantivy import Index, SchemaBuilder

    builder = SchemaBuilder()
    builder.add_integer_field("id", indexed=True, fast=True)
    builder.add_integer_field("marker", indexed=True)
    for name in ("generation", "added", *(f"{name}_words" for name in FIELDS)):
        builder.add_integer_field(name, fast=True)
    for name in FIELDS:
        builder.add_text_field(name, tokenizer_name="whitespace", index_option="freq")
    return Index(builder.build(), path=str(folder))


def _open_disk(folder: Path, verified: set[tuple[str, int, int]]) -> _Disk | None:
    """
    The index on disk, every file of it verified; None when there is none.

    verified: files (name, size, time) that need not be read again; those that are sound are added.
    Raises Damaged.
    """
    for _ in range(5):  # a commit of another process may take away files while they are read
        try:
            before = (folder / "meta.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Damaged(str(error)) from error
        try:
            disk = _open_verified(folder, before, verified)
        except Damaged:
            if (folder / "meta.json").exists() and (folder / "meta.json").read_bytes() != before:
                continue
            raise
        with suppress(FileNotFoundError):
            if (folder / "meta.json").read_bytes() == before:
                return disk
    raise Damaged("it changes faster than it can be read")


def _open_verified(folder: Path, meta: bytes, verified: set[tuple[str, int, int]]) -> _Disk | None:
    from tantivy import Index, Query

    try:
        segments = json.loads(meta)["segments"]
        if not segments:  # made by a process that did not live to its first commit
            return None
        for segment in segments:
            name = segment["segment_id"].replace("-", "")
            files = [f"{name}.{part}" for part in _COMPONENTS]
            if segment["deletes"]:
                files.append(f"{name}.{segment['deletes']['opstamp']}.del")
            for file in files:
                _verify_file(folder / file, verified)
        # Counted from the description itself; the marker says what it should be.
        passages = sum(segment["max_doc"] for segment in segments)
        alive = passages - sum(segment["deletes"]["num_deleted_docs"] for segment in segments if segment["deletes"])
        index = Index.open(str(folder))
        index.config_reader("manual")
        searcher = index.searcher()
        hits = searcher.search(Query.term_query(index.schema, "marker", 1), limit=2, count=False).hits
        if len(hits) != 1 or searcher.num_docs != alive:
            raise Damaged("its counts do not agree")
        address = [hits[0][1]]
        noted = {
            name: int(searcher.fast_field_values(name, address)[0] or 0)
            for name in ("generation", "added", *(f"{name}_words" for name in FIELDS))
        }
    except Damaged:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(str(error) or type(error).__name__) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how a Rust library says that it met the impossible
            raise
        raise Damaged(str(error)) from error
    return _Disk(
        index=index,
        searcher=searcher,
        generation=noted["generation"],
        passages=passages,
        added=noted["added"],
        words={name: noted[f"{name}_words"] for name in FIELDS},
    )


def _verify_file(path: Path, verified: set[tuple[str, int, int]]) -> None:
    """Compare a file of tantivy's with the CRC-32 it ends with: body, JSON footer, its length, a magic number."""
    stat = path.stat()
    known = (path.name, stat.st_size, stat.st_mtime_ns)
    if known in verified:
        return
    data = path.read_bytes()
    try:
        length, magic = struct.unpack("<II", data[-8:])
        expected = json.loads(data[-8 - length : -8])["crc"]
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path.name} has no footer") from error
    if magic != _FOOTER_MAGIC or zlib.crc32(data[: -8 - length]) != expected:
        raise Damaged(f"{path.name} does not match its checksum")
    verified.add(known)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """The writer's lock, waited for; False when another process still holds it after `LOCK_WAIT_S`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        until = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield True
                return
            except BlockingIOError:
                if time.monotonic() >= until:
                    yield False
                    return
            time.sleep(0.02)
    finally:
        os.close(descriptor)  # the kernel lets go of the lock with it
