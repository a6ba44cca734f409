"""
Who asks, and what the caller may do.

A bearer key is proved against the catalog as it is when the request comes in, so that revoking one works from the next
on; the same statement reads which releases have the tenant's traffic, so a promotion counts for what comes in after it.
Where the catalog tells that nothing at all was committed since, the last proof stands (`Callers`). Each route names the
scopes one of which it needs; there is no way to make a route without.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ryorin.catalog import Catalog
from ryorin.catalog.changes import Changes
from ryorin.catalog.keys import authenticate, keyed_hash
from ryorin.catalog.usage import LIMITS, Limits
from ryorin.errors import AuthenticationFailed, NotAllowed

THREADS = 2
MOST_PROVED = 4096


@dataclass(frozen=True)
class Pointers:
    """The releases with traffic of a tenant, and the shares of those beside the live one."""

    live: str | None = None
    canary: str | None = None
    canary_share: float = 0.0
    shadow: str | None = None
    shadow_share: float = 0.0


@dataclass(frozen=True)
class Caller:
    """
    The tenant a request belongs to, the key that proved it, what it may do and how much it may use.

    fallbacks: models elsewhere that may be asked for it. points_to: what answered its traffic when the request came in.
    """

    tenant_id: str
    tenant_name: str
    key_id: str
    key_prefix: str
    scopes: frozenset[str]
    key_limits: Limits
    tenant_limits: Limits
    fallbacks: tuple[str, ...] = ()
    points_to: Pointers = Pointers()
    key_expires_at: float | None = None


class Callers:
    """
    Proves keys: against the catalog, or by a proof that nothing was committed since. For one event loop.

    A flood of keys that are sent away has threads of its own, and does not hold up what was let in.
    """

    def __init__(self, catalog: Catalog, pepper: bytes) -> None:
        self._catalog = catalog
        self._pepper = pepper
        self._changes = Changes(catalog.engine)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="door")
        self._proved: dict[str, Caller] = {}  # by a keyed hash of what was sent: no secret stays in memory
        self._as_of: int | None = None

    async def identify(self, authorization: str | None) -> Caller:
        """The caller by the `Authorization` header. Raises AuthenticationFailed."""
        as_of = self._changes.look()  # before the key is read: what is committed meanwhile is seen by the next look
        sent = keyed_hash(self._pepper, authorization or "")
        if as_of is not None and as_of == self._as_of:
            known = self._proved.get(sent)
            if known is not None and (known.key_expires_at is None or known.key_expires_at > time.time()):
                return known
        loop = asyncio.get_running_loop()
        caller = await loop.run_in_executor(self._threads, identify, self._catalog, self._pepper, authorization)
        if as_of is None:
            return caller
        if as_of != self._as_of or len(self._proved) >= MOST_PROVED:
            self._proved, self._as_of = {}, as_of
        self._proved[sent] = caller
        return caller

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._changes.close()


class ScopedRoute(Route):
    """A route for keys that have one of `scopes`. Others are refused with 403, which names them."""

    def __init__(
        self, path: str, endpoint: Callable[..., Any], *scopes: str, methods: Sequence[str] = ("GET",)
    ) -> None:
        super().__init__(path, endpoint, methods=list(methods))
        self.scopes = scopes

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request in, or raise NotAllowed."""
        caller: Caller = scope["state"]["caller"]
        if not caller.scopes & set(self.scopes):
            needed = " or ".join(repr(name) for name in self.scopes)
            has = ", ".join(sorted(caller.scopes))
            raise NotAllowed(
                f"This key may not do that: it has the scope {has}, and {needed} is needed. "
                f"'ryorin key create --scope {self.scopes[0]}' makes one that has it.",
                code="missing_scope",
            )
        await super().handle(scope, receive, send)


def identify(catalog: Catalog, pepper: bytes, authorization: str | None) -> Caller:
    """The caller by the `Authorization` header. Blocking. Raises AuthenticationFailed."""
    scheme, _, secret = (authorization or "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise AuthenticationFailed(
            "You didn't provide an API key. Send it as 'Authorization: Bearer KEY'; 'ryorin key create' makes one."
        )
    with catalog.engine.connect() as connection:
        row = authenticate(connection, pepper, secret)
    return Caller(
        tenant_id=row["tenant_id"],
        tenant_name=row["tenant_name"],
        key_id=row["key_id"],
        key_prefix=row["key_prefix"],
        scopes=frozenset(row["key_scopes"].split(",")),
        key_limits=Limits(*(row[f"key_{name}"] for name in LIMITS)),
        tenant_limits=Limits(*(row[f"tenant_{name}"] for name in LIMITS)),
        fallbacks=tuple(row["tenant_fallbacks"] or ()),
        points_to=Pointers(
            row["tenant_live_release_id"],
            row["tenant_canary_release_id"],
            row["tenant_canary_share"] or 0.0,
            row["tenant_shadow_release_id"],
            row["tenant_shadow_share"] or 0.0,
        ),
        key_expires_at=row["key_expires_at"],
    )
