"""Changing the embedder while the store is read and written; a killed run; what a writer with an old embedder does."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from turned_embedder import NEXT, Turned, open_embed, put, reread, without_vector
from word_embedder import WordEmbedder, fake_embedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Tenant, VectorStore
from ryorin.catalog.tenants import current_prompt, set_prompt
from ryorin.errors import Conflict
from ryorin.models.registry import Embedder
from ryorin.prompt import Prompt
from ryorin.release import Retrieval, create_release, promote
from ryorin_index.embed import Vectors
from ryorin_index.reembed import Change, change_embedder
from ryorin_index.search import Searcher
from ryorin_index.store import create_store, embedder_of


def test_the_new_embedder_serves_after_the_swap(catalog: Catalog, store: VectorStore) -> None:
    for number in range(40):
        put(catalog, store, number, "oak" if number else "lamp")
    searcher = Searcher(catalog, open_embed)
    before = searcher.search(store.tenant_id, [store.id], "lamp", 3)
    told: list[Change] = []
    embedder = Turned()
    changed = change_embedder(catalog, [store], NEXT, lambda: embedder, told.append)
    assert (changed.embedded, len(embedder.embedded), changed.generations) == (40, 40, {"handbook": 41})
    assert [(at.done, at.total) for at in (told[0], told[-1])] == [(16, 40), (40, 40)]
    assert [at.done for at in told] == sorted({at.done for at in told})
    now = reread(catalog, store)
    assert (now.embedder, now.embedder_digest, now.next_embedder_digest) == ("turned", NEXT.digest, None)
    after = searcher.search(store.tenant_id, [store.id], "lamp", 3)
    assert [hit.passage_id for hit in after] == [hit.passage_id for hit in before]
    assert [hit.score for hit in after] == pytest.approx([hit.score for hit in before], abs=1e-5)
    again = change_embedder(catalog, [now], NEXT, lambda: embedder)
    assert (again.embedded, again.generations) == (0, {"handbook": 41})


def test_a_writer_and_a_reader_go_on_meanwhile(catalog: Catalog, store: VectorStore) -> None:
    for number in range(30):
        put(catalog, store, number, "oak")
    finished, refused, missed = threading.Event(), [], []
    written = []

    class Slow(Turned):
        def passages(self, texts: Sequence[str]) -> Vectors:
            time.sleep(0.02)
            return super().passages(texts)

    def write() -> None:
        mine, number = store, 100
        while (not finished.is_set() or len(written) < 5) and len(written) < 50:  # no more than a search can show
            try:
                put(catalog, mine, number, "cedar")
                written.append(number)
                number += 1
            except Conflict as conflict:
                refused.append(str(conflict))
                mine = reread(catalog, store)

    def read() -> None:
        searcher = Searcher(catalog, open_embed)
        while not finished.is_set():
            hits = searcher.search(store.tenant_id, [store.id], "oak number 7", 1)
            if not hits or hits[0].filename != "7.md":
                missed.append(hits)

    threads = [threading.Thread(target=write), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    try:
        change_embedder(catalog, [store], NEXT, lambda: Slow())
        time.sleep(0.1)
    finally:
        finished.set()
        for thread in threads:
            thread.join()
    assert missed == [] and without_vector(catalog) == 0
    assert all("changed its embedder from words to turned" in reason for reason in refused)
    hits = Searcher(catalog, open_embed).search(store.tenant_id, [store.id], "cedar", 50)
    assert {f"{number}.md" for number in written} <= {hit.filename for hit in hits}


def test_a_document_put_with_the_old_embedder_after_the_swap_is_refused(catalog: Catalog, store: VectorStore) -> None:
    put(catalog, store, 1, "oak")

    class Swapped(WordEmbedder):
        """The swap comes while this text is embedded."""

        def passages(self, texts: Sequence[str]) -> Vectors:
            change_embedder(catalog, [store], NEXT, Turned)
            return super().passages(texts)

    with pytest.raises(Conflict, match="changed its embedder from words to turned"):
        put(catalog, store, 2, "cedar", Swapped())
    assert without_vector(catalog) == 0
    assert put(catalog, reread(catalog, store), 2, "cedar").change == "added"


def test_the_last_texts_are_embedded_while_a_busy_writer_waits(catalog: Catalog, store: VectorStore) -> None:
    put(catalog, store, 0, "oak")
    numbers = iter(range(1, 100))

    class Chased(Turned):
        """Each time a text is embedded outside the swap there is one more."""

        def passages(self, texts: Sequence[str]) -> Vectors:
            number = next(numbers)
            if number <= 3:
                put(catalog, store, number, "cedar")
            return super().passages(texts)

    changed = change_embedder(catalog, [store], NEXT, Chased)
    assert changed.embedded == 4 and without_vector(catalog) == 0


def test_releases_that_search_several_stores(catalog: Catalog, store: VectorStore, tenant: Tenant) -> None:
    with catalog.session() as session:
        tenant = session.get_one(Tenant, tenant.id)
        other = create_store(session, tenant, "prices", fake_embedder())
        set_prompt(session, tenant, Prompt(system="Answer."))
        parts: dict[str, Any] = {"base_digest": "b" * 64, "prompt": current_prompt(session, tenant)}
        create_release(session, tenant, stores=[store], **parts)
        create_release(session, tenant, stores=[store, other], retrieval=Retrieval(top_k=0), **parts)
        third = create_release(session, tenant, stores=[store, other], **parts)
        promote(session, tenant, third)
    with pytest.raises(Conflict, match=r"live release 3 .* --also prices"):
        change_embedder(catalog, [store], NEXT, Turned)
    assert reread(catalog, store).embedder == "words"
    changed = change_embedder(catalog, [store, other], NEXT, Turned)
    assert changed.broken == [] and set(changed.generations) == {"handbook", "prices"}
    with catalog.session() as session:
        tenant = session.get_one(Tenant, tenant.id)
        promote(session, tenant, create_release(session, tenant, **parts))
    words = Embedder(name="words", kind="sentence-transformers", digest="0" * 64, dimensions=64)
    assert change_embedder(catalog, [reread(catalog, store)], words, WordEmbedder).broken == [3]


def test_giving_up_a_change(catalog: Catalog, store: VectorStore) -> None:
    put(catalog, store, 1, "oak")

    class Interrupted(Turned):
        def passages(self, texts: Sequence[str]) -> Vectors:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change_embedder(catalog, [store], NEXT, Interrupted)
    assert reread(catalog, store).next_embedder_digest == NEXT.digest
    change_embedder(catalog, [store], fake_embedder(), WordEmbedder)
    assert reread(catalog, store).next_embedder_digest is None


def test_a_model_of_the_same_name_is_not_the_same_embedder(
    catalog: Catalog, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ryorin_index.store as module

    here = Embedder(name="words", kind="sentence-transformers", digest="2" * 64, dimensions=64)
    monkeypatch.setattr(module, "get_embedder", lambda settings, name: here)
    with pytest.raises(Conflict, match=r"words 000000000000, this machine's words is 222222222222") as refused:
        embedder_of(catalog.settings, store)
    assert "ryorin index embedder handbook words" in str(refused.value)
    store.embedder_digest = "name:words"  # a store of the first schema
    assert embedder_of(catalog.settings, store) is here


def test_vectors_of_the_wrong_kind(catalog: Catalog, store: VectorStore) -> None:
    class Odd(WordEmbedder):
        def passages(self, texts: Sequence[str]) -> Vectors:
            return np.full((len(texts), 64), np.nan, dtype=np.float32)

    with pytest.raises(Exception, match="not finite"):
        put(catalog, store, 1, "oak", Odd())
    assert without_vector(catalog) == 0
