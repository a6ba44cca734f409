"""Adding, changing and removing documents, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from sqlalchemy import select
from word_embedder import WordEmbedder, fake_embedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Passage, Tenant, VectorStore
from ryorin.errors import Conflict, InvalidInput, NotFound, Unavailable
from ryorin_index.ingest import remove_documents
from ryorin_index.search import Searcher
from ryorin_index.sources.folder import find_files
from ryorin_index.store import create_store, get_store, list_documents, store_counts
from ryorin_index.sync import Report, add_paths


def add(catalog: Catalog, store: VectorStore, path: Path, embedder: WordEmbedder) -> Report:
    return add_paths(catalog, store, [path], lambda: embedder)


def test_a_folder_is_indexed_once(catalog: Catalog, store: VectorStore, folder: Path, embedder: WordEmbedder) -> None:
    first = add(catalog, store, folder, embedder)
    assert (sorted(first.added), first.skipped, first.failed) == (
        ["returns.md", "shops.html", "teiki.md"],
        ["logo.png"],
        [],
    )
    assert first.embedded == first.passages == len(embedder.embedded) == 5
    opened: list[int] = []
    again = add_paths(catalog, store, [folder], lambda: opened.append(1) or embedder)  # type: ignore[func-returns-value]
    assert sorted(again.unchanged) == sorted(first.added)
    assert (again.embedded, opened, len(embedder.embedded)) == (0, [], 5)


def test_a_changed_document_costs_only_its_new_passages(
    catalog: Catalog, store: VectorStore, tenant: Tenant, folder: Path, embedder: WordEmbedder
) -> None:
    add(catalog, store, folder, embedder)
    searcher = Searcher(catalog, lambda _: embedder)
    assert "30 days" in searcher.search(tenant.id, [store.id], "unopened goods", 1)[0].text
    path = folder / "returns.md"
    path.write_text(path.read_text().replace("30 days", "45 days"))
    embedder.embedded.clear()
    report = add(catalog, store, path, embedder)
    assert (report.changed, report.embedded, len(embedder.embedded)) == (["returns.md"], 1, 1)
    found = searcher.search(tenant.id, [store.id], "unopened goods", 5)
    assert "45 days" in found[0].text
    assert not any("30 days" in hit.text for hit in found)
    with catalog.session() as session:
        assert store_counts(session, store) == {"documents": 3, "passages": 5}


def test_a_file_that_becomes_unreadable_keeps_its_passages(
    catalog: Catalog, store: VectorStore, tenant: Tenant, folder: Path, embedder: WordEmbedder
) -> None:
    add(catalog, store, folder, embedder)
    (folder / "returns.md").write_bytes(b"")
    report = add(catalog, store, folder, embedder)
    assert [Path(path).name for path, _ in report.failed] == ["returns.md"]
    assert "is empty" in report.failed[0][1]
    found = Searcher(catalog, lambda _: embedder).search(tenant.id, [store.id], "unopened goods", 1)
    assert "30 days" in found[0].text


def test_an_interruption_leaves_whole_documents_only(
    catalog: Catalog, store: VectorStore, folder: Path, embedder: WordEmbedder
) -> None:
    class Interrupted(WordEmbedder):
        def passages(self, texts):  # type: ignore[no-untyped-def]
            if "interrupt" in texts[-1]:
                raise KeyboardInterrupt
            return super().passages(texts)

    add(catalog, store, folder / "returns.md", embedder)
    (folder / "more" / "long.md").write_text(
        "# T\n\n" + "\n\n".join(f"## P{n}\n\nWord {n}." for n in range(99)) + " interrupt"
    )
    with pytest.raises(KeyboardInterrupt):
        add(catalog, store, folder / "more" / "long.md", Interrupted())
    with catalog.session() as session:
        assert [document["passages"] for document in list_documents(session, store)] == [3]
    embedder.embedded.clear()
    report = add(catalog, store, folder, embedder)
    assert (len(report.unchanged), len(report.added)) == (1, 3)
    assert len(embedder.embedded) < 99 and report.passages == 101  # batches that were embedded before are kept


def test_text_that_postgresql_would_refuse(
    catalog: Catalog, store: VectorStore, tenant: Tenant, tmp_path: Path, embedder: WordEmbedder
) -> None:
    (tmp_path / "a.html").write_text("<title>N&#0;ul</title><p>Parking &#0; is free &#xD800;.</p>")
    assert add(catalog, store, tmp_path / "a.html", embedder).failed == []
    hit = Searcher(catalog, lambda _: embedder).search(tenant.id, [store.id], "parking", 1)[0]
    assert "Parking" in hit.text and "\0" not in hit.title + hit.text


def test_an_embedder_that_does_not_answer_ends_the_run(
    catalog: Catalog, store: VectorStore, folder: Path, embedder: WordEmbedder
) -> None:
    asked: list[int] = []

    class Silent(WordEmbedder):
        def passages(self, texts):  # type: ignore[no-untyped-def]
            asked.append(len(texts))
            raise Unavailable("the embedder does not answer")

    with pytest.raises(Unavailable):
        add(catalog, store, folder, Silent())
    assert len(asked) == 1


def test_progress_is_told_within_a_long_file(
    catalog: Catalog, store: VectorStore, tmp_path: Path, embedder: WordEmbedder
) -> None:
    (tmp_path / "long.md").write_text("# T\n\n" + "\n\n".join(f"## Part {part}\n\nWords." for part in range(40)))
    told: list[tuple[int, int]] = []
    add_paths(catalog, store, [tmp_path], lambda: embedder, lambda at: told.append((at.done, at.embedded)))
    assert told == [(0, 16), (0, 40), (1, 40)]


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refused(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)  # the tests may run as root, whom no mode stops
    with pytest.raises(PermissionError, match="closed"):
        find_files([tmp_path], frozenset({".md"}))


def test_removed_documents_are_not_found(
    catalog: Catalog, store: VectorStore, tenant: Tenant, folder: Path, embedder: WordEmbedder
) -> None:
    add(catalog, store, folder, embedder)
    searcher = Searcher(catalog, lambda _: embedder)
    assert searcher.search(tenant.id, [store.id], "parking", 1)[0].filename == "shops.html"
    assert remove_documents(catalog, store, ["shops.html"]) == [str((folder / "shops.html").resolve())]
    assert all(hit.filename != "shops.html" for hit in searcher.search(tenant.id, [store.id], "parking", 9))
    with pytest.raises(NotFound, match=r"no document 'shops\.html'"):
        remove_documents(catalog, store, ["returns.md", "shops.html"])
    with catalog.session() as session:
        assert {document["filename"] for document in list_documents(session, store)} == {"returns.md", "teiki.md"}


def test_a_name_that_several_documents_have_must_be_a_path(
    catalog: Catalog, store: VectorStore, folder: Path, embedder: WordEmbedder
) -> None:
    (folder / "more" / "returns.md").write_text("# Other\n\nWords.")
    add(catalog, store, folder, embedder)
    with pytest.raises(InvalidInput, match="names 2 documents"):
        remove_documents(catalog, store, ["returns.md"])
    assert remove_documents(catalog, store, [str(folder / "more" / "returns.md")])


def test_two_writers_at_once_lose_nothing(
    catalog: Catalog, store: VectorStore, tmp_path: Path, embedder: WordEmbedder
) -> None:
    folders = []
    for writer in range(4):
        folders.append(tmp_path / str(writer))
        folders[-1].mkdir()
        for number in range(8):
            (folders[-1] / f"{number}.md").write_text(f"# Document {writer} {number}\n\nWords {number}.")
    reports: list[Report] = []
    threads = [
        threading.Thread(target=lambda at=at: reports.append(add(catalog, store, at, embedder))) for at in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.failed for report in reports] == [[]] * 4
    with catalog.session() as session:
        assert store_counts(session, store) == {"documents": 32, "passages": 32}
        generations = list(session.scalars(select(Passage.generation)))
    assert sorted(generations) == list(range(1, 33))


def test_paths_and_names_that_are_wrong(
    catalog: Catalog, store: VectorStore, tenant: Tenant, tmp_path: Path, embedder: WordEmbedder
) -> None:
    with pytest.raises(InvalidInput, match="no such file"):
        add(catalog, store, tmp_path / "nowhere", embedder)
    (tmp_path / "a.doc").write_bytes(b"PK")
    assert "not supported" in add(catalog, store, tmp_path / "a.doc", embedder).failed[0][1]
    with catalog.session() as session:
        with pytest.raises(NotFound, match=r"no store 'nope' \(known: handbook\)"):
            get_store(session, tenant, "nope")
        with pytest.raises(Conflict, match="already"):
            create_store(session, tenant, "handbook", fake_embedder())
        with pytest.raises(InvalidInput, match="lower-case"):
            create_store(session, tenant, "../up", fake_embedder())
