"""
`/ryorin/v1/releases`: what `ryorin release` does, for the caller's tenant.

Moving traffic waits for the gateways as the command does (`ryorin.rollout`), in a thread of its own: it may take
minutes, and this very gateway must have its threads free to load what is waited for.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ryorin.catalog.tables import Release, Tenant
from ryorin.catalog.tenants import lock_tenant
from ryorin.errors import InvalidInput, NotFound
from ryorin.models.registry import BaseModel
from ryorin.release import create_release, get_release
from ryorin.release_parts import Wanted, find_parts
from ryorin.release_view import release_diff, release_rows
from ryorin.rollout import Moved, Rollout
from ryorin.scopes import ADMIN, TRAIN
from ryorin.settings import LOAD_WAIT_S
from ryorin.traffic import parse_share, traffic_status
from ryorin_serve.auth import ScopedRoute
from ryorin_serve.context import Context, made_before
from ryorin_serve.paging import list_object, read_page, rows_of
from ryorin_serve.requests import caller_of, idempotency_key, optional_fields, query_of, text

RELEASES = "/ryorin/v1/releases"
RELEASE = f"{RELEASES}/{{version}}"
MAX_WAIT_S = 600.0
MOVING_AT_ONCE = 8
CREATE_FIELDS = ("adapter", "stores", "retrieval", "base", "note", "allow_prompt_mismatch", "promote", "wait_s")
SWAP_FIELDS = ("adapter", "note", "allow_prompt_mismatch", "wait_s")
FROM_THE_MACHINE = ("reranker", "reranker_digest")  # a folder of the server's, which no request may name
Result = TypeVar("Result")


class ReleaseRoutes:
    """The handlers. base: the base model that this server runs, which releases are for unless they say another."""

    def __init__(self, context: Context, base: BaseModel) -> None:
        self._context = context
        self._base = base
        self._moving = asyncio.Semaphore(MOVING_AT_ONCE)

    def routes(self) -> list[ScopedRoute]:
        """What is served."""
        return [
            ScopedRoute(RELEASES, self.list, TRAIN, ADMIN),
            ScopedRoute(RELEASES, self.create, ADMIN, methods=["POST"]),
            ScopedRoute(f"{RELEASES}/diff", self.diff, TRAIN, ADMIN),
            ScopedRoute(f"{RELEASES}/status", self.status, TRAIN, ADMIN),
            ScopedRoute(f"{RELEASES}/rollback", self.rollback, ADMIN, methods=["POST"]),
            ScopedRoute(f"{RELEASES}/swap_adapter", self.swap_adapter, ADMIN, methods=["POST"]),
            ScopedRoute(f"{RELEASES}/canary", self.end_canary, ADMIN, methods=["DELETE"]),
            ScopedRoute(f"{RELEASES}/shadow", self.end_shadow, ADMIN, methods=["DELETE"]),
            ScopedRoute(RELEASE, self.retrieve, TRAIN, ADMIN),
            ScopedRoute(f"{RELEASE}/promote", self.promote, ADMIN, methods=["POST"]),
            ScopedRoute(f"{RELEASE}/canary", self.canary, ADMIN, methods=["POST"]),
            ScopedRoute(f"{RELEASE}/shadow", self.shadow, ADMIN, methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """The tenant's releases, the newest first."""
        page = read_page(request)

        def work(session: Session, tenant: Tenant) -> dict[str, Any]:
            mine = select(Release).where(Release.tenant_id == tenant.id)

            def find(release_id: str) -> tuple[float, str] | None:
                row = session.scalar(mine.where(Release.id == release_id))
                return None if row is None else (row.created_at, row.id)

            rows, more = rows_of(session, mine, Release.created_at, Release.id, page, find)
            return list_object([_shown(row) for row in release_rows(session, tenant, rows)], more)

        return JSONResponse(await self._context.in_session(request, work))

    async def retrieve(self, request: Request) -> Response:
        """One release, by its version."""
        query_of(request, ())
        version = _version(request.path_params["version"], "version")
        return JSONResponse(
            await self._context.in_session(request, lambda session, tenant: _one(session, tenant, version))
        )

    async def diff(self, request: Request) -> Response:
        """What differs between two releases: `?first=3&second=4`."""
        query = query_of(request, ("first", "second"))
        first, second = (_version(query.get(name), name) for name in ("first", "second"))
        found = await self._context.in_session(
            request, lambda session, tenant: release_diff(session, tenant, first, second)
        )
        return JSONResponse({"object": "ryorin.release_diff", **found})

    async def status(self, request: Request) -> Response:
        """How each part of the traffic fares: `?hours=24`."""
        given = query_of(request, ("hours",)).get("hours", "24")
        hours = _number(float(given) if given.replace(".", "", 1).isdecimal() else given, "hours", 1 / 3600, 24 * 366)
        found = await self._context.in_session(
            request, lambda session, tenant: traffic_status(session, tenant, hours * 3600)
        )
        return JSONResponse({"object": "list", "data": [{"object": "ryorin.traffic", **one.row()} for one in found]})

    async def create(self, request: Request) -> Response:
        """A new release; with `promote` it is made live. It stays, not live, when it cannot be loaded."""
        body = await self._body(request, CREATE_FIELDS)
        wanted = _wanted(body)
        note, wait_s = text(body, "note", 2000) or "", _wait(body)
        asked = {name: value for name, value in body.items() if name != "wait_s"}  # to wait longer is no other request
        key = idempotency_key(request, "rel_", asked)

        def work(session: Session, tenant: Tenant) -> int:
            release_id = None
            if key is not None:
                lock_tenant(session, tenant)
                known, release_id = made_before(session, Release, tenant.id, key, "release")
                if known is not None:
                    return known.version
            settings = self._context.catalog.settings
            parts = find_parts(session, settings, tenant, wanted, base_digest=self._base.digest)
            mismatch = wanted.allow_prompt_mismatch
            made = create_release(
                session, tenant, **parts, note=note, allow_prompt_mismatch=mismatch, release_id=release_id
            )
            return made.version

        version = await self._context.in_session(request, work)
        if _flag(body, "promote"):
            await self._move(wait_s, lambda rollout: rollout.promote(caller_of(request).tenant_name, version))
        return JSONResponse(
            await self._context.in_session(request, lambda session, tenant: _one(session, tenant, version))
        )

    async def promote(self, request: Request) -> Response:
        """Make a release live, once it is loaded."""
        version = _version(request.path_params["version"], "version")
        body = await self._body(request, ("wait_s",))
        name = caller_of(request).tenant_name
        return await self._moved(body, lambda rollout: rollout.promote(name, version))

    async def rollback(self, request: Request) -> Response:
        """Make the release live that was live before."""
        body = await self._body(request, ("wait_s",))
        return await self._moved(body, lambda rollout: rollout.rollback(caller_of(request).tenant_name))

    async def swap_adapter(self, request: Request) -> Response:
        """Make a release live that equals the live one but for its adapter."""
        body = await self._body(request, SWAP_FIELDS)
        adapter = text(body, "adapter", 128)
        if not adapter:
            raise InvalidInput("adapter is missing: an adapter's name, or 'none'.", param="adapter")
        note, mismatch = text(body, "note", 2000) or "", _flag(body, "allow_prompt_mismatch")
        name = caller_of(request).tenant_name
        return await self._moved(
            body, lambda rollout: rollout.swap_adapter(name, adapter, note=note, allow_prompt_mismatch=mismatch)
        )

    async def canary(self, request: Request) -> Response:
        """Give a release a share of the traffic."""
        version = _version(request.path_params["version"], "version")
        body = await self._body(request, ("share", "wait_s"))
        share, name = _share(body, None), caller_of(request).tenant_name
        return await self._moved(body, lambda rollout: rollout.canary(name, version, share))

    async def shadow(self, request: Request) -> Response:
        """Let a release answer requests once more, unseen; a share of them, all unless given."""
        version = _version(request.path_params["version"], "version")
        body = await self._body(request, ("share", "wait_s"))
        share, name = _share(body, 1.0), caller_of(request).tenant_name
        return await self._moved(body, lambda rollout: rollout.shadow(name, version, share))

    async def end_canary(self, request: Request) -> Response:
        """End the canary."""
        query_of(request, ())
        return await self._moved({}, lambda rollout: rollout.canary(caller_of(request).tenant_name, None))

    async def end_shadow(self, request: Request) -> Response:
        """End the shadow."""
        query_of(request, ())
        return await self._moved({}, lambda rollout: rollout.shadow(caller_of(request).tenant_name, None))

    async def _body(self, request: Request, allowed: tuple[str, ...]) -> dict[str, Any]:
        return await optional_fields(request, self._context.options.max_body_bytes, allowed)

    async def _moved(self, body: dict[str, Any], move: Callable[[Rollout], Moved]) -> Response:
        moved = await self._move(_wait(body), move)
        return JSONResponse(
            {
                "object": "ryorin.release_move",
                "part": moved.part,
                "version": moved.version,
                "previous": moved.before,
                "share": moved.share,
                "changed": moved.changed,
                "gateways": moved.gateways,
            }
        )

    async def _move(self, wait_s: float, move: Callable[[Rollout], Moved]) -> Moved:
        rollout = Rollout(self._context.catalog, wait_s=wait_s)
        async with self._moving:
            return await _in_own_thread(lambda: move(rollout))


