"""`/ryorin/v1/keys`, `/limits`, `/usage` and `/audit`: a tenant's administration, by its keys with the scope admin."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ryorin.catalog.audit import audit_row
from ryorin.catalog.keys import get_key, issue_key, key_row, list_keys, revoke_key, rotate_key
from ryorin.catalog.tables import ApiKey, AuditEvent, Tenant
from ryorin.catalog.usage import LIMITS, monthly_usage, set_limits
from ryorin.errors import InvalidInput, NotFound
from ryorin.scopes import ADMIN, DEFAULT_SCOPES
from ryorin.settings import ROTATION_GRACE_S
from ryorin_serve.auth import ScopedRoute
from ryorin_serve.context import Context
from ryorin_serve.paging import list_object, read_page, rows_of
from ryorin_serve.requests import integer, optional_fields, path_id, query_of, text

KEYS = "/ryorin/v1/keys"
KEY = f"{KEYS}/{{key_id}}"
KEY_FIELDS = ("label", "scopes", "expires_in_s", *LIMITS)
MAX_SECONDS = 36_500 * 86_400


class AdminRoutes:
    """The handlers."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pepper = context.catalog.settings.pepper()

    def routes(self) -> list[ScopedRoute]:
        """What is served."""
        return [
            ScopedRoute(KEYS, self.list_keys, ADMIN),
            ScopedRoute(KEYS, self.create_key, ADMIN, methods=["POST"]),
            ScopedRoute(KEY, self.retrieve_key, ADMIN),
            ScopedRoute(KEY, self.revoke_key, ADMIN, methods=["DELETE"]),
            ScopedRoute(f"{KEY}/rotate", self.rotate_key, ADMIN, methods=["POST"]),
            ScopedRoute(f"{KEY}/limits", self.set_key_limits, ADMIN, methods=["POST"]),
            ScopedRoute("/ryorin/v1/limits", self.limits, ADMIN),
            ScopedRoute("/ryorin/v1/usage", self.usage, ADMIN),
            ScopedRoute("/ryorin/v1/audit", self.audit, ADMIN),
        ]

    async def list_keys(self, request: Request) -> Response:
        """The tenant's keys, the oldest first; their secrets are known to nobody."""
        query_of(request, ())
        rows = await self._context.in_session(
            request, lambda session, tenant: [_shown(row) for row in list_keys(session, tenant)]
        )
        return JSONResponse({"object": "list", "data": rows})

    async def create_key(self, request: Request) -> Response:
        """A new key; `key` is its secret, which is shown this once."""
        body = await self._body(request, KEY_FIELDS)
        scopes = body.get("scopes")
        if scopes is not None and not (isinstance(scopes, list) and all(isinstance(each, str) for each in scopes)):
            raise InvalidInput("scopes must be a list of names.", param="scopes")
        label, limits = text(body, "label", 128) or "", _limits(body)
        seconds = body.get("expires_in_s")
        expires_at = None if seconds is None else time.time() + integer(seconds, "expires_in_s", 1, MAX_SECONDS)

        def work(session: Session, tenant: Tenant) -> dict[str, Any]:
            chosen = DEFAULT_SCOPES if scopes is None else scopes
            row, secret = issue_key(session, tenant, self._pepper, label, expires_at, chosen)
            set_limits(session, tenant, row, limits)
            return _shown(row) | {"key": secret}

        return JSONResponse(await self._context.in_session(request, work))

    async def retrieve_key(self, request: Request) -> Response:
        """One key."""
        query_of(request, ())
        return JSONResponse(
            await self._context.in_session(request, lambda session, tenant: _shown(_one(session, tenant, request)))
        )

    async def revoke_key(self, request: Request) -> Response:
        """Revoke a key: refused from the next request on."""
        query_of(request, ())

        def work(session: Session, tenant: Tenant) -> dict[str, Any]:
            return _shown(revoke_key(session, tenant, _one(session, tenant, request).id))

        return JSONResponse(await self._context.in_session(request, work))

    async def rotate_key(self, request: Request) -> Response:
        """A new key in the place of an old one, which goes on for `grace_s`."""
        body = await self._body(request, ("grace_s",))
        given = body.get("grace_s")
        grace_s = ROTATION_GRACE_S if given is None else integer(given, "grace_s", 0, MAX_SECONDS)

        def work(session: Session, tenant: Tenant) -> dict[str, Any]:
            old = _one(session, tenant, request)
            row, secret = rotate_key(session, tenant, self._pepper, old.id, grace_s)
            return _shown(row) | {"key": secret}

        return JSONResponse(await self._context.in_session(request, work))

    async def set_key_limits(self, request: Request) -> Response:
        """Change a key's limits; null takes one away. The tenant's own are the operator's to set."""
        limits = _limits(await self._body(request, LIMITS))

        def work(session: Session, tenant: Tenant) -> dict[str, Any]:
            row = _one(session, tenant, request)
            set_limits(session, tenant, row, limits)
            return _shown(row)

        return JSONResponse(await self._context.in_session(request, work))

    async def limits(self, request: Request) -> Response:
        """The tenant's limits."""
        query_of(request, ())

        def work(_: Session, tenant: Tenant) -> dict[str, Any]:
            return {"object": "ryorin.limits", **{name: getattr(tenant, name) for name in LIMITS}}

        return JSONResponse(await self._context.in_session(request, work))

    async def usage(self, request: Request) -> Response:
        """What the tenant's keys used a month: `?months=3`."""
        given = query_of(request, ("months",)).get("months", "3")
        months = integer(
            int(given) if given.isascii() and given.isdecimal() and len(given) < 6 else given, "months", 1, 120
        )
        rows = await self._context.in_session(request, lambda session, tenant: monthly_usage(session, tenant, months))
        return JSONResponse({"object": "list", "data": [{"object": "ryorin.usage", **row} for row in rows]})

    async def audit(self, request: Request) -> Response:
        """What was done to the tenant, the newest first."""
        page = read_page(request)

        def work(session: Session, tenant: Tenant) -> dict[str, Any]:
            mine = select(AuditEvent).where(AuditEvent.tenant_id == tenant.id)

            def find(event_id: str) -> tuple[float, str] | None:
                row = session.scalar(mine.where(AuditEvent.id == event_id.replace("\0", "?")))
                return None if row is None else (row.created_at, row.id)

            rows, more = rows_of(session, mine, AuditEvent.created_at, AuditEvent.id, page, find)
            return list_object([{"object": "ryorin.audit_event", **audit_row(row)} for row in rows], more)

        return JSONResponse(await self._context.in_session(request, work))

    async def _body(self, request: Request, allowed: tuple[str, ...]) -> dict[str, Any]:
        return await optional_fields(request, self._context.options.max_body_bytes, allowed)


def _one(session: Session, tenant: Tenant, request: Request) -> ApiKey:
    try:
        return get_key(session, tenant, path_id(request, "key_id"))
    except NotFound:
        raise NotFound("No such key.", param="key_id") from None


def _limits(body: dict[str, Any]) -> dict[str, int | None]:
    return {name: body[name] for name in LIMITS if name in body}


def _shown(row: ApiKey) -> dict[str, Any]:
    return {"object": "ryorin.key", **key_row(row)}
