"""Search against a brute-force oracle, across generations and tenants."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from long_runs import turns
from sqlalchemy import select
from word_embedder import WordEmbedder, fake_embedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Passage, Tenant, Vector, VectorStore
from ryorin.catalog.tenants import create_tenant
from ryorin.errors import InvalidInput, NotFound
from ryorin.release import Retrieval
from ryorin_index.ingest import remove_documents
from ryorin_index.purge import delete_store
from ryorin_index.search import MAX_QUERY_CHARACTERS, Searcher
from ryorin_index.store import create_store
from ryorin_index.sync import add_paths

DENSE = Retrieval(mode="dense")
WORDS = ("oak", "cedar", "kettle", "lamp", "return", "repair", "order", "gift", "rice", "tea", "定期", "領収書", "修理")


def oracle(catalog: Catalog, store: VectorStore, embedder: WordEmbedder, query: str) -> list[float]:
    """All scores, best first, computed from SQL with numpy alone."""
    with catalog.session() as session:
        rows = list(
            session.scalars(
                select(Vector.vector).join(Passage, Passage.sha256 == Vector.sha256).where(Passage.store_id == store.id)
            )
        )
    vector = embedder.query(query)
    return sorted((float(np.frombuffer(row, "<f4") @ vector) for row in rows), reverse=True)


def test_equals_brute_force_after_every_kind_of_change(
    catalog: Catalog, store: VectorStore, tenant: Tenant, tmp_path: Path, embedder: WordEmbedder
) -> None:
    draw = random.Random(3)
    searcher = Searcher(catalog, lambda _: embedder)
    for step in range(turns(20, 200)):
        path = tmp_path / f"{draw.randrange(8)}.md"
        if path.exists() and draw.random() < 0.3:
            remove_documents(catalog, store, [path.name])
            path.unlink()
        else:
            sections = [
                f"## {draw.choice(WORDS)} {step}\n\n{' '.join(draw.choices(WORDS, k=9))}"
                for _ in range(draw.randint(1, 4))
            ]
            path.write_text("# Title\n\n" + "\n\n".join(sections), encoding="utf-8")
            assert add_paths(catalog, store, [path], lambda: embedder).failed == []
        query = " ".join(draw.choices(WORDS, k=3))
        got = [hit.score for hit in searcher.search(tenant.id, [store.id], query, 5, retrieval=DENSE)]
        assert got == pytest.approx(oracle(catalog, store, embedder, query)[:5], abs=1e-5)


def test_hits_say_where_they_stand(
    catalog: Catalog, store: VectorStore, tenant: Tenant, folder: Path, embedder: WordEmbedder
) -> None:
    add_paths(catalog, store, [folder], lambda: embedder)
    searcher = Searcher(catalog, lambda _: embedder)
    hit = searcher.search(tenant.id, [store.id], "お米 定期便", 1)[0]
    assert (hit.filename, hit.title, hit.text) == ("teiki.md", "定期便 > お届け", "お米は毎月届きます。")
    assert searcher.passage(tenant.id, hit.passage_id).text == hit.text


def test_score_floor_and_empty_store(
    catalog: Catalog, store: VectorStore, tenant: Tenant, folder: Path, embedder: WordEmbedder
) -> None:
    searcher = Searcher(catalog, lambda _: embedder)
    assert searcher.search(tenant.id, [store.id], "anything", 3) == []
    add_paths(catalog, store, [folder], lambda: embedder)
    everything = searcher.search(tenant.id, [store.id], "unopened goods", 9, retrieval=DENSE)
    floor = everything[1].score
    assert searcher.search(tenant.id, [store.id], "unopened goods", 9, floor, retrieval=DENSE) == everything[:2]
    for mode in ("dense", "lexical", "hybrid"):
        assert searcher.search(tenant.id, [store.id], "unopened goods", 9, 1.0, retrieval=Retrieval(mode=mode)) == []
    assert searcher.search(tenant.id, [], "unopened goods", 9) == []


def test_two_stores_are_merged_by_score(
    catalog: Catalog, store: VectorStore, tenant: Tenant, folder: Path, embedder: WordEmbedder
) -> None:
    with catalog.session() as session:
        second = create_store(session, tenant, "second", fake_embedder())
    add_paths(catalog, store, [folder / "returns.md"], lambda: embedder)
    add_paths(catalog, second, [folder / "shops.html"], lambda: embedder)
    searcher = Searcher(catalog, lambda _: embedder)
    hits = searcher.search(tenant.id, [store.id, second.id], "parking opened goods", 9, retrieval=DENSE)
    assert {hit.store_id for hit in hits} == {store.id, second.id}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_another_tenants_store_and_passages_do_not_exist(
    catalog: Catalog, store: VectorStore, tenant: Tenant, folder: Path, embedder: WordEmbedder
) -> None:
    add_paths(catalog, store, [folder], lambda: embedder)
    with catalog.session() as session:
        other = create_tenant(session, "people")
    searcher = Searcher(catalog, lambda _: embedder)
    passage = searcher.search(tenant.id, [store.id], "unopened", 1)[0].passage_id
    with pytest.raises(NotFound):
        searcher.search(other.id, [store.id], "unopened", 1)
    with pytest.raises(NotFound):
        searcher.passage(other.id, passage)


def test_an_edit_is_found_by_the_next_search_while_others_search(
    catalog: Catalog, store: VectorStore, tenant: Tenant, tmp_path: Path, embedder: WordEmbedder
) -> None:
    """One writer, three readers: never nothing, never older than what was written when the question came in."""
    searcher = Searcher(catalog, lambda _: embedder)
    path = tmp_path / "prices.md"
    written, finished = [0], threading.Event()
    stale: list[tuple[int, list[str]]] = []

    def write(version: int) -> None:
        more = "".join(f"## Part {part}\n\nfiller {part} {version}\n\n" for part in range(version % 7))
        path.write_text(f"# Prices\n\nlacquer bowl {version}\n\n{more}")
        assert add_paths(catalog, store, [path], lambda: embedder).failed == []
        written[0] = version

    def read() -> None:
        while not finished.is_set():
            at_least = written[0]
            texts = [hit.text for hit in searcher.search(tenant.id, [store.id], "lacquer bowl", 3)]
            if not any(int(text.split()[-1]) >= at_least for text in texts if text.startswith("lacquer")):
                stale.append((at_least, texts))

    write(1)
    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for version in range(2, turns(20, 200)):
                write(version)
        finally:
            finished.set()
        for reader in readers:
            reader.result()
    assert stale == []


def test_no_connection_is_held_while_a_question_is_embedded(
    catalog: Catalog, store: VectorStore, tenant: Tenant, folder: Path, embedder: WordEmbedder
) -> None:
    """An embedding endpoint may take a minute; the pool has a dozen connections for all requests."""
    add_paths(catalog, store, [folder], lambda: embedder)
    held: list[int] = []

    class Watching(WordEmbedder):
        def query(self, text):  # type: ignore[no-untyped-def]
            held.append(catalog.engine.pool.checkedout())  # type: ignore[attr-defined]
            return super().query(text)

    assert Searcher(catalog, lambda _: Watching()).search(tenant.id, [store.id], "parking", 1)
    assert held == [0]


def test_queries_that_are_wrong(catalog: Catalog, store: VectorStore, tenant: Tenant, embedder: WordEmbedder) -> None:
    searcher = Searcher(catalog, lambda _: embedder)
    with pytest.raises(InvalidInput, match="empty"):
        searcher.search(tenant.id, [store.id], " \n", 3)
    with pytest.raises(InvalidInput, match=f"the limit is {MAX_QUERY_CHARACTERS}"):
        searcher.search(tenant.id, [store.id], "x" * (MAX_QUERY_CHARACTERS + 1), 3)


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_nothing_is_held_of_a_store_that_is_gone(
    catalog: Catalog, store: VectorStore, tenant: Tenant, tmp_path: Path, embedder: WordEmbedder, mode: str
) -> None:
    with catalog.session() as session:
        other = create_store(session, tenant, "other", fake_embedder())
    (tmp_path / "a.md").write_text("# Tea\n\nTea and rice.", encoding="utf-8")
    searcher = Searcher(catalog, lambda _: embedder)
    for each in (store, other):
        assert add_paths(catalog, each, [tmp_path / "a.md"], lambda: embedder).failed == []
        assert searcher.search(tenant.id, [each.id], "tea", retrieval=Retrieval(mode=mode))  # type: ignore[arg-type]
    assert {each.id for each in searcher._in_use()} == {store.id, other.id}
    delete_store(catalog, other)
    assert [each.id for each in searcher._in_use()] == [store.id]
    held = (searcher._indexes, searcher._lexical, searcher._attributes)
    assert any(held) and {store_id for each in held for store_id, _ in each} == {store.id}
