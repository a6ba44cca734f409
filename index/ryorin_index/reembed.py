"""
Changing the embedder of stores: their future vectors come into being beside the present ones, which serve until then.

Every text gets a vector of the new embedder, kept as soon as it is there; a run that is broken off goes on where it
was. Documents may be added and changed meanwhile. Then one transaction checks that no passage lacks its new vector and
swaps what the stores say their embedder is. Stores that a release searches together must change together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Passage, Release, Tenant, Vector, VectorStore
from ryorin.errors import Conflict, InvalidInput
from ryorin.models.registry import Embedder
from ryorin_index.embed import Embed
from ryorin_index.passages import embedded_text
from ryorin_index.store import next_generation
from ryorin_index.vectors import EMBED_BATCH, VectorSpace, embed_missing, embed_texts, keep_vectors

WINDOW = 2048  # texts read at once; sorted by length among themselves
LAST_TEXTS = 2 * EMBED_BATCH  # so few may be embedded while writers wait
PATIENCE = 3  # rounds after which they are, so that a busy writer cannot keep the swap away for ever


@dataclass(frozen=True)
class Change:
    """How far a change of embedder is: texts embedded by this run, of those that lacked a vector when it began."""

    done: int
    total: int
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None while there is none."""
        return self.seconds / self.done * max(self.total - self.done, 0) if self.done else None


@dataclass(frozen=True)
class Changed:
    """What became of it. generations: store name → its generation now. broken: releases that search no more."""

    embedder: str
    embedded: int
    seconds: float
    generations: dict[str, int]
    broken: list[int]


def change_embedder(
    catalog: Catalog,
    stores: Sequence[VectorStore],
    embedder: Embedder,
    embed: Callable[[], Embed],
    on_progress: Callable[[Change], None] = lambda change: None,
) -> Changed:
    """
    Make `embedder` the embedder of stores of one tenant; all of them in one transaction, once all vectors are there.

    Choosing the embedder that the stores have gives up a change that was begun. Raises Conflict when the tenant's live
    release searches one of the stores together with one that is not among them.
    """
    tenants = {store.tenant_id for store in stores}
    if len(tenants) != 1:
        raise InvalidInput("give the stores of one tenant, one at least", param="store")
    space = VectorSpace(tenants.pop(), embedder.digest, embedder.dimensions)
    ids = [store.id for store in stores]
    began = time.monotonic()
    with catalog.session() as session:
        rows = session.scalars(select(VectorStore).where(VectorStore.id.in_(ids))).all()
        there = all(row.embedder_digest == embedder.digest for row in rows)
        following = None if there else embedder.digest
        session.execute(update(VectorStore).where(VectorStore.id.in_(ids)).values(next_embedder_digest=following))
        if there:
            return Changed(embedder.name, 0, 0.0, {row.name: row.generation for row in rows}, [])
        _broken_releases(session, space.tenant_id, ids, embedder)
        total = session.scalar(select(func.count()).select_from(_missing(space, ids).subquery())) or 0
    embedded, rounds = 0, 0
    while True:
        for texts in _windows(catalog, space, ids):
            before = embedded

            def tell(done: int, before: int = before) -> None:
                on_progress(Change(before + done, max(total, before + done), time.monotonic() - began))

            embedded += embed_missing(catalog, space, texts, embed, tell)
        rounds += 1
        try:
            with catalog.session() as session:
                last, generations = _swap(session, space, stores, embedder, embed, rounds)
                broken = _broken_releases(session, space.tenant_id, ids, embedder)
        except _StillMissing:
            continue
        return Changed(embedder.name, embedded + last, round(time.monotonic() - began, 3), generations, broken)


class _StillMissing(Exception):
    """Documents came since the last look."""


def _missing(space: VectorSpace, store_ids: Sequence[str]) -> Select[str]:
    """Digests of the stores' texts that have no vector in the space."""
    return (
        select(Passage.sha256)
        .distinct()
        .outerjoin(
            Vector,
            (Vector.tenant_id == space.tenant_id)
            & (Vector.embedder_digest == space.embedder_digest)
            & (Vector.sha256 == Passage.sha256),
        )
        .where(Passage.tenant_id == space.tenant_id, Passage.store_id.in_(store_ids), Vector.sha256.is_(None))
    )


