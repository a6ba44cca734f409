"""A store's sources in the catalog: add, find, list, remove."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog, audit
from ryorin.catalog.tables import Document, Source, VectorStore
from ryorin.digests import new_id
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin_index.ingest import delete_documents
from ryorin_index.sources import check_source
from ryorin_index.sources.kinds import scratch_of


def add_source(
    session: Session, store: VectorStore, uri: str, options: dict[str, Any], kind: str | None = None
) -> Source:
    """A new source. Raises InvalidInput for a wrong address or option, Conflict when the store has it already."""
    kind, address = check_source(uri, options, kind)
    taken = session.scalar(
        select(Source).where(Source.store_id == store.id, Source.kind == kind, Source.uri == address)
    )
    if taken is not None:
        raise Conflict(
            f"store {store.name!r} has that source already; to change it: "
            f"'ryorin index source remove {store.name} {taken.id} --keep-documents', then add it",
            param="uri",
        )
    source = Source(
        id=new_id("src_"),
        tenant_id=store.tenant_id,
        store_id=store.id,
        kind=kind,
        uri=address,
        options=options,
        state={},
    )
    session.add(source)
    audit.note(session, store.tenant_id, "source.add", source.uri, store=store.name)
    session.flush()
    return source


def find_sources(session: Session, store: VectorStore, names: Sequence[str] = ()) -> list[Source]:
    """The store's sources of those addresses or ids, or all. Raises NotFound for a name none has, and when none is."""
    sources = session.scalars(select(Source).where(Source.store_id == store.id).order_by(Source.created_at, Source.id))
    every = list(sources)
    if not every:
        raise NotFound(f"store {store.name!r} has no sources; 'ryorin index source add {store.name} URI' adds one")
    if not names:
        return every
    chosen = []
    for name in names:
        wanted = {name, name.removeprefix("git+")}
        if name.startswith(("http://", "https://")):
            from ryorin_index.sources.web import normalised

            wanted.add(normalised(name) or name)
        if "://" not in name:
            wanted.add(str(Path(name).expanduser().resolve()))
        found = [source for source in every if source.id == name or source.uri in wanted]
        if not found:
            known = ", ".join(source.uri for source in every)
            raise NotFound(f"store {store.name!r} has no source {name!r} (known: {known})", param="source")
        if len(found) > 1:
            ids = ", ".join(source.id for source in found)
            raise InvalidInput(f"{name!r} names {len(found)} sources; give the id of one: {ids}", param="source")
        chosen += found
    return list(dict.fromkeys(chosen))


def list_sources(session: Session, store: VectorStore) -> list[dict[str, Any]]:
    """The store's sources, each with its number of documents and of those whose last attempt failed."""
    counts: dict[tuple[str | None, str], int] = {
        (row[0], row[1]): row[2]
        for row in session.execute(
            select(Document.source_id, Document.status, func.count())
            .where(Document.store_id == store.id)
            .group_by(Document.source_id, Document.status)
        )
    }
    return [
        {
            "id": source.id,
            "kind": source.kind,
            "uri": source.uri,
            "options": source.options,
            "documents": sum(count for (owner, _), count in counts.items() if owner == source.id),
            "failed": counts.get((source.id, "failed"), 0),
            "created_at": source.created_at,
            "synced_at": source.synced_at,
        }
        for source in session.scalars(
            select(Source).where(Source.store_id == store.id).order_by(Source.created_at, Source.id)
        )
    ]


def count_documents(session: Session, source: Source) -> int:
    """How many documents came from it."""
    return session.scalar(select(func.count()).where(Document.source_id == source.id)) or 0


def remove_source(catalog: Catalog, store: VectorStore, source: Source, *, keep_documents: bool) -> None:
    """
    Remove a source; its documents go too, or stay as if they had been added one by one.

    Raises Conflict while the store is being synced.
    """
    from ryorin_index.sync import only_one

    with only_one(catalog, store):
        with catalog.session() as session:
            if keep_documents:
                session.execute(update(Document).where(Document.source_id == source.id).values(source_id=None))
            else:
                documents = session.scalars(select(Document).where(Document.source_id == source.id)).all()
                if documents:
                    delete_documents(session, store, documents)
            session.delete(session.get_one(Source, source.id))
            audit.note(
                session, store.tenant_id, "source.remove", source.uri, store=store.name, keep_documents=keep_documents
            )
        shutil.rmtree(scratch_of(catalog.settings, source), ignore_errors=True)
