"""A tenant with a store, and files to index; imported by the conftest.py here and by that of `tests/live/index`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from word_embedder import WordEmbedder, fake_embedder

from ryorin.catalog import Catalog, open_catalog
from ryorin.catalog.tables import Tenant, VectorStore
from ryorin.catalog.tenants import create_tenant
from ryorin.settings import load_settings
from ryorin_index.store import create_store


@pytest.fixture
def embedder() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture
def tenant(catalog: Catalog) -> Tenant:
    with catalog.session() as session:
        return create_tenant(session, "support")


@pytest.fixture
def store(catalog: Catalog, tenant: Tenant) -> VectorStore:
    with catalog.session() as session:
        return create_store(session, tenant, "handbook", fake_embedder())


@pytest.fixture
def make_pdf() -> Callable[[list[str]], bytes]:
    def make(pages: list[str], title: str = "") -> bytes:
        from reportlab.pdfgen.canvas import Canvas

        buffer = io.BytesIO()
        canvas = Canvas(buffer)
        canvas.setTitle(title)
        for page in pages:
            for number, line in enumerate(page.split("\n")):
                canvas.drawString(72, 720 - 20 * number, line)
            canvas.showPage()
        canvas.save()
        return buffer.getvalue()

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three documents; returns their folder."""
    folder = tmp_path / "documents"
    (folder / "more").mkdir(parents=True)
    (folder / "returns.md").write_text(
        "# Returns\n\nGeneral words.\n\n## Unopened goods\n\nUnopened goods go back within 30 days.\n\n"
        "## Opened goods\n\nOpened tableware can be returned.\n",
        encoding="utf-8",
    )
    (folder / "more" / "teiki.md").write_text("# 定期便\n\n## お届け\n\nお米は毎月届きます。\n", encoding="utf-8")
    (folder / "shops.html").write_text("<h1>Shops</h1><p>Parking is free for 3 hours.</p>", encoding="utf-8")
    (folder / "logo.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.md").write_text("# Secret", encoding="utf-8")
    return folder


@pytest.fixture
def sqlite_store(migrated: Path) -> Iterator[tuple[Catalog, VectorStore]]:
    """A catalog on SQLite with a store, for what has nothing to do with the database."""
    catalog = open_catalog(load_settings())
    with catalog.session() as session:
        made = create_store(session, create_tenant(session, "support"), "handbook", fake_embedder())
    yield catalog, made
    catalog.close()