def _texts(session: Session, store_ids: Sequence[str], digests: Sequence[str]) -> dict[str, str]:
    """The embedded texts of digests."""
    rows = session.execute(
        select(Passage.sha256, Document.title, Passage.heading, Passage.text)
        .join(Document, Document.id == Passage.document_id)
        .where(Passage.store_id.in_(store_ids), Passage.sha256.in_(digests))
    )
    return {row.sha256: embedded_text(row.title, row.heading, row.text) for row in rows}


def _windows(catalog: Catalog, space: VectorSpace, store_ids: Sequence[str]) -> Iterator[dict[str, str]]:
    """Texts that lack a vector, some at a time, each once; those that are added meanwhile may be left out."""
    last = 0
    while True:
        with catalog.session() as session:
            rows = session.execute(
                select(Passage.id, Passage.sha256, Document.title, Passage.heading, Passage.text)
                .join(Document, Document.id == Passage.document_id)
                .where(Passage.store_id.in_(store_ids), Passage.id > last)
                .order_by(Passage.id)
                .limit(WINDOW)
            ).all()
        if not rows:
            return
        last = rows[-1].id
        yield {row.sha256: embedded_text(row.title, row.heading, row.text) for row in rows}


def _swap(
    session: Session,
    space: VectorSpace,
    stores: Sequence[VectorStore],
    embedder: Embedder,
    embed: Callable[[], Embed],
    rounds: int,
) -> tuple[int, dict[str, int]]:
    """
    Swap the embedder, in the session's transaction: (texts embedded in it, store name → generation).

    Writers of the stores wait until it ends. Raises _StillMissing when texts lack a vector, unless they are few and
    there have been enough rounds.
    """
    ids = sorted(store.id for store in stores)
    by_id = {store.id: store for store in stores}
    generations = {by_id[store_id].name: next_generation(session, by_id[store_id]) for store_id in ids}
    current = session.scalars(select(VectorStore.next_embedder_digest).where(VectorStore.id.in_(ids))).all()
    if set(current) != {space.embedder_digest}:
        raise Conflict("another change of the embedder was begun meanwhile; run the one that is wanted again")
    missing = session.scalars(_missing(space, ids).limit(LAST_TEXTS + 1)).all()
    if missing and (rounds < PATIENCE or len(missing) > LAST_TEXTS):
        raise _StillMissing
    if missing:
        keep_vectors(session, space, embed_texts(space, _texts(session, ids, missing), embed()))
    session.execute(
        update(VectorStore)
        .where(VectorStore.id.in_(ids))
        .values(
            embedder=embedder.name,
            embedder_digest=embedder.digest,
            dimensions=embedder.dimensions,
            next_embedder_digest=None,
        )
    )
    return len(missing), generations


def _broken_releases(session: Session, tenant_id: str, store_ids: Sequence[str], embedder: Embedder) -> list[int]:
    """
    Versions of the tenant's releases whose stores would be of several embedders.

    Raises Conflict when the live release is one: it would answer nothing until the other stores follow.
    """
    tenant = session.get_one(Tenant, tenant_id)
    rows = session.scalars(select(VectorStore).where(VectorStore.tenant_id == tenant_id))
    others = {
        store.id: store.name for store in rows if store.id not in store_ids and store.embedder_digest != embedder.digest
    }
    broken = []
    for release in session.scalars(select(Release).where(Release.tenant_id == tenant_id).order_by(Release.version)):
        left = sorted(others[store_id] for store_id in release.store_ids if store_id in others)
        if not left or not set(store_ids) & set(release.store_ids) or not release.retrieval.get("top_k"):
            continue
        if release.id == tenant.live_release_id:
            raise Conflict(
                f"the live release {release.version} of tenant {tenant.name!r} searches the store together with "
                f"{', '.join(left)}, and stores of several embedders cannot be searched together; "
                f"change them in one go: add {' '.join(f'--also {name}' for name in left)}",
                param="store",
            )
        broken.append(release.version)
    return broken
