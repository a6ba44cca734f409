"""
What a sync costs when nothing changed, against a bare walk, and what an edit writes to the disk.

No-op: a folder of small files is synced again. The peer, in the same round, is the least that any sync must do: walk
the folder and `stat` every file. The figure is the time beyond that, by file; nothing may be embedded or opened.

Edit: bytes that the process handed to write calls (/proc/self/io), over the changed bytes, which are the text and the
float32 vectors of the passages that are new. Of one passage in a document of 40, and of a whole document. The database
holds a passage and a vector for every file, so that its indexes have the size they have in use. A copy of the document
that goes to the reader through memory, never to a disk, is taken off. Two figures: with SQLite's log written back after
each edit, the worst case, and over 100 edits with SQLite's own checkpoints, as in use, and one at the end. The embedder
is a hash of the text: what is measured is not embedding.

The floor of the first figure. SQLite writes whole pages of 4 KB, into its log and from there into the database. One
passage must change a page each of: vectors and their index, passages (the old row's and the new one's) and their two
indexes, tombstones, the block of text, the document and its index, the store, the counter of ids: 12 pages, 98 KB for
2.1 KB changed, 47 times. Of a whole document (84 KB) the 40 vectors fill 20 pages, passages 8 and text 7; that is 3.4
times with nothing else, and the digests of 40 new texts fall into up to 40 pages of the vectors' index.

    python bench/sync.py [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import report, written_bytes
from sqlalchemy import insert, text

from ryorin.catalog import Catalog, open_catalog
from ryorin.catalog.tables import Document, Passage, Source, VectorStore
from ryorin.catalog.tenants import create_tenant
from ryorin.digests import sha256_bytes
from ryorin.models.registry import DEFAULT_EMBEDDER, get_embedder, pull
from ryorin.settings import Settings
from ryorin_index.embed import Vectors
from ryorin_index.plan import Feed
from ryorin_index.source_rows import add_source
from ryorin_index.sources.folder import Folder
from ryorin_index.store import create_store
from ryorin_index.sync import cut_of, sync_store
from ryorin_index.vectors import keep_vectors

TARGET_US, TARGET_BYTES = 10.0, 3.0
SECTIONS = 40
FILLER = "Parcels are weighed, labelled and handed to the carrier before noon. " * 8


class Hashed:
    """Vectors from a hash of the text; counts them."""

    def __init__(self, dimensions: int) -> None:
        self.embedded = 0
        self._dimensions = dimensions

    def query(self, text: str) -> Vectors:
        """Of a question."""
        return self.passages([text])[0]

    def passages(self, texts: Sequence[str]) -> Vectors:
        """Of passages."""
        self.embedded += len(texts)
        seeds = [int.from_bytes(hashlib.sha256(each.encode()).digest()[:8]) for each in texts]
        rows = np.stack([np.random.default_rng(seed).standard_normal(self._dimensions, np.float32) for seed in seeds])
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def stat_walk(folder: str) -> int:
    """Every file's `stat` and nothing else."""
    count, waiting = 0, [folder]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                entry.stat(follow_symlinks=False)
                count += 1
    return count


def document(editions: Sequence[int]) -> str:
    parts = (f"## Rule {at}\n\nEdition {edition} of rule {at}. {FILLER}" for at, edition in enumerate(editions))
    return "# Parcels\n\n" + "\n\n".join(parts)


def fill(catalog: Catalog, store: VectorStore, source: Source, embed: Hashed) -> None:
    """The rows that a sync would have written: a document, a passage and a vector for every file."""
    own = {"tenant_id": store.tenant_id, "store_id": store.id}
    connector = Folder(source.uri)
    items = list(connector.items())
    mark = Feed(connector, source.uri, source.id, cut=cut_of(catalog, store)).mark
    with catalog.session() as session:
        for at in range(0, len(items), 1000):
            documents, passages, texts = [], [], []
            for number, item in enumerate(items[at : at + 1000], start=at):
                content = Path(item.source).read_text()
                texts.append(content)
                named = {"id": f"doc_{number:024}", "source": item.source, "filename": item.filename}
                documents.append(
                    own
                    | named
                    | {"source_id": source.id, "title": item.filename, "media_type": "text/plain", "generation": 1}
                    | {"sha256": sha256_bytes(content.encode()), "fingerprint": item.fingerprint + mark}
                    | {"attributes": {}, "own_attributes": {}}
                )
                passages.append(
                    own
                    | {"document_id": named["id"], "generation": 1, "ordinal": 0, "text": content, "heading": ""}
                    | {"sha256": sha256_bytes(content.encode()), "start": 0, "end": len(content)}
                )
            session.execute(insert(Document), documents)
            session.execute(insert(Passage), passages)
            vectors = {
                row["sha256"]: vector.tobytes() for row, vector in zip(passages, embed.passages(texts), strict=True)
            }
            keep_vectors(session, store, vectors)


