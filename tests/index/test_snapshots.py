"""Snapshots and rolling back, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from long_runs import turns
from sqlalchemy import select
from word_embedder import WordEmbedder, fake_embedder

from ryorin.blobs import blob_path
from ryorin.catalog import Catalog
from ryorin.catalog.audit import audit_events
from ryorin.catalog.tables import Document, Passage, Tenant, VectorStore
from ryorin.digests import new_id
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin_index.ingest import Incoming, put_document, remove_documents
from ryorin_index.purge import purge_store
from ryorin_index.search import Searcher
from ryorin_index.snapshots import create_snapshot, delete_snapshot, get_snapshot, list_snapshots, rollback_store
from ryorin_index.store import create_store, get_store

QUESTIONS = ("oak lamp", "rice tea", "returns 30 days", "定期便")


def put(catalog: Catalog, store: VectorStore, embedder: WordEmbedder, name: str, *parts: str, **more: Any) -> None:
    text = f"# {name}\n\n" + "\n\n".join(f"## Part {at}\n\n{part}" for at, part in enumerate(parts))
    incoming = Incoming(source=f"/d/{name}.md", filename=f"{name}.md", data=text.encode(), **more)
    put_document(catalog, store, incoming, lambda: embedder)


def refuse() -> WordEmbedder:
    raise AssertionError("nothing must be embedded")


def answers(catalog: Catalog, store: VectorStore) -> list[Any]:
    """What searches give, without the ids of rows."""
    searcher = Searcher(catalog, lambda _: WordEmbedder())
    found = [searcher.search(store.tenant_id, [store.id], question, 20) for question in QUESTIONS]
    return [
        sorted((-round(hit.score, 5), hit.filename, hit.title, hit.text, hit.start, hit.end, hit.page) for hit in hits)
        for hits in found
    ]


def passage_ids(catalog: Catalog, store: VectorStore) -> dict[str, int]:
    with catalog.session() as session:
        rows = session.execute(select(Passage.text, Passage.id).where(Passage.store_id == store.id))
        return {row.text: row.id for row in rows}


def test_going_back_and_forth_embeds_nothing_and_keeps_rows(
    catalog: Catalog, store: VectorStore, embedder: WordEmbedder
) -> None:
    put(catalog, store, embedder, "returns", "returns in 30 days", "opened goods", attributes={"year": 2025})
    put(catalog, store, embedder, "tea", "rice tea")
    put(catalog, store, embedder, "gone", "oak lamp")
    before, ids = answers(catalog, store), passage_ids(catalog, store)
    snapshot = create_snapshot(catalog, store, "monday")
    assert (snapshot.documents, snapshot.passages) == (3, 4)

    put(catalog, store, embedder, "returns", "returns in 45 days", "opened goods", attributes={"year": 2026})
    put(catalog, store, embedder, "new", "cedar gift")
    remove_documents(catalog, store, ["gone.md"])
    after = answers(catalog, store)
    with catalog.session() as session:
        generation = session.get_one(VectorStore, store.id).generation

    done = rollback_store(catalog, store, "monday", refuse)
    assert (done.added, done.changed, done.removed, done.embedded) == (1, 1, 1, 0)
    assert done.generation == generation + 1
    assert answers(catalog, store) == before
    now = passage_ids(catalog, store)
    assert now["opened goods"] == ids["opened goods"] and now["rice tea"] == ids["rice tea"]
    with catalog.session() as session:
        attributes = session.scalar(select(Document.attributes).where(Document.source == "/d/returns.md"))
        assert attributes == {"year": 2025}

    assert done.saved_as == f"before-rollback-{generation}"
    rollback_store(catalog, store, done.saved_as, refuse, save=False)
    assert answers(catalog, store) == after
    with catalog.session() as session:
        acts = [(act.act, act.target) for act in audit_events(session, store.tenant_id)]
    assert acts[:2] == [("store.rollback", f"{store.name}/{done.saved_as}"), ("store.rollback", f"{store.name}/monday")]


def test_a_store_that_is_equal_is_left_alone(catalog: Catalog, store: VectorStore, embedder: WordEmbedder) -> None:
    put(catalog, store, embedder, "tea", "rice tea")
    create_snapshot(catalog, store, "a")
    done = rollback_store(catalog, store, "a", refuse)
    assert (done.added, done.changed, done.removed, done.generation, done.saved_as) == (0, 0, 0, 1, None)


def test_documents_that_swapped_their_sources(catalog: Catalog, store: VectorStore, embedder: WordEmbedder) -> None:
    put(catalog, store, embedder, "a", "oak lamp")
    put(catalog, store, embedder, "b", "rice tea")
    before = answers(catalog, store)
    create_snapshot(catalog, store, "start")
    with catalog.session() as session:
        first, second = session.scalars(select(Document).order_by(Document.source))
        names = (first.source, second.source)
        first.source = "elsewhere"
        session.flush()
        second.source = names[0]
        session.flush()
        first.source = names[1]
    done = rollback_store(catalog, store, "start", refuse)
    assert (done.added, done.changed, done.removed) == (0, 2, 0)
    assert answers(catalog, store) == before
    assert rollback_store(catalog, store, "start", refuse).saved_as is None


def test_what_was_removed_and_added_again(catalog: Catalog, store: VectorStore, embedder: WordEmbedder) -> None:
    put(catalog, store, embedder, "a", "oak lamp", "rice tea")
    before = answers(catalog, store)
    create_snapshot(catalog, store, "start")
    remove_documents(catalog, store, ["a.md"])
    put(catalog, store, embedder, "a", "oak lamp", "cedar")
    done = rollback_store(catalog, store, "start", refuse)
    assert (done.added, done.changed, done.removed) == (0, 1, 0)
    assert answers(catalog, store) == before


def test_the_present_embedder_stays(catalog: Catalog, store: VectorStore, embedder: WordEmbedder) -> None:
    put(catalog, store, embedder, "a", "oak lamp")
    before = answers(catalog, store)
    create_snapshot(catalog, store, "start")
    put(catalog, store, embedder, "a", "rice tea")
    with catalog.session() as session:
        session.get_one(VectorStore, store.id).embedder_digest = "1" * 64
    changed = reread(catalog, store)
    put(catalog, changed, embedder, "a", "rice tea two")
    done = rollback_store(catalog, changed, "start", lambda: embedder)
    assert done.embedded == 1
    assert answers(catalog, store) == before


def reread(catalog: Catalog, store: VectorStore) -> VectorStore:
    with catalog.session() as session:
        return session.get_one(VectorStore, store.id)


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), InvalidInput),
        (lambda path: path.write_bytes(b"\0" + path.read_bytes()[1:]), InvalidInput),
        (lambda path: path.unlink(), NotFound),
    ],
)
def test_a_damaged_snapshot_changes_nothing(
    catalog: Catalog, store: VectorStore, embedder: WordEmbedder, harm: Callable[..., Any], error: type[Exception]
) -> None:
    put(catalog, store, embedder, "a", "oak lamp")
    snapshot = create_snapshot(catalog, store, "start")
    put(catalog, store, embedder, "a", "rice tea")
    before = answers(catalog, store)
    harm(blob_path(catalog.settings.blobs_dir, snapshot.sha256))
    with pytest.raises(error, match=snapshot.sha256[:12]):
        rollback_store(catalog, store, "start", refuse)
    assert answers(catalog, store) == before
    with pytest.raises(error):
        purge_store(catalog, store)


def test_names_and_deleting(catalog: Catalog, store: VectorStore, tenant: Tenant, embedder: WordEmbedder) -> None:
    put(catalog, store, embedder, "a", "oak lamp")
    first, second = create_snapshot(catalog, store, "one"), create_snapshot(catalog, store)
    with pytest.raises(Conflict, match="'one' already"):
        create_snapshot(catalog, store, "one")
    with pytest.raises(InvalidInput, match="lower-case"):
        create_snapshot(catalog, store, "../one")
    delete_snapshot(catalog, store, "one")
    assert not blob_path(catalog.settings.blobs_dir, first.sha256).exists()
    assert blob_path(catalog.settings.blobs_dir, second.sha256).exists()
    with catalog.session() as session:
        assert [each.name for each in list_snapshots(session, store)] == [second.name]
        other = create_store(session, tenant, "other", fake_embedder())
        with pytest.raises(NotFound, match=r"known: \d{8}-"):
            get_snapshot(session, store, "one")
        with pytest.raises(NotFound, match="none yet"):
            get_snapshot(session, other, second.name)


def test_readers_see_one_state_or_the_other(catalog: Catalog, store: VectorStore, embedder: WordEmbedder) -> None:
    for number in range(12):
        put(catalog, store, embedder, f"d{number}", "lamp old")
    create_snapshot(catalog, store, "old")
    for number in range(12):
        put(catalog, store, embedder, f"d{number}", "lamp new")
    create_snapshot(catalog, store, "new")
    searcher = Searcher(catalog, lambda _: WordEmbedder())
    seen: set[tuple[str, ...]] = set()
    finished = threading.Event()

    def read() -> None:
        while not finished.is_set():
            hits = searcher.search(store.tenant_id, [store.id], "lamp", 30)
            texts = [[hit.text] * (1 + len(hit.explanation.folded)) for hit in hits if hit.explanation]
            seen.add(tuple(sorted(text for same in texts for text in same)))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for turn in range(6):
            rollback_store(catalog, store, ("old", "new")[turn % 2], refuse, save=False)
    finally:
        finished.set()
        thread.join()
    assert seen <= {("lamp old",) * 12, ("lamp new",) * 12} and seen


words = st.lists(
    st.sampled_from(["oak", "lamp", "rice", "tea", "returns", "30", "days", "定期便"]), min_size=1, max_size=4
)
change = st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.lists(words, min_size=1, max_size=3)))


@given(before=st.lists(change, max_size=6), after=st.lists(change, max_size=6))
@example(before=[("b", [["oak"]]), ("a", [["oak"]])], after=[("b", None)])
@settings(max_examples=turns(5, 200), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changes_are_undone(catalog: Catalog, tenant: Tenant, before: list[Any], after: list[Any]) -> None:
    embedder = WordEmbedder()
    with catalog.session() as session:
        store = create_store(session, tenant, new_id("s")[:20], fake_embedder())

    def apply(changes: list[Any]) -> None:
        for name, parts in changes:
            if parts is not None:
                put(catalog, store, embedder, name, *(" ".join(part) for part in parts))
            else:
                with catalog.session() as session:
                    there = session.scalar(
                        select(Document.id).where(Document.store_id == store.id, Document.source == f"/d/{name}.md")
                    )
                if there:
                    remove_documents(catalog, store, [there])

    def state() -> Any:
        """Of passages of one text a search shows the oldest, which after a rollback may be that of another document."""
        columns = (Document.filename, Passage.text, Passage.start, Passage.end)
        with catalog.session() as session:
            joined = select(*columns).join(Document, Document.id == Passage.document_id)
            rows = sorted(map(tuple, session.execute(joined.where(Passage.store_id == store.id))))
        return rows, [[(score, text) for score, _, _, text, *_ in found] for found in answers(catalog, store)]

    apply(before)
    expected = state()
    create_snapshot(catalog, store, "start")
    apply(after)
    purge_store(catalog, store, keep_generations=0)
    rollback_store(catalog, store, "start", refuse)
    assert state() == expected


def test_the_commands(cli: Any, catalog: Catalog, store: VectorStore, embedder: WordEmbedder) -> None:
    import json

    put(catalog, store, embedder, "a", "oak lamp")

    def run(*command: str) -> Any:
        return cli("index", *command, "--tenant", "support")

    made = json.loads(run("snapshot", "handbook", "monday", "--json").out)
    assert (made["name"], made["documents"], made["passages"]) == ("monday", 1, 1)
    put(catalog, store, embedder, "b", "rice tea")
    back = run("rollback", "handbook", "monday", "--yes")
    assert back.code == 0 and "0 documents brought back, 0 changed, 1 removed" in back.err
    assert "ryorin index rollback handbook before-rollback-2" in back.err
    names = [row["name"] for row in json.loads(run("snapshots", "handbook", "--json").out)]
    assert sorted(names) == ["before-rollback-2", "monday"]
    assert json.loads(run("snapshots", "handbook", "--delete", "monday", "--json").out) == {"deleted": "monday"}
    missing = run("rollback", "handbook", "monday", "--yes")
    assert missing.code == 2 and "no snapshot 'monday' (known: before-rollback-2)" in missing.err
    assert json.loads(run("purge", "handbook", "--dry-run", "--json").out)["vectors"] == 0
    assert run("delete", "handbook", "--yes").code == 0
    with catalog.session() as session, pytest.raises(NotFound):
        get_store(session, session.get_one(Tenant, store.tenant_id), "handbook")