async def _in_own_thread(work: Callable[[], Result]) -> Result:
    """The result of long blocking work, in a thread that does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():  # nobody waits any longer
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    context = contextvars.copy_context()  # who acts
    threading.Thread(target=context.run, args=(run,), name="release", daemon=True).start()
    return await future


def _one(session: Session, tenant: Tenant, version: int) -> dict[str, Any]:
    return _shown(release_rows(session, tenant, [get_release(session, tenant, version)])[0])


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {"object": "ryorin.release", **row, "created_at": int(row["created_at"])}


def _wanted(body: dict[str, Any]) -> Wanted:
    retrieval = body.get("retrieval") or {}
    if not isinstance(retrieval, dict):
        raise InvalidInput("retrieval must be an object.", param="retrieval")
    for name in FROM_THE_MACHINE:
        if retrieval.get(name) is not None:
            raise InvalidInput(
                f"retrieval.{name} names a folder of the server's machine; make such a release there, with "
                "'ryorin release create --reranker'.",
                param=f"retrieval.{name}",
            )
    stores = body.get("stores")
    if stores is not None and not (isinstance(stores, list) and all(isinstance(name, str) for name in stores)):
        raise InvalidInput("stores must be a list of names.", param="stores")
    return Wanted(
        adapter=text(body, "adapter", 128),
        stores=stores,
        retrieval=retrieval,
        base=text(body, "base", 256),
        allow_prompt_mismatch=_flag(body, "allow_prompt_mismatch"),
    )


def _version(value: Any, param: str) -> int:
    """A version; one that cannot be is no release's."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    if param == "version":
        raise NotFound(f"no release {str(value)[:64]!r}; a release is named by its version, such as 3", param=param)
    raise InvalidInput(f"{param} is {value!r}; name a release by its version, such as 3.", param=param)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidInput(f"{name} must be true or false.", param=name)
    return bool(value)


def _share(body: dict[str, Any], default: float | None) -> float:
    value = body.get("share", default)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidInput("share is missing: a number above 0, up to 1, or a percentage as '10%'.", param="share")
    return parse_share(value)


def _wait(body: dict[str, Any]) -> float:
    value = body.get("wait_s")
    return LOAD_WAIT_S if value is None else _number(value, "wait_s", 0, MAX_WAIT_S)


def _number(value: Any, param: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidInput(f"{param} is {value!r}; use a number from {low:g} to {high:g}.", param=param)
    return float(value)
