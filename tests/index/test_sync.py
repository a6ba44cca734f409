"""Syncing a store with folders: every kind of change, on SQLite and on PostgreSQL; kills, locks, lost folders."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from long_runs import turns
from sqlalchemy import delete, select
from word_embedder import WordEmbedder, fake_embedder

from ryorin.catalog import Catalog
from ryorin.catalog.audit import audit_events
from ryorin.catalog.tables import Document, Passage, Source, Tenant, VectorStore
from ryorin.digests import sha256_bytes
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin_index.source_rows import add_source, find_sources, list_sources, remove_source
from ryorin_index.store import create_store
from ryorin_index.sync import Report, add_paths, dry_run, only_one, sync_store

Sync = Callable[..., Report]


@pytest.fixture
def source(catalog: Catalog, store: VectorStore, folder: Path) -> Source:
    with catalog.session() as session:
        return add_source(session, store, str(folder), {})


@pytest.fixture
def sync(catalog: Catalog, store: VectorStore, source: Source, embedder: WordEmbedder) -> Sync:
    def run(**more: Any) -> Report:
        with catalog.session() as session:
            sources = find_sources(session, store)
        return sync_store(catalog, store, sources, lambda: embedder, **more)

    return run


def held(catalog: Catalog, store: VectorStore) -> dict[str, str]:
    """The store's documents: digest by source."""
    with catalog.session() as session:
        rows = session.execute(select(Document.source, Document.sha256).where(Document.store_id == store.id))
        return {row[0]: row[1] for row in rows}


def passage_ids(catalog: Catalog, store: VectorStore) -> set[int]:
    with catalog.session() as session:
        return set(session.scalars(select(Passage.id).where(Passage.store_id == store.id)))


def on_disk(folder: Path) -> dict[str, str]:
    return {
        str(path): sha256_bytes(path.read_bytes())
        for path in folder.rglob("*")
        if path.suffix in (".md", ".html") and not path.name.startswith(".")
    }


def test_added_changed_renamed_deleted_unchanged(
    catalog: Catalog, store: VectorStore, folder: Path, sync: Sync, embedder: WordEmbedder
) -> None:
    first = sync()
    assert sorted(first.added) == ["returns.md", "shops.html", "teiki.md"] and first.skipped == [".png"]
    assert held(catalog, store) == on_disk(folder)
    (folder / "new.md").write_text("# New\n\nWords.")
    (folder / "returns.md").write_text((folder / "returns.md").read_text().replace("30 days", "45 days"))
    (folder / "more" / "teiki.md").rename(folder / "rice.md")
    (folder / "shops.html").unlink()
    os.utime(folder / "new.md")
    embedder.embedded.clear()
    report = sync()
    assert (report.added, report.changed, report.unchanged) == (["new.md"], ["returns.md"], [])
    assert report.renamed == [(str(folder / "more" / "teiki.md"), str(folder / "rice.md"))]
    assert report.deleted == [str(folder / "shops.html")]
    assert held(catalog, store) == on_disk(folder)
    assert len(embedder.embedded) == 2
    embedder.embedded.clear()
    time.sleep(0.06)  # beyond a step of the file system's clock
    sync()
    opened: list[int] = []
    with catalog.session() as session:
        sources = find_sources(session, store)
        generation = session.get_one(VectorStore, store.id).generation
    again = sync_store(catalog, store, sources, lambda: opened.append(1) or embedder)  # type: ignore[func-returns-value]
    assert sorted(again.unchanged) == ["new.md", "returns.md", "rice.md"] and not opened and not embedder.embedded
    with catalog.session() as session:
        assert session.get_one(VectorStore, store.id).generation == generation


