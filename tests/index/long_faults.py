"""
Crashes and failing disks, with real processes: a writer is killed again and again, and nothing that it said was done is
lost.

    python tests/index/long_faults.py [--kills 1000]

The writer adds and removes documents, merges segments and changes the embedder to and fro, and writes down each id once
it is done. It is forked from a process that has imported everything and has one thread, as a fork takes along no other,
and dies at a random moment or at a failpoint. After each death a reader must open the store, fast, and find exactly the
passages that SQL has, SQL must have all that was written down, and each passage a vector of its store's embedder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from random_store import add_passages, opened, random_vectors, remove_passages, truth
from turned_embedder import NEXT, open_embed, reread, without_vector
from word_embedder import fake_embedder

from ryorin.catalog import Catalog, open_catalog
from ryorin.catalog.tables import VectorStore
from ryorin.catalog.tenants import create_tenant
from ryorin.settings import Settings
from ryorin_index import codes, disk, maintenance
from ryorin_index.maintenance import maintain, verify
from ryorin_index.reembed import change_embedder
from ryorin_index.store import create_store

STEPS = ("write", "fsync", "rename", "sync")
FAILPOINTS = (*(f"{kind}.{step}" for kind in ("ids", "vectors", "codes", "manifest") for step in STEPS), "file.remove")


@dataclass
class Figures:
    """What became of the kills. slowest_s: the longest a reader took to be ready, per 10,000 passages at least."""

    kills: int = 0
    at_failpoints: int = 0
    embedder_changes: int = 0
    acknowledged: int = 0
    lost: int = 0
    unreadable: int = 0
    slowest_s: float = 0.0


def run(kills: int, seed: int) -> Figures:
    """Kill a writer so many times."""
    maintenance.SEGMENT_AT, maintenance.CODES_AT = 12, 60
    draw = random.Random(seed)
    figures = Figures()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        settings = Settings(home=home, database_url=f"sqlite:///{home}/catalog.db")
        catalog = open_catalog(settings)
        with catalog.session() as session:
            store = create_store(session, create_tenant(session, "support"), "handbook", fake_embedder())
        catalog.close()
        journal = home / "journal"
        journal.touch()
        while figures.kills < kills:
            failpoint = draw.choice(FAILPOINTS) if figures.kills % 2 else ""
            spec = f"{failpoint}:kill:{draw.randint(1, 2)}" if failpoint else ""
            child = _fork(settings, store, journal, draw.randrange(2**31), spec)
            if not failpoint:
                time.sleep(draw.random() * 0.2)
                os.kill(child, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
            if killed:
                figures.kills += 1
                figures.at_failpoints += bool(failpoint)
                _judge(settings, store, journal, figures, draw)
    return figures


def _fork(settings: Settings, store: VectorStore, journal: Path, seed: int, spec: str) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ["RYORIN_FAILPOINTS"] = spec
        disk._times.clear()
        _write(open_catalog(settings), store, journal, random.Random(seed))
        code = 0
    finally:
        os._exit(code)


def _write(catalog: Catalog, store: VectorStore, journal: Path, draw: random.Random) -> None:
    """Until it is killed, or done without having met its failpoint."""
    store = reread(catalog, store)
    living = truth(catalog, store)[0].tolist()
    with journal.open("a") as done:
        for _ in range(25):
            action = draw.random()
            if action < 0.5 or len(living) < 20:
                with catalog.session() as session:
                    vectors = random_vectors(draw.randint(1, 30), store.dimensions, draw.randrange(2**31))
                    new = add_passages(session, store, vectors)
                living += new
                done.write(json.dumps(["add", new]) + "\n")
            elif action < 0.75 or len(living) > 400:
                gone = draw.sample(living, len(living) // 2)
                done.write(json.dumps(["removing", gone]) + "\n")
                done.flush()
                with catalog.session() as session:
                    remove_passages(session, store, gone)
                living = [each for each in living if each not in set(gone)]
                done.write(json.dumps(["remove", gone]) + "\n")
            elif action < 0.8:
                other = fake_embedder() if store.embedder == NEXT.name else NEXT
                change_embedder(catalog, [store], other, partial(open_embed, other.name))
                store = reread(catalog, store)
                done.write(json.dumps(["embedder", []]) + "\n")
            else:
                maintain(catalog, store, force=draw.random() < 0.3)
            done.flush()


def _judge(settings: Settings, store: VectorStore, journal: Path, figures: Figures, draw: random.Random) -> None:
    must: set[int] = set()
    must_not: set[int] = set()
    figures.acknowledged = figures.embedder_changes = 0
    for line in journal.read_text().splitlines():
        kind, ids = json.loads(line)
        figures.acknowledged += kind in ("add", "remove")
        figures.embedder_changes += kind == "embedder"
        must = must | set(ids) if kind == "add" else must - set(ids)
        must_not |= set(ids) if kind == "remove" else set()
    catalog = open_catalog(settings)
    try:
        store = reread(catalog, store)
        began = time.perf_counter()
        index = opened(catalog, store)
        took = time.perf_counter() - began
        ids, vectors = truth(catalog, store)
        figures.slowest_s = max(figures.slowest_s, took / max(1.0, len(ids) / 10_000))
        found = np.sort(np.concatenate([ids[:0], *(part.living()[0] for part in index.state.parts)]))
        figures.lost += len(must - set(ids.tolist())) + len(must_not & set(ids.tolist()))
        wrong = not np.array_equal(found, ids) or not np.array_equal(index.vectors_of(ids), vectors)
        figures.unreadable += bool(wrong or verify(catalog, store) or without_vector(catalog))
    finally:
        catalog.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    codes.SAMPLE = 20
    faiss.omp_set_num_threads(1)
    began = time.monotonic()
    figures = run(options.kills, options.seed)
    print(json.dumps({**vars(figures), "seconds": round(time.monotonic() - began)}))
    if figures.lost or figures.unreadable:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
