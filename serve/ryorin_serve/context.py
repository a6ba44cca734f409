"""What the routes of files and stores share."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import select, update
from sqlalchemy.orm import Session
from starlette.requests import Request

from ryorin.catalog import Catalog
from ryorin.catalog.tables import VectorStore
from ryorin.errors import InvalidInput, NotFound
from ryorin_index.search import Searcher
from ryorin_serve.options import ServeOptions
from ryorin_serve.requests import caller_of, path_id, shown_id

DAY_S = 86400
IDEMPOTENCY_S = DAY_S
POLL_AFTER = {"openai-poll-after-ms": "500"}  # what the openai package's polling helpers wait between two looks
TOUCH_S = 60.0  # a store's last use by chat is noted that exactly


class InThread(Protocol):
    """Runs blocking work in a thread."""

    def __call__(self, work: Callable[..., Any], *args: object) -> Awaitable[Any]:
        """The work's result."""
        ...


@dataclass(frozen=True)
class Context:
    """The gateway's parts. wake: tells the worker that a job waits."""

    catalog: Catalog
    searcher: Searcher
    options: ServeOptions
    in_thread: InThread
    wake: Callable[[], None]


def own_store(session: Session, request: Request) -> VectorStore:
    """The caller's store that the path names. NotFound in the same words for another tenant's."""
    store = session.scalar(
        select(VectorStore).where(
            VectorStore.tenant_id == caller_of(request).tenant_id, VectorStore.id == path_id(request, "store_id")
        )
    )
    if store is None:
        raise NotFound(f"Vector store with id '{shown_id(request, 'store_id')}' not found.", param="vector_store_id")
    return store


def expires_at(store: VectorStore) -> float | None:
    """When the store expires unless it is used; None for never."""
    return None if store.expires_after_days is None else store.last_active_at + DAY_S * store.expires_after_days


def is_expired(store: VectorStore) -> bool:
    """Whether the store has expired: it is kept, but neither searched nor added to."""
    end = expires_at(store)
    return end is not None and end <= time.time()


def require_live(store: VectorStore) -> None:
    """Raises InvalidInput when the store has expired."""
    if is_expired(store):
        raise InvalidInput(
            f"Vector store '{store.id}' has expired; modify it, for example its expires_after, to use it again.",
            code="vector_store_expired",
            param="vector_store_id",
        )


def live_stores(catalog: Catalog, tenant_id: str, store_ids: Sequence[str]) -> list[str]:
    """Those of the stores that have not expired, in their order; notes that they are in use."""
    now = time.time()
    with catalog.session() as session:
        mine = (VectorStore.tenant_id == tenant_id, VectorStore.id.in_(store_ids))
        expiring = session.scalars(select(VectorStore).where(*mine, VectorStore.expires_after_days.is_not(None))).all()
        expired = {store.id for store in expiring if is_expired(store)}
        stale = [store.id for store in expiring if store.id not in expired and store.last_active_at < now - TOUCH_S]
        if stale:
            session.execute(
                update(VectorStore)
                .where(VectorStore.id.in_(stale))
                .values(last_active_at=now)
                .execution_options(synchronize_session=False)
            )
    return [store_id for store_id in store_ids if store_id not in expired]