class Edits:
    """A document of 40 passages in a store of its own, beside the many."""

    def __init__(self, catalog: Catalog, store: VectorStore, source: Source, embed: Hashed) -> None:
        self._catalog, self._store, self._source, self._embed = catalog, store, source, embed
        self._file = Path(source.uri) / "edited.md"
        self._editions = [1000] * SECTIONS
        self._edit(range(SECTIONS))

    def after_each(self, changed: Sequence[int]) -> float:
        """Bytes written over bytes changed, the log written back after each edit: the median of five."""
        return statistics.median(self._ratio(changed, 1) for _ in range(5))

    def in_use(self, changed: Sequence[int]) -> float:
        """The same over 100 edits, with the log written back when SQLite does and once at the end."""
        return self._ratio(changed, 100)

    def _ratio(self, changed: Sequence[int], count: int) -> float:
        self._write_back()
        before, embedded, in_memory = written_bytes(), self._embed.embedded, 0
        for _ in range(count):
            in_memory += self._edit(changed)
        self._write_back()
        new = self._embed.embedded - embedded
        assert new == count * len(changed), new
        own = 2 * in_memory  # the file itself, and the copy for its reader
        return (written_bytes() - before - own) / (new * (4 * self._store.dimensions + len(FILLER) + 24))

    def _edit(self, changed: Sequence[int]) -> int:
        """Make the sections' texts new and sync; returns the document's bytes."""
        for at in changed:
            self._editions[at] += 1
        size = self._file.write_text(document(self._editions), encoding="utf-8")
        done = sync_store(self._catalog, self._store, [self._source], lambda: self._embed)
        assert (done.changed or done.added) and not done.failed, done
        return size

    def _write_back(self) -> None:
        with self._catalog.engine.connect() as connection:
            connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer files and rounds")
    quick = parser.parse_args().quick
    count, rounds = (10_000, 5) if quick else (100_000, 7)
    with tempfile.TemporaryDirectory() as scratch:
        home, folder = Path(scratch) / "home", Path(scratch) / "documents"
        for number in range(count):
            place = folder / f"{number // 500}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.txt").write_text(f"Guide {number}: goods of kind {number} stand on shelf {number}.")
        settings = Settings(home=home, database_url=f"sqlite:///{home}/catalog.db")
        pull(settings, DEFAULT_EMBEDDER, lambda _: None)
        catalog = open_catalog(settings)
        embed = Hashed(get_embedder(settings, DEFAULT_EMBEDDER).dimensions)
        with catalog.session() as session:
            tenant = create_tenant(session, "bench")
            store = create_store(session, tenant, "bench", get_embedder(settings, DEFAULT_EMBEDDER))
            source = add_source(session, store, str(folder), {})
            beside = create_store(session, tenant, "edited", get_embedder(settings, DEFAULT_EMBEDDER))
            edited = Path(scratch) / "edited"
            edited.mkdir()
            beside_source = add_source(session, beside, str(edited), {})
        fill(catalog, store, source, embed)
        embedded, beyond, walks = embed.embedded, [], []
        for _ in range(rounds):
            began = time.perf_counter()
            assert stat_walk(str(folder)) == count
            walked = time.perf_counter()
            again = sync_store(catalog, store, [source], lambda: embed)
            synced = time.perf_counter()
            assert len(again.unchanged) == count
            walks.append(1e6 * (walked - began) / count)
            beyond.append(1e6 * (synced - walked) / count - walks[-1])
        no_op = embed.embedded - embedded
        one, whole = [SECTIONS // 2], list(range(SECTIONS))
        edits = Edits(catalog, beside, beside_source, embed)
        written = {
            "one_passage": edits.after_each(one),
            "whole_document": edits.after_each(whole),
            "one_passage_in_use": edits.in_use(one),
            "whole_document_in_use": edits.in_use(whole),
        }
        catalog.close()
    value = statistics.median(beyond)
    print(f"no-op sync: {value:.1f} µs a file beyond the walk's {statistics.median(walks):.1f}; {no_op} embedded")
    for name, ratio in written.items():
        print(f"bytes written over changed, {name.replace('_', ' ')}: {ratio:.1f}")
    report(
        "a sync of what did not change costs little more than stat",
        value,
        "µs a file",
        f"<= {TARGET_US}",
        "a walk that stats every file",
        rounds,
        peer_value=round(statistics.median(walks), 2),
        files=count,
        embedded=no_op,
        **{f"written_over_changed_{name}": round(ratio, 2) for name, ratio in written.items()},
        written_target=f"<= {TARGET_BYTES}",
    )


if __name__ == "__main__":
    main()
