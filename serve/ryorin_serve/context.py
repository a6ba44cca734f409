"""What the routes of files and stores share."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request

from ryorin.catalog import Catalog
from ryorin.catalog.tables import FileBatch, Release, Tenant, VectorStore
from ryorin.errors import InvalidInput, NotFound
from ryorin_index.search import Searcher
from ryorin_index.store import is_expired
from ryorin_serve.auth import Caller
from ryorin_serve.options import ServeOptions
from ryorin_serve.requests import IdempotencyKey, caller_of, key_reused, path_id, shown_id

IDEMPOTENCY_S = 86400
Result = TypeVar("Result")
Keyed = TypeVar("Keyed", VectorStore, FileBatch, Release)
POLL_AFTER = {"openai-poll-after-ms": "500"}  # what the openai package's polling helpers wait between two looks


class InThread(Protocol):
    """Runs blocking work in a thread."""

    def __call__(self, work: Callable[..., Any], *args: object) -> Awaitable[Any]:
        """The work's result."""
        ...


@dataclass(frozen=True)
class Context:
    """
    The gateway's parts.

    wake: tells the worker that a job waits. admit: lets a question in, or raises OverLimit; gives headers that say what
    is left. count_tokens: of an answer.
    """

    catalog: Catalog
    searcher: Searcher
    options: ServeOptions
    in_thread: InThread
    wake: Callable[[], None]
    admit: Callable[[Caller], Awaitable[dict[str, str]]]
    count_tokens: Callable[[Caller, int], None]

    async def in_session(self, request: Request, work: Callable[[Session, Tenant], Result]) -> Result:
        """What `work` finds out of the caller's tenant, or does to it, in one transaction."""

        def run() -> Result:
            with self.catalog.session() as session:
                return work(session, session.get_one(Tenant, caller_of(request).tenant_id))

        found: Result = await self.in_thread(run)
        return found


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


def require_live(store: VectorStore) -> None:
    """Raises InvalidInput when the store has expired."""
    if is_expired(store):
        raise InvalidInput(
            f"Vector store '{store.id}' has expired; modify it, for example its expires_after, to use it again.",
            code="vector_store_expired",
            param="vector_store_id",
        )


def made_before(
    session: Session, kind: type[Keyed], tenant_id: str, key: IdempotencyKey, what: str
) -> tuple[Keyed | None, str]:
    """
    What the same `Idempotency-Key` made within `IDEMPOTENCY_S`, if it did; and the id for what is made now.

    The session holds what keeps others from making it meanwhile. Raises InvalidInput when the key made something else.
    """
    mine = select(kind).where(kind.tenant_id == tenant_id)
    for turn in itertools.count():
        known = session.scalar(mine.where(kind.id.startswith(key.stem(turn), autoescape=True)))
        if known is None:
            return None, key.made_id(turn)
        if known.created_at > time.time() - IDEMPOTENCY_S:
            if known.id != key.made_id(turn):
                raise key_reused(what)
            return known, known.id
    raise AssertionError("not reached")