def test_a_file_that_did_not_change_is_not_read(folder: Path, sync: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(0.06)
    sync()

    def never(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("ryorin_index.sources.folder.read_file", never)
    assert len(sync().unchanged) == 3


def test_equal_bytes_with_a_new_time_are_not_parsed(
    catalog: Catalog, store: VectorStore, folder: Path, sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync()
    os.utime(folder / "returns.md", (1, 1))

    def never(*_: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("ryorin_index.ingest.parse_document", never)
    assert len(sync().unchanged) == 3
    with catalog.session() as session:
        row = session.scalars(select(Document).where(Document.filename == "returns.md")).one()
    assert f":{10**9:x}:" in row.fingerprint or ":?~" in row.fingerprint


@pytest.mark.parametrize("what", ["size", "tokens"])
def test_what_was_cut_otherwise_is_cut_anew(
    catalog: Catalog, store: VectorStore, folder: Path, sync: Sync, embedder: WordEmbedder, what: str
) -> None:
    """Another size of passages, and another embedder, whose tokens are others, though no file changed."""
    (folder / "long.md").write_text(" ".join(f"Sentence number {n} is here." for n in range(80)))
    time.sleep(0.06)
    sync()
    before = len(passage_ids(catalog, store))
    with catalog.session() as session:
        row = session.get_one(VectorStore, store.id)
        if what == "size":
            row.chunking = {"max_tokens": 100, "overlap_tokens": 0}
        else:
            row.embedder_digest = "1" * 64
    (folder / "shops.html").rename(folder / "places.html")
    store.chunking, store.embedder_digest = row.chunking, row.embedder_digest
    with catalog.session() as session:
        sources = find_sources(session, store)
    assert sorted(dry_run(catalog, store, sources)[0].changed) == sorted(
        ["long.md", "places.html", "returns.md", "teiki.md"]
    )
    report = sync()
    assert sorted(report.changed) == ["long.md", "places.html", "returns.md", "teiki.md"]
    assert (len(report.renamed), report.added, report.deleted) == (1, [], [])
    if what == "size":
        assert len(passage_ids(catalog, store)) > before
    again = sync()
    assert (again.changed, len(again.unchanged)) == ([], 4)
    added = add_paths(catalog, store, [folder], lambda: embedder)
    assert (added.changed, len(added.unchanged)) == ([], 4)


def test_a_rename_keeps_ids_and_parses_nothing(
    catalog: Catalog, store: VectorStore, folder: Path, sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync()
    before = passage_ids(catalog, store)
    folder.joinpath("more").rename(folder / "other")
    (folder / "returns.md").rename(folder / "other" / "back.md")
    monkeypatch.setattr("ryorin_index.ingest.parse_document", None)
    report = sync()
    assert (len(report.renamed), report.added, report.deleted, report.failed) == (2, [], [], [])
    assert passage_ids(catalog, store) == before and held(catalog, store) == on_disk(folder)


def test_another_suffix_is_no_rename(catalog: Catalog, store: VectorStore, folder: Path, sync: Sync) -> None:
    sync()
    (folder / "returns.md").rename(folder / "returns.txt")
    report = sync()
    assert (report.added, report.renamed, len(report.deleted)) == (["returns.txt"], [], 1)


def test_names_that_were_exchanged(catalog: Catalog, store: VectorStore, folder: Path, sync: Sync) -> None:
    (folder / "b.md").write_text("# B\n\nOther words.")
    sync()
    (folder / "b.md").rename(folder / "c.md")
    (folder / "returns.md").rename(folder / "b.md")
    (folder / "c.md").rename(folder / "returns.md")
    sync()
    assert held(catalog, store) == on_disk(folder)


def test_a_failed_file_keeps_its_passages_and_is_tried_again(
    catalog: Catalog, store: VectorStore, folder: Path, sync: Sync
) -> None:
    sync()
    good = (folder / "returns.md").read_bytes()
    (folder / "returns.md").write_bytes(b"")
    (folder / "bad.md").write_bytes(b"\0\1")
    before = passage_ids(catalog, store)
    for _ in range(2):
        report = sync()
        assert sorted(Path(path).name for path, _ in report.failed) == ["bad.md", "returns.md"]
        assert passage_ids(catalog, store) == before
    with catalog.session() as session:
        row = session.scalars(select(Document).where(Document.filename == "returns.md")).one()
    assert row.status == "failed" and row.error is not None and row.error["code"] == "invalid_file"
    (folder / "returns.md").write_bytes(good)
    assert [Path(path).name for path, _ in sync().failed] == ["bad.md"]
    with catalog.session() as session:
        row = session.scalars(select(Document).where(Document.filename == "returns.md")).one()
    assert (row.status, row.error) == ("completed", None)


def test_a_dry_run_changes_nothing(catalog: Catalog, store: VectorStore, folder: Path, sync: Sync) -> None:
    sync()
    before = held(catalog, store)
    (folder / "new.md").write_text("# New\n\nWords.")
    (folder / "returns.md").write_text("# Returns\n\nNone.")
    (folder / "more" / "teiki.md").rename(folder / "rice.md")
    (folder / "shops.html").unlink()
    with catalog.session() as session:
        sources = find_sources(session, store)
    report, questions = dry_run(catalog, store, sources)
    assert (report.added, report.changed, questions) == (["new.md"], ["returns.md"], [])
    assert (len(report.renamed), len(report.deleted), report.kept) == (1, 1, [])
    assert held(catalog, store) == before


def test_a_source_that_lost_most_of_its_documents_asks(
    catalog: Catalog, store: VectorStore, folder: Path, sync: Sync
) -> None:
    for number in range(20):
        (folder / f"{number}.md").write_text(f"# D{number}\n\nWords {number}.")
    sync()
    everything = held(catalog, store)
    for number in range(20):
        (folder / f"{number}.md").unlink()
    report = sync()
    assert (report.deleted, len(report.kept)) == ([], 20) and held(catalog, store) == everything
    asked: list[str] = []
    sync(confirm=lambda question: bool(asked.append(question)))
    assert "lost 20 of its 23 documents" in asked[0] and held(catalog, store) == everything
    assert len(sync(confirm=lambda _: True).deleted) == 20
    assert held(catalog, store) == on_disk(folder)


def test_a_folder_that_moved_inside_is_not_lost(
    catalog: Catalog, store: VectorStore, folder: Path, sync: Sync, embedder: WordEmbedder
) -> None:
    for number in range(20):
        (folder / "more" / f"{number}.md").write_text(f"# D{number}\n\nWords {number}.")
    sync()
    (folder / "more").rename(folder / "moved")
    embedder.embedded.clear()
    report = sync()
    assert (len(report.renamed), report.kept, embedder.embedded) == (21, [], [])


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_folder_that_is_gone_deletes_nothing(
    catalog: Catalog, store: VectorStore, folder: Path, sync: Sync, how: str
) -> None:
    sync()
    before = held(catalog, store)
    shutil.rmtree(folder)
    if how == "empty":
        folder.mkdir()
    report = sync()
    assert len(report.errors) == 1 and report.deleted == [] and held(catalog, store) == before
    if how == "empty":
        assert len(sync(allow_deletions=True).deleted) == 3


def test_links_and_pipes_are_not_followed(
    catalog: Catalog, store: VectorStore, folder: Path, tmp_path: Path, sync: Sync
) -> None:
    (tmp_path / "secret.md").write_text("# Secret\n\nWords.")
    (folder / "link.md").symlink_to(tmp_path / "secret.md")
    (folder / "around").symlink_to(folder)
    os.mkfifo(folder / "pipe.md")
    assert sorted(sync().added) == ["returns.md", "shops.html", "teiki.md"]


def test_attributes_and_globs(catalog: Catalog, store: VectorStore, folder: Path, embedder: WordEmbedder) -> None:
    with catalog.session() as session:
        first = add_source(session, store, str(folder), {"include": ["*.md"], "exclude": ["more/*"]})
    sync_store(catalog, store, [first], lambda: embedder)
    assert list(held(catalog, store)) == [str(folder / "returns.md")]
    remove_source(catalog, store, first, keep_documents=True)
    with catalog.session() as session:
        second = add_source(session, store, str(folder), {"attributes": {"team": "sales"}})
    embedder.embedded.clear()
    sync_store(catalog, store, [second], lambda: embedder)
    with catalog.session() as session:
        rows = session.scalars(select(Document).where(Document.store_id == store.id)).all()
        assert {row.source_id for row in rows} == {second.id} and len(rows) == 3
        assert all(row.attributes == {"team": "sales"} for row in rows)
    assert len(embedder.embedded) == 2  # what was there before is not embedded again
    time.sleep(0.06)
    sync_store(catalog, store, [second], lambda: embedder)
    assert len(sync_store(catalog, store, [second], lambda: embedder).unchanged) == 3
    remove_source(catalog, store, second, keep_documents=False)
    assert held(catalog, store) == {}
    with catalog.session() as session:
        acts = [act.act for act in audit_events(session, store.tenant_id) if act.target == str(folder)]
    assert acts == ["source.remove", "source.add"] * 2


def test_sources_in_one_another_do_not_quarrel(
    catalog: Catalog, store: VectorStore, folder: Path, embedder: WordEmbedder
) -> None:
    with catalog.session() as session:
        outer = add_source(session, store, str(folder), {})
        inner = add_source(session, store, str(folder / "more"), {"attributes": {"a": 1}})
    assert len(sync_store(catalog, store, [outer, inner], lambda: embedder).added) == 4 - 1
    again = sync_store(catalog, store, [outer, inner], lambda: embedder)
    assert not again.changed and not again.deleted
    with catalog.session() as session:
        assert [row["documents"] for row in list_sources(session, store)] == [3, 0]


def test_one_sync_at_a_time(catalog: Catalog, store: VectorStore, sync: Sync) -> None:
    with only_one(catalog, store), pytest.raises(Conflict, match="being synced by another process"):
        sync()
    sync()


def test_documents_added_by_hand_stay(
    catalog: Catalog, store: VectorStore, tmp_path: Path, sync: Sync, embedder: WordEmbedder
) -> None:
    (tmp_path / "own.md").write_text("# Own\n\nWords.")
    add_paths(catalog, store, [tmp_path / "own.md"], lambda: embedder)
    assert sync().deleted == [] and str(tmp_path / "own.md") in held(catalog, store)


@pytest.mark.parametrize(
    ("uri", "options", "message"),
    [
        ("https://example.org/", {"branch": "main"}, "no option 'branch'"),
        ("https://token@example.org/", {}, "must not hold a user's name or password"),
        ("https://[::1", {}, "no address"),
        ("https:///docs", {}, "no address of a web page"),
        ("http://10.0.0.7/", {}, "--allow-private"),
        ("http://[::ffff:127.0.0.1]/", {}, "--allow-private"),
        ("https://example.org:8443/", {}, "port 8443"),
        ("git+https://token@example.org/a.git", {}, "must not hold a user's name or password"),
        ("s3://key:hunter2@bucket", {}, "must not hold a user's name or password"),
        ("file:" + "///etc", {}, "no kind of source"),
        ("ftp://example.org", {}, "no kind of source"),
        ("git+file:" + "///etc", {}, "scheme"),
        ("git+ext::sh -c date", {}, "no such folder"),
        ("--upload-pack=date", {}, "must not"),
        ("/no/such/folder", {}, "no such folder"),
        ("s3://bucket", {"key_env": "AKIA/SECRET+"}, "name of an environment variable"),
        ("s3://bucket", {"depth": 3}, "no option 'depth'"),
    ],
)
def test_wrong_sources(catalog: Catalog, store: VectorStore, uri: str, options: dict[str, Any], message: str) -> None:
    with catalog.session() as session, pytest.raises(InvalidInput, match=message) as caught:
        add_source(session, store, uri, options)
    assert "hunter2" not in str(caught.value)


def test_sources_that_are_not_there(catalog: Catalog, store: VectorStore, source: Source, folder: Path) -> None:
    with catalog.session() as session:
        with pytest.raises(Conflict, match="has that source already"):
            add_source(session, store, str(folder), {})
        with pytest.raises(NotFound, match="has no source 'nope'"):
            find_sources(session, store, ["nope"])
        assert [row.id for row in find_sources(session, store, [source.id, str(folder)])] == [source.id]


NAMES = st.sampled_from(["a.md", "b.md", "c.md", "d/a.md", "d/b.md", "e.html", ".h.md", "x.bin"])
STEPS = st.one_of(
    st.tuples(st.just("write"), NAMES, st.sampled_from(["# One\n\nA.", "# Two\n\nB.", "# Six\n\nC.", ""])),
    st.tuples(st.just("move"), NAMES, NAMES),
    st.tuples(st.just("delete"), NAMES, st.just("")),
    st.tuples(st.just("sync"), st.just(""), st.just("")),
)


@settings(max_examples=turns(12, 500), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, max_size=12))
def test_after_any_changes_the_store_is_the_folder(
    catalog: Catalog, tenant: Tenant, tmp_path: Path, steps: list[tuple[str, str, str]]
) -> None:
    root = tmp_path / "any"
    shutil.rmtree(root, ignore_errors=True)
    (root / "d").mkdir(parents=True)
    with catalog.session() as session:
        for table in (Source, Document):
            if table is Document:
                from ryorin_index.ingest import delete_documents

                store = session.scalar(select(VectorStore).where(VectorStore.name == "any"))
                if store is not None:
                    delete_documents(session, store, session.scalars(select(Document)).all())
            else:
                session.execute(delete(table))
        store = session.scalar(select(VectorStore).where(VectorStore.name == "any"))
        store = store or create_store(session, tenant, "any", fake_embedder())
        source = add_source(session, store, str(root), {})
    embedder = WordEmbedder()
    last: dict[str, str] = {}
    for step, name, more in [*steps, ("sync", "", "")]:
        path = root / name
        if step == "write":
            path.write_text(more)
        elif step == "move" and path.exists():
            path.rename(root / more)
        elif step == "delete":
            path.unlink(missing_ok=True)
        elif step == "sync":
            report = sync_store(catalog, store, [source], lambda: embedder, allow_deletions=True)
            now, failed = on_disk(root), {path for path, _ in report.failed}
            assert failed == {path for path in now if not Path(path).read_bytes()}
            # One that cannot be read keeps what it had, if it had something.
            wanted = {path: digest for path, digest in now.items() if path not in failed}
            wanted |= {path: last[path] for path in failed if path in last}
            assert held(catalog, store) == wanted
            last = wanted


def test_an_e_mail_keeps_its_attachments_when_it_is_renamed_and_a_broken_one_is_tried_again(
    sqlite_store: tuple[Catalog, VectorStore], tmp_path: Path
) -> None:
    catalog, store = sqlite_store
    folder = tmp_path / "mail"
    folder.mkdir()
    message = EmailMessage()
    message["Subject"] = "Returns"
    message.set_content("Returns take 30 days.")
    message.add_attachment(b"# Rule\n\nLamps are excluded.\n", maintype="text", subtype="markdown", filename="att.md")
    (folder / "one.eml").write_bytes(message.as_bytes())
    embed = WordEmbedder()
    with catalog.session() as session:
        source = add_source(session, store, str(folder), {})

    def synced() -> Report:
        return sync_store(catalog, store, [source], lambda: embed)

    def names() -> set[str]:
        with catalog.session() as session:
            return {each.rpartition("/mail/")[2] for each in session.scalars(select(Document.source))}

    synced()
    assert names() == {"one.eml", "one.eml!/att.md"}
    (folder / "one.eml").rename(folder / "two.eml")
    synced()
    assert names() == {"two.eml", "two.eml!/att.md"}
    message.add_attachment(b"no pdf", maintype="application", subtype="pdf", filename="broken.pdf")
    (folder / "two.eml").write_bytes(message.as_bytes())
    assert synced().failed and synced().failed
