"""Syncing from a real git repository and from a real S3 server on this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from word_embedder import WordEmbedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Passage, Source, VectorStore
from ryorin_index.source_rows import add_source
from ryorin_index.sync import Report, sync_store

# What a source gives has nothing to do with the database; test_sync.py writes it to both.
pytestmark = pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)


def sources_of(catalog: Catalog, store: VectorStore) -> set[str]:
    with catalog.session() as session:
        return set(session.scalars(select(Document.source).where(Document.store_id == store.id)))


def run(catalog: Catalog, store: VectorStore, source: Source, embedder: WordEmbedder) -> Report:
    return sync_store(catalog, store, [source], lambda: embedder)


def git(repository: Path, *words: str) -> None:
    names = (
        "-c",
        "core.hooksPath=/dev/null",
        "-c",
        "user.name=Someone",
        "-c",
        "user.email=someone@example.org",
        "-c",
        "commit.gpgsign=false",
    )
    subprocess.run(["git", *names, *words], cwd=repository, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "guide"
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "a.md").write_text("# A\n\nFirst words.")
    (folder / "docs" / 'お米 \n"x".md').write_text("# Rice\n\nお米。")
    (folder / "docs" / "b.txt").write_bytes(b"\0\1\2")
    (folder / "docs" / "logo.png").write_bytes(b"\x89PNG")
    (folder / "docs" / ".hidden.md").write_text("# H\n\nWords.")
    (folder / "docs" / "link.md").symlink_to("/etc/passwd")
    (folder / "top.md").write_text("# Top\n\nWords.")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", "one")
    return folder


def test_a_git_repository(
    catalog: Catalog, store: VectorStore, repository: Path, embedder: WordEmbedder, home: Path
) -> None:
    marker = repository / "ran"
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {marker}\n")
    hook.chmod(0o755)
    with catalog.session() as session:
        source = add_source(session, store, f"git+{repository}", {"subfolder": "docs"}, "git")
    first = run(catalog, store, source, embedder)
    name = f"git+{repository}#docs/"
    assert sources_of(catalog, store) == {name + "a.md", name + 'お米 \n"x".md'}
    assert first.skipped == [".png"] and [path for path, _ in first.failed] == [name + "b.txt"]
    embedder.embedded.clear()
    assert len(run(catalog, store, source, embedder).unchanged) == 2
    with catalog.session() as session:
        ids = set(session.scalars(select(Passage.id)))
    git(repository, "mv", "docs/a.md", "docs/moved.md")
    git(repository, "rm", "--quiet", "docs/b.txt")
    git(repository, "commit", "--quiet", "--amend", "-m", "history written anew")
    report = run(catalog, store, source, embedder)
    assert (report.renamed, report.failed) == ([(name + "a.md", name + "moved.md")], []) and not embedder.embedded
    with catalog.session() as session:
        assert set(session.scalars(select(Passage.id))) == ids
    git(repository, "checkout", "--quiet", "--orphan", "other")
    git(repository, "rm", "-rf", "--quiet", ".")
    (repository / "docs").mkdir(exist_ok=True)
    (repository / "docs" / "z.md").write_text("# Z\n\nLast words.")
    git(repository, "add", "docs/z.md")
    git(repository, "commit", "--quiet", "-m", "another root")
    for file in (home / "sources" / source.id).rglob("*.pack"):
        file.unlink()  # a damaged copy is made anew
    run(catalog, store, source, embedder)
    assert sources_of(catalog, store) == {name + "z.md"}
    assert not marker.exists()


def test_a_git_source_that_is_not_there(
    catalog: Catalog, store: VectorStore, repository: Path, embedder: WordEmbedder
) -> None:
    with catalog.session() as session:
        source = add_source(session, store, str(repository), {"branch": "nope"}, "git")
    report = run(catalog, store, source, embedder)
    assert len(report.errors) == 1 and "git could not read" in report.errors[0][1]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_a_bucket(
    catalog: Catalog, store: VectorStore, s3: str, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setenv("TEST_KEY", "a-key")
    monkeypatch.setenv("TEST_SECRET", "a-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    files: Any = fsspec.filesystem(
        "s3", key="a-key", secret="a-secret", endpoint_url=s3, skip_instance_cache=True, use_listings_cache=False
    )
    bucket = f"manuals-{store.id[3:11]}"
    files.mkdir(bucket)
    for key, text in (
        ("d/a.md", "# A\n\nWords."),
        ("d/e/b.md", "# B\n\nOther."),
        ("d/.h.md", "x"),
        ("c.md", "# C\n\nNo."),
    ):
        files.pipe_file(f"{bucket}/{key}", text.encode())
    options = {"endpoint_url": s3, "key_env": "TEST_KEY", "secret_env": "TEST_SECRET"}
    with catalog.session() as session:
        source = add_source(session, store, f"s3://{bucket}/d", options)
    run(catalog, store, source, embedder)
    assert sources_of(catalog, store) == {f"s3://{bucket}/d/a.md", f"s3://{bucket}/d/e/b.md"}
    assert "a-secret" not in str(source.options) + str(source.state)
    embedder.embedded.clear()
    assert len(run(catalog, store, source, embedder).unchanged) == 2
    files.mv(f"{bucket}/d/a.md", f"{bucket}/d/n.md")
    files.pipe_file(f"{bucket}/d/e/b.md", b"# B\n\nAnother.")
    report = run(catalog, store, source, embedder)
    assert (len(report.renamed), report.changed, len(embedder.embedded)) == (1, ["b.md"], 1)
    files.rm(f"{bucket}/d", recursive=True)
    assert "holds nothing at all" in run(catalog, store, source, embedder).errors[0][1]
    assert len(sources_of(catalog, store)) == 2
