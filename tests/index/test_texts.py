"""The text of a document in blocks: whole, and an edit writes few of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, func, select

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, DocumentText, VectorStore
from ryorin.catalog.tenants import create_tenant
from ryorin_index.ingest import delete_documents
from ryorin_index.texts import MOST_BYTES, blocks_of, read_text, write_text

ENGLISH = "\n\n".join(
    f"Rule {at}. Goods of kind {at} go back within {at % 60} days of their purchase." for at in range(500)
)
JAPANESE = "\n\n".join(
    f"規則{at}。種類{at}の商品は、お買い上げから{at % 60}日以内であれば返品できます。" for at in range(500)
)


@given(st.lists(st.text() | st.text("あx\r\n", min_size=900, max_size=3000), max_size=8).map("".join))
def test_blocks_are_the_text(text: str) -> None:
    blocks = blocks_of(text)
    assert "".join(blocks) == text
    assert all(0 < len(block.encode()) <= MOST_BYTES for block in blocks)


@pytest.mark.parametrize("text", [ENGLISH, JAPANESE])
def test_soon_after_an_edit_the_blocks_are_the_same(text: str) -> None:
    """Wherever something is inserted; were the blocks only counted off, half of them would be new."""
    before = blocks_of(text)
    new = []
    for at in range(0, len(text), len(text) // 40):
        after = blocks_of(text[:at] + "以上。 That was added." + text[at:])
        new.append(sum(block != old for block, old in zip_longest(after, before)))
    assert len(before) > 8 and min(new) >= 1 and statistics.mean(new) < 2


@pytest.fixture
def document(catalog: Catalog, store: VectorStore) -> Document:
    with catalog.session() as session:
        mine = {"tenant_id": store.tenant_id, "store_id": store.id, "source": "/a.md", "filename": "a.md"}
        made = Document(id="doc_a", title="A", media_type="text/plain", sha256="0" * 64, own_attributes={}, **mine)
        session.add(made)
    return made


def test_an_edit_writes_the_blocks_it_touches(catalog: Catalog, document: Document) -> None:
    with catalog.session() as session:
        write_text(session, document.id, ENGLISH)
    edited = ENGLISH.replace("Rule 40.", "Rule forty.")
    for text, written in (
        (ENGLISH, 0),
        (edited, 1),
        (edited[: len(edited) // 2], 2),  # the block that ends there now, and the removal of the rest
        ("", 1),
        (JAPANESE, 1),  # all blocks in one statement
    ):
        with _writes(catalog) as writes, catalog.session() as session:
            write_text(session, document.id, text)
        assert len(writes) == written
        with catalog.session() as session:
            assert read_text(session, document.tenant_id, document.id) == text


def test_a_text_is_its_tenants_and_goes_with_its_document(
    catalog: Catalog, store: VectorStore, document: Document
) -> None:
    with catalog.session() as session:
        write_text(session, document.id, JAPANESE)
        other = create_tenant(session, "people")
    with catalog.session() as session:
        assert read_text(session, other.id, document.id) == ""
        assert read_text(session, document.tenant_id, document.id) == JAPANESE
        delete_documents(session, store, [session.get_one(Document, document.id)])
    with catalog.session() as session:
        assert session.scalar(select(func.count()).select_from(DocumentText)) == 0


@contextmanager
def _writes(catalog: Catalog) -> Iterator[list[str]]:
    """The statements that change texts while the block runs."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if "document_texts" in statement and not statement.startswith("SELECT"):
            seen.append(statement)

    event.listen(catalog.engine, "before_cursor_execute", note)
    yield seen
    event.remove(catalog.engine, "before_cursor_execute", note)
