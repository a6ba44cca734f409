"""
What a sync costs when nothing changed, against a bare walk, and what an edit writes to the disk.

No-op: a folder of small files is synced again. The peer, in the same round, is the least that any sync must do: walk
the folder and `stat` every file. The figure is the time beyond that, by file; nothing may be embedded or opened.

Edit: bytes that the process had handed to write calls (/proc/self/io; SQLite's log and the checkpoint after each edit),
over the changed bytes, which are the text and the float32 vectors of the passages that are new. Of one passage in a
document of 40, and of a whole document. The embedder is a hash of the text: what is measured is not embedding.

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
from ryorin.catalog.tables import Document, Source, VectorStore
from ryorin.catalog.tenants import create_tenant
from ryorin.digests import sha256_bytes
from ryorin.models.registry import DEFAULT_EMBEDDER, get_embedder, pull
from ryorin.settings import Settings
from ryorin_index.embed import Vectors
from ryorin_index.source_rows import add_source
from ryorin_index.sources.folder import Folder
from ryorin_index.store import create_store
from ryorin_index.sync import sync_store

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


def fill(catalog: Catalog, store: VectorStore, source: Source) -> None:
    """The documents' rows as a sync would have written them; a sync without changes does not ask for passages."""
    own = {"tenant_id": store.tenant_id, "store_id": store.id, "source_id": source.id, "generation": 1}
    rows = []
    for number, item in enumerate(Folder(source.uri).items()):
        content = Path(item.source).read_text()
        rows.append(
            own
            | {"id": f"doc_{number:024}", "source": item.source, "filename": item.filename, "title": item.filename}
            | {"media_type": "text/plain", "sha256": sha256_bytes(content.encode()), "text": content}
            | {"fingerprint": item.fingerprint, "attributes": {}, "own_attributes": {}}
        )
    with catalog.session() as session:
        for at in range(0, len(rows), 1000):
            session.execute(insert(Document), rows[at : at + 1000])


def edit_ratio(catalog: Catalog, store: VectorStore, source: Source, embed: Hashed, file: Path, one: bool) -> float:
    """Bytes written over bytes changed, the median of five edits."""
    editions, ratios = [0] * SECTIONS, []
    for turn in range(6):
        changed = [SECTIONS // 2] if one else range(SECTIONS)
        for at in changed:
            editions[at] = 1 + turn + (1000 if one else 2000)
        file.write_text(document(editions), encoding="utf-8")
        os.sync()
        before, embedded = written_bytes(), embed.embedded
        done = sync_store(catalog, store, [source], lambda: embed)
        with catalog.engine.connect() as connection:
            connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
        assert (done.changed or done.added) and not done.failed, done
        new = embed.embedded - embedded
        if turn:  # the first of them makes the document
            ratios.append((written_bytes() - before) / (new * (4 * store.dimensions + len(FILLER) + 24)))
    return statistics.median(ratios)


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
        fill(catalog, store, source)
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
        edited = folder / "edited.md"
        one = edit_ratio(catalog, store, source, embed, edited, one=True)
        whole = edit_ratio(catalog, store, source, embed, edited, one=False)
        catalog.close()
    value = statistics.median(beyond)
    print(f"no-op sync: {value:.1f} µs a file beyond the walk's {statistics.median(walks):.1f}; {no_op} embedded")
    print(f"bytes written over changed: one passage of {SECTIONS} {one:.1f}, a whole document {whole:.1f}")
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
        written_over_changed_one_passage=round(one, 2),
        written_over_changed_whole_document=round(whole, 2),
        written_target=f"<= {TARGET_BYTES}",
    )


if __name__ == "__main__":
    main()
