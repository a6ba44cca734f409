"""What purging removes and leaves, next to readers and writers; deleting stores."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from long_runs import turns
from sqlalchemy import func, select
from turned_embedder import NEXT, Turned, put, reread, without_vector
from word_embedder import WordEmbedder, fake_embedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Passage, Tenant, Tombstone, Vector, VectorStore
from ryorin.catalog.tenants import current_prompt, set_prompt
from ryorin.errors import Conflict, NotFound
from ryorin.prompt import Prompt
from ryorin.release import create_release, promote
from ryorin_index import ingest
from ryorin_index.embed import Vectors
from ryorin_index.ingest import Incoming, put_document
from ryorin_index.purge import delete_store, purge_store, purge_tombstones, purge_vectors
from ryorin_index.reembed import change_embedder
from ryorin_index.search import Searcher
from ryorin_index.snapshots import create_snapshot, delete_snapshot
from ryorin_index.store import create_store
from ryorin_index.vectors import embed_missing


def count(catalog: Catalog, table: type) -> int:
    with catalog.session() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_only_what_nothing_needs_goes(catalog: Catalog, store: VectorStore, tenant: Tenant) -> None:
    with catalog.session() as session:
        other = create_store(session, tenant, "other", fake_embedder())
    put(catalog, store, 1, "oak")
    create_snapshot(catalog, store, "start")
    put(catalog, store, 1, "cedar")
    put(catalog, other, 1, "lamp")
    put(catalog, store, 1, "lamp")
    assert (count(catalog, Vector), count(catalog, Tombstone)) == (3, 2)
    would = purge_store(catalog, store, keep_generations=0, dry_run=True)
    assert (would.tombstones, would.vectors, would.bytes) == (2, 1, 256)
    assert (count(catalog, Vector), count(catalog, Tombstone)) == (3, 2)
    assert purge_store(catalog, store, keep_generations=0) == would
    assert (count(catalog, Vector), count(catalog, Tombstone)) == (2, 0)
    assert reread(catalog, store).purged_generation == 3
    delete_snapshot(catalog, store, "start")
    assert purge_vectors(catalog, store.tenant_id) == (1, 256)
    assert purge_vectors(catalog, store.tenant_id) == (0, 0) and without_vector(catalog) == 0


def test_tombstones_of_the_last_generations_stay(catalog: Catalog, store: VectorStore) -> None:
    for word in ("oak", "cedar", "lamp", "tea"):
        put(catalog, store, 1, word)
    assert purge_tombstones(catalog, store, keep_generations=1000) == 0
    assert purge_tombstones(catalog, store, keep_generations=1) == 2
    assert (reread(catalog, store).purged_generation, count(catalog, Tombstone)) == (3, 1)


def test_a_future_embedders_vectors_stay_and_a_past_ones_go(catalog: Catalog, store: VectorStore) -> None:
    for number in range(20):
        put(catalog, store, number, "oak")

    class Broken(Turned):
        def passages(self, texts: Sequence[str]) -> Vectors:
            if self.embedded:
                raise KeyboardInterrupt
            return super().passages(texts)

    broken = Broken()
    with pytest.raises(KeyboardInterrupt):
        change_embedder(catalog, [store], NEXT, lambda: broken)
    assert purge_vectors(catalog, store.tenant_id) == (0, 0)
    assert change_embedder(catalog, [store], NEXT, Turned).embedded == 4
    assert purge_vectors(catalog, store.tenant_id)[0] == 20
    assert without_vector(catalog) == 0


def test_a_reader_that_slept_through_a_purge(catalog: Catalog, store: VectorStore) -> None:
    searcher = Searcher(catalog, lambda _: WordEmbedder())
    put(catalog, store, 1, "oak")
    put(catalog, store, 2, "cedar")
    assert len(searcher.search(store.tenant_id, [store.id], "oak", 9)) == 2
    put(catalog, store, 1, "lamp")
    purge_store(catalog, store, keep_generations=0)
    texts = [hit.text for hit in searcher.search(store.tenant_id, [store.id], "oak lamp", 9)]
    assert sorted(texts) == ["cedar number 2", "lamp number 1"]


def test_vectors_purged_between_the_look_and_the_transaction_are_made_again(
    catalog: Catalog, store: VectorStore
) -> None:
    put(catalog, store, 1, "oak")
    put(catalog, store, 1, "cedar")
    purged: list[int] = []

    class Purging(WordEmbedder):
        """The vectors kept so far are purged while the last text is embedded."""

        def passages(self, texts: Sequence[str]) -> Vectors:
            if not purged:
                purged.append(purge_vectors(catalog, store.tenant_id)[0])
            return super().passages(texts)

    embedder = Purging()
    data = b"# Guide 1\n\noak number 1\n\n## A\n\nnew words\n"  # the first passage's vector is there
    put_document(catalog, store, Incoming("/d/1.md", "1.md", data), lambda: embedder)
    assert purged == [1]
    assert len(embedder.embedded) == 2 and without_vector(catalog) == 0


def test_writers_and_purges_at_once(catalog: Catalog, store: VectorStore, tenant: Tenant) -> None:
    """Two stores take each other's texts in turn, so purging always finds some that are about to be used again."""
    with catalog.session() as session:
        other = create_store(session, tenant, "other", fake_embedder())
    finished = threading.Event()
    failures: list[BaseException] = []

    def purge() -> None:
        try:
            while not finished.is_set():
                purge_store(catalog, store, keep_generations=0)
        except BaseException as error:
            failures.append(error)

    def write(mine: VectorStore, shift: int) -> None:
        try:
            for turn in range(turns(12, 100)):
                put(catalog, mine, 1, ("oak", "cedar", "lamp")[(turn + shift) % 3])
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(each, shift)) for shift, each in enumerate((store, other))]
    purger = threading.Thread(target=purge)
    for thread in (*writers, purger):
        thread.start()
    for thread in writers:
        thread.join()
    finished.set()
    purger.join()
    assert failures == [] and without_vector(catalog) == 0


