"""Processes that write to a store and are killed: nothing is lost, what is left is whole, the next one goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import test_attach as attach
import test_lexical as lexical
import test_sync as syncing
import turned_embedder as turned
from long_runs import turns
from sqlalchemy import func, select
from word_embedder import WordEmbedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Job, Passage, Tenant, Vector, VectorStore
from ryorin_index.reembed import change_embedder
from ryorin_index.source_rows import add_source
from ryorin_index.sync import sync_store

HELPERS = Path(turned.__file__).parent


def test_a_writer_that_is_killed_loses_nothing() -> None:
    """In a process of its own: a writer forked from this one might wait for threads that it does not have."""
    script = HELPERS / "long_faults.py"
    kills = turns(12, 1000)
    ran = subprocess.run([sys.executable, script, "--kills", str(kills), "--seed", "3"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout)
    assert (figures["lost"], figures["unreadable"]) == (0, 0)
    assert figures["kills"] == 2 * figures["at_failpoints"] == kills < figures["acknowledged"]


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from word_embedder import WordEmbedder
from ryorin.catalog import open_catalog
from ryorin.catalog.tenants import get_tenant
from ryorin.settings import load_settings
from ryorin_index.source_rows import find_sources
from ryorin_index.store import get_store
from ryorin_index.sync import sync_store

class Slow(WordEmbedder):
    def passages(self, texts):
        print("embedding", flush=True)
        time.sleep(0.05)
        return super().passages(texts)

catalog = open_catalog(load_settings())
with catalog.session() as session:
    store = get_store(session, get_tenant(session, "support"), "handbook")
    sources = find_sources(session, store)
sync_store(catalog, store, sources, Slow, lambda at: print("told", at.done, flush=True))
"""


@pytest.mark.parametrize(("catalog", "kills"), [("sqlite", (3, 40)), ("postgresql", (30,))], indirect=["catalog"])
def test_a_killed_sync_is_taken_up(catalog: Catalog, store: VectorStore, folder: Path, kills: tuple[int, ...]) -> None:
    """It is killed when it has said so many lines, two a document."""
    with catalog.session() as session:
        source = add_source(session, store, str(folder), {})
    for number in range(60):
        (folder / f"{number}.md").write_text(f"# Document {number}\n\nWords {number}.")
    script = KILLED.format(tests=str(HELPERS))
    for lines in kills:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with catalog.session() as session:
        rows = session.execute(select(Document.id, Document.sha256)).all()
        counted = {row[0] for row in session.execute(select(Passage.document_id).distinct())}
    assert {row[0] for row in rows} == counted and 0 < len(rows) < 63
    report = sync_store(catalog, store, [source], WordEmbedder)
    assert len(report.added) == 63 - len(rows) and report.failed == []
    assert syncing.held(catalog, store) == syncing.on_disk(folder)


def test_a_killed_worker_s_file_is_finished_by_the_next_one(
    catalog: Catalog, tenant: Tenant, store: VectorStore, embedder: WordEmbedder
) -> None:
    waiting = attach.put(catalog, store, attach.put_file(catalog, tenant))

    def state() -> tuple[str, int]:
        return attach.document(catalog, waiting.id).status, attach.passages(catalog, store)

    script = Path(__file__).with_name("worker_that_hangs.py")
    child = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    with child:
        assert child.stdout.readline() == "embedding\n"
        child.send_signal(signal.SIGKILL)
    assert state() == ("in_progress", 0)
    attach.work(catalog, embedder, poll_s=0.1)  # the dead one's lease is of a second
    assert state() == ("completed", 1)
    with catalog.session() as session:
        assert session.execute(select(Job.status, Job.attempts)).one() == ("succeeded", 2)


def test_killed_while_it_writes(sqlite_store: tuple[Catalog, VectorStore], tmp_path: Path) -> None:
    """SIGKILL at random moments of a process that edits and writes: what is left is whole, and so are its answers."""
    catalog, store = sqlite_store
    lexical.fill(catalog, store, 8)
    worker = tmp_path / "worker.py"
    worker.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            here = Path(sys.argv[2])
            sys.path[:0] = [str(here), str(here.parent)]
            from test_lexical import fill, fold, index_of, put
            from ryorin.catalog import open_catalog
            from ryorin.catalog.tables import VectorStore
            from ryorin.settings import load_settings
            catalog = open_catalog(load_settings())
            with catalog.session() as session:
                store = session.get_one(VectorStore, sys.argv[1])
            index = index_of(catalog, store)
            print("ready", flush=True)
            turn = int(sys.argv[3])
            while True:
                turn += 1
                put(catalog, store, f"{turn % 5}.txt", f"lamp {turn}\\n\\nkettle {turn} refund")
                fold(catalog, store, index)
            """
        )
    )
    draw = random.Random(9)
    for turn in range(turns(2, 50)):
        process = subprocess.Popen(
            [sys.executable, worker, store.id, str(HELPERS), str(turn * 1000)],
            stdout=subprocess.PIPE,
            env={**os.environ, "RYORIN_HOME": str(catalog.settings.home)},
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0.05, 0.6))
            process.send_signal(signal.SIGKILL)
            process.wait()
        index = lexical.index_of(catalog, store)
        assert index.verify() == []
        for act in (lexical.refresh, lexical.fold):
            act(catalog, store, index)
            for query in ("kettle lamp refund", "領収書"):
                got = {passage for _, passage in index.search(query, 99)}
                assert got == lexical.plain_bm25(catalog, store, query).keys()


# Batches grow: 16, then at most 32 more, then at most 64. Where it is killed has nothing to do with the database.
@pytest.mark.parametrize(("catalog", "after"), [("sqlite", 40), ("postgresql", 10)], indirect=["catalog"])
def test_a_killed_run_goes_on_where_it_was(catalog: Catalog, store: VectorStore, after: int) -> None:
    for number in range(80):
        turned.put(catalog, store, number, "oak")
    script = """
import sys, time
sys.path.insert(0, sys.argv[1])
from turned_embedder import NEXT, Turned
from ryorin.catalog import open_catalog
from ryorin.catalog.tables import VectorStore
from ryorin.settings import load_settings
from ryorin_index.reembed import change_embedder
embedded = []
class Stuck(Turned):
    def passages(self, texts):
        if len(embedded) >= int(sys.argv[3]):
            time.sleep(3600)
        embedded.extend(texts)
        return super().passages(texts)
catalog = open_catalog(load_settings())
with catalog.session() as session:
    store = session.get_one(VectorStore, sys.argv[2])
change_embedder(catalog, [store], NEXT, Stuck)
"""
    command = [sys.executable, "-c", script, str(HELPERS), store.id, str(after)]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        while process.poll() is None and kept(catalog) < after:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    done = kept(catalog)
    assert after <= done < 80
    assert turned.reread(catalog, store).embedder == "words"
    embedder = turned.Turned()
    changed = change_embedder(catalog, [store], turned.NEXT, lambda: embedder)
    assert changed.embedded == len(embedder.embedded) == 80 - done
    assert turned.without_vector(catalog) == 0


def kept(catalog: Catalog) -> int:
    with catalog.session() as session:
        return session.scalar(select(func.count()).where(Vector.embedder_digest == turned.NEXT.digest)) or 0
