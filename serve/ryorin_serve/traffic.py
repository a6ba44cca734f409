"""
Which release answers a request: the live one, the canary for its share of the askers, or the version that was named.

A canary never costs an answer: when it cannot be used, the live release answers, the request's row says which release
was passed over and why, and a canary that cannot be loaded is left alone for `LEFT_ALONE_S` before it is tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Release
from ryorin.errors import Conflict, RyorinError
from ryorin.traffic import CANARY, LIVE, PINNED, SHADOW, falls_into
from ryorin_serve.auth import Caller
from ryorin_serve.chat import ChatRequest
from ryorin_serve.context import InThread
from ryorin_serve.fleet import Fleet
from ryorin_serve.prepare import Passed, PinnedRelease, Prepared, Preparer, needs_rewriting, pinned, retrieves

LEFT_ALONE_S = 30.0
MOST_KNOWN = 4096  # releases that are kept in memory
# Characters of a prompt that is prepared between two events of the loop, each message counted as so many more: its
# tokens are counted in half a millisecond, and handing it to a thread and back costs a tenth of the whole request.
SHORT_PROMPT, A_MESSAGE = 1000, 20

Rewrite = Callable[[], Awaitable[str | None]]

_PLAIN = {"role", "content"}  # what a message without calls of tools says
_logger = logging.getLogger("ryorin.serve")


@dataclass(frozen=True)
class Route:
    """Who answers. canary: asked in place of `release`. passed: a canary that is out of the question already."""

    release: PinnedRelease
    part: str
    canary: PinnedRelease | None = None
    passed: Passed | None = None
    shadow: PinnedRelease | None = None


class Traffic:
    """Routes requests to releases and prepares them."""

    def __init__(self, catalog: Catalog, preparer: Preparer, fleet: Fleet, in_thread: InThread) -> None:
        self._catalog = catalog
        self._preparer = preparer
        self._fleet = fleet
        self._in_thread = in_thread
        self._known: dict[str, PinnedRelease] = {}
        self._left_alone: dict[str, tuple[float, str]] = {}

    async def prepare(self, caller: Caller, request: ChatRequest, rewrite: Rewrite) -> Prepared:
        """
        The request as the engine is asked, with the release that answers it.

        rewrite: gives the last question in words that stand alone, or None when that cannot be had.

        Raises NotFound for a model the caller does not have, and what `Preparer.prepare` raises for the live release
        or the version that was named.
        """
        route = self._short_way(caller, request)
        if route is not None:
            route, prepared = self._prepared(caller, request, route)
        else:
            route, prepared = await self._in_thread(self._routed, caller, request)
        rewritten = None
        if prepared is None:
            rewritten = await rewrite()
            route, prepared = await self._in_thread(self._prepared, caller, request, route, rewritten)
        adapter = prepared.release.adapter
        if prepared.part == CANARY and adapter is not None:
            try:
                await self._fleet.ensure(adapter.name, adapter.digest)
            except Exception as error:
                route = self._without_canary(route, error)
                prepared = await self._in_thread(
                    self._preparer.prepare, caller, request, route.release, LIVE, rewritten
                )
        shadow = route.shadow if route.shadow and route.shadow.id != prepared.release.id else None
        return replace(prepared, passed=route.passed, shadow=shadow)

    async def prepare_again(
        self, caller: Caller, request: ChatRequest, release: PinnedRelease, part: str, rewrite: Rewrite
    ) -> Prepared:
        """The request as `release` would answer it. Raises as `Preparer.prepare`."""
        rewritten = await rewrite() if needs_rewriting(release, request) else None
        return await self._in_thread(self._preparer.prepare, caller, request, release, part, rewritten)

    def _short_way(self, caller: Caller, request: ChatRequest) -> Route | None:
        """Who answers, if neither that nor to prepare the request takes the catalog, a search or long."""
        pointers = caller.points_to
        if request.model != caller.tenant_name or pointers.canary or pointers.shadow:
            return None
        release = self._known.get(pointers.live or "")
        if release is None or retrieves(release, request) or request.sampling.get("tools"):
            return None
        characters = len(release.prompt.system)
        for message in request.conversation:
            if message.keys() != _PLAIN:
                return None  # calls of tools, as long as they like
            characters += A_MESSAGE + len(message["content"])
        return Route(release, LIVE) if characters <= SHORT_PROMPT else None

    def _routed(self, caller: Caller, request: ChatRequest) -> tuple[Route, Prepared | None]:
        """Who answers, and the request for it unless its question has to be rewritten first."""
        route = self._route(caller, request)
        if any(release and needs_rewriting(release, request) for release in (route.canary, route.release)):
            return route, None
        return self._prepared(caller, request, route)

    def _prepared(
        self, caller: Caller, request: ChatRequest, route: Route, rewritten: str | None = None
    ) -> tuple[Route, Prepared]:
        if route.canary is not None:
            try:
                return route, self._preparer.prepare(caller, request, route.canary, CANARY, rewritten)
            except Exception as error:
                route = self._without_canary(route, error)
        return route, self._preparer.prepare(caller, request, route.release, route.part, rewritten)

    def _route(self, caller: Caller, request: ChatRequest) -> Route:
        if request.model != caller.tenant_name:
            return Route(self._preparer.pin(caller, request.model), PINNED)
        pointers = caller.points_to
        if pointers.live is None:
            return Route(self._preparer.pin(caller, request.model), LIVE)  # raises: there is none
        route = Route(self._release(pointers.live), LIVE)
        asker = f"{caller.key_id}\0{request.asker}"
        for part, release_id, share in (
            (CANARY, pointers.canary, pointers.canary_share),
            (SHADOW, pointers.shadow, pointers.shadow_share),
        ):
            if release_id is None or not falls_into(share, asker, release_id):
                continue
            try:
                found = self._release(release_id)
            except RyorinError as error:  # its adapter was deleted
                if part == CANARY:
                    route = replace(route, passed=Passed(release_id, error.message))
                continue
            route = replace(route, canary=found) if part == CANARY else replace(route, shadow=found)
        if route.canary is not None:
            until, reason = self._left_alone.get(route.canary.id, (0.0, ""))
            if time.monotonic() < until:
                route = replace(route, canary=None, passed=Passed(route.canary.id, reason))
        return route

    def _release(self, release_id: str) -> PinnedRelease:
        """A release that has traffic. It never changes, so it is read once."""
        found = self._known.get(release_id)
        if found is None:
            with self._catalog.session() as session:
                found = pinned(session, session.get_one(Release, release_id))
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[release_id] = found
        return found

    def forget(self, adapter_name: str) -> None:
        """The adapter cannot be had: read its releases anew, which says so if it was deleted."""
        for release_id, release in list(self._known.items()):
            if release.adapter is not None and release.adapter.name == adapter_name:
                self._known.pop(release_id, None)

    def _without_canary(self, route: Route, error: Exception) -> Route:
        assert route.canary is not None
        reason = error.message if isinstance(error, RyorinError) else f"{type(error).__name__}: {error}"
        if route.canary.adapter is not None:
            self.forget(route.canary.adapter.name)
        if isinstance(error, Conflict):  # of the release itself, not of this request
            self._left_alone[route.canary.id] = (time.monotonic() + LEFT_ALONE_S, reason)
        _logger.warning("canary %s was passed over: %s", route.canary.id, reason)
        return replace(route, canary=None, passed=Passed(route.canary.id, reason))