def test_a_purge_before_every_write(catalog: Catalog, store: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def purged(*arguments: Any) -> int:
        looks.append(embed_missing(*arguments))
        purge_store(catalog, store, keep_generations=0)
        return looks[-1]

    monkeypatch.setattr(ingest, "embed_missing", purged)
    put(catalog, store, 1, "oak")
    assert looks == [1, 1, 1] and without_vector(catalog) == 0  # each purge took it; the last one came before the write


def test_deleting_a_store(catalog: Catalog, store: VectorStore, tenant: Tenant) -> None:
    with catalog.session() as session:
        tenant = session.get_one(Tenant, tenant.id)
        other = create_store(session, tenant, "other", fake_embedder())
        set_prompt(session, tenant, Prompt(system="Answer."))
        prompt = current_prompt(session, tenant)
        first = create_release(session, tenant, base_digest="b" * 64, prompt=prompt, stores=[store])
        promote(session, tenant, first)
    put(catalog, store, 1, "oak")
    put(catalog, store, 1, "cedar")
    put(catalog, other, 1, "lamp")
    create_snapshot(catalog, store, "start")
    with pytest.raises(Conflict, match="live release of tenant 'support' answers from store 'handbook'"):
        delete_store(catalog, store, force=True)
    with catalog.session() as session:
        tenant = session.get_one(Tenant, tenant.id)
        promote(session, tenant, create_release(session, tenant, base_digest="b" * 64, prompt=prompt))
    with pytest.raises(Conflict, match="releases 1 of tenant"):
        delete_store(catalog, store)
    delete_store(catalog, store, force=True)
    assert [count(catalog, table) for table in (VectorStore, Document, Passage, Tombstone, Vector)] == [1, 1, 1, 0, 1]
    assert [path for path in catalog.settings.blobs_dir.rglob("*") if path.is_file()] == []
    with pytest.raises(NotFound, match="was deleted meanwhile"):
        put(catalog, store, 2, "tea")
    assert len(Searcher(catalog, lambda _: WordEmbedder()).search(tenant.id, [other.id], "lamp", 5)) == 1
