"""
Who asks, and what the caller may do.

A bearer key is proved against the catalog on every request, so that revoking one works from the next on. Each route
names the scopes one of which it needs; there is no way to make a route without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ryorin.catalog import Catalog
from ryorin.catalog.keys import authenticate
from ryorin.catalog.usage import Limits
from ryorin.errors import AuthenticationFailed, NotAllowed


@dataclass(frozen=True)
class Caller:
    """
    The tenant a request belongs to, the key that proved it, what it may do and how much it may use.

    fallbacks: models elsewhere that may be asked for it.
    """

    tenant_id: str
    tenant_name: str
    key_id: str
    key_prefix: str
    scopes: frozenset[str]
    key_limits: Limits
    tenant_limits: Limits
    fallbacks: tuple[str, ...] = ()


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
    with catalog.session() as session:
        tenant, key = authenticate(session, pepper, secret)
        return Caller(
            tenant_id=tenant.id,
            tenant_name=tenant.name,
            key_id=key.id,
            key_prefix=key.prefix,
            scopes=frozenset(key.scopes.split(",")),
            key_limits=Limits.of(key),
            tenant_limits=Limits.of(tenant),
            fallbacks=tuple(tenant.fallbacks or ()),
        )
