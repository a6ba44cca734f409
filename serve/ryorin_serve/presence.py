"""
The gateway as others see it in the catalog: that it runs, and what it was asked to load.

A release is loaded as its first request would load it, with the same checks: the stores into memory, the adapter into
the engine. A release that cannot be served is answered with the reason; while the engine is away the wish stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time

from ryorin.catalog import Catalog, gateways
from ryorin.catalog.tables import Release
from ryorin.digests import new_id
from ryorin.errors import RyorinError, Unavailable
from ryorin.models.registry import BaseModel
from ryorin.release import Retrieval
from ryorin_index.search import Searcher
from ryorin_index.store import live_stores
from ryorin_serve.adapters import Adapters
from ryorin_serve.prepare import PinnedRelease, pinned

LOOK_S = 0.25
SEEN_EVERY_S = 5.0

_logger = logging.getLogger("ryorin.serve")


class Presence:
    """Says that the gateway runs, and loads what is wished, until it is stopped."""

    def __init__(self, catalog: Catalog, searcher: Searcher, adapters: Adapters, base: BaseModel) -> None:
        self._catalog = catalog
        self._searcher = searcher
        self._adapters = adapters
        self._base = base
        self._id = new_id("gw_")
        self._place = f"the gateway on {socket.gethostname()} (process {os.getpid()})"
        self._seen = float("-inf")
        self._in_hand: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """From now on the gateway is there."""
        with contextlib.suppress(Exception):  # a database that is away now is asked again
            await asyncio.to_thread(self._look)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """It is there no longer; what it was loading is given up."""
        tasks = [*self._in_hand.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.to_thread(self._forget)
        except Exception as error:  # it is taken for dead soon
            _logger.warning("the gateway could not take its leave of the catalog: %s", error)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                wished = await asyncio.to_thread(self._look)
            except Exception:
                _logger.exception("the gateway could not look for what it is to load")
                await asyncio.sleep(SEEN_EVERY_S)
                continue
            for load_id, release_id in wished.items():
                if load_id not in self._in_hand:
                    task = self._in_hand[load_id] = asyncio.create_task(self._load(load_id, release_id))
                    task.add_done_callback(lambda _, load_id=load_id: self._in_hand.pop(load_id, None))  # type: ignore[misc]

    def _look(self) -> dict[str, str]:
        """The wishes as {id: release}."""
        with self._catalog.session() as session:
            if time.monotonic() - self._seen >= SEEN_EVERY_S:
                gateways.see(session, self._id, self._place, self._base.digest)
                self._seen = time.monotonic()
            return {load.id: load.release_id for load in gateways.wished_of(session, self._id)}

    def _forget(self) -> None:
        with self._catalog.session() as session:
            gateways.forget(session, self._id)

    def _answer(self, load_id: str, status: str, reason: str | None) -> None:
        with self._catalog.session() as session:
            gateways.answer(session, load_id, status, reason)

    async def _load(self, load_id: str, release_id: str) -> None:
        status, reason = gateways.DONE, None
        try:
            release = await asyncio.to_thread(self._with_stores, release_id)
            if release.adapter is not None:
                await self._adapters.ensure(release.adapter.name, release.adapter.digest)
        except Unavailable as error:
            status, reason = gateways.WANTED, error.message
        except Exception as error:
            status = gateways.FAILED
            reason = error.message if isinstance(error, RyorinError) else f"{type(error).__name__}: {error}"
            _logger.warning("release %s could not be loaded: %s", release_id, reason)
        try:
            await asyncio.to_thread(self._answer, load_id, status, reason)
        except Exception:  # it is still wished, and done again
            _logger.exception("the gateway could not say what became of release %s", release_id)

    def _with_stores(self, release_id: str) -> PinnedRelease:
        with self._catalog.session() as session:
            row = session.get_one(Release, release_id)
            release = pinned(session, row)
        warm_stores(self._catalog, self._searcher, row)
        return release


def warm_stores(catalog: Catalog, searcher: Searcher, release: Release) -> None:
    """Load the stores that the release searches, and their embedder, into memory. Blocking. Raises as a search does."""
    retrieval = Retrieval.stored(release.retrieval)
    if release.store_ids and retrieval.enabled:
        searcher.warm(release.tenant_id, live_stores(catalog, release.tenant_id, release.store_ids), retrieval)
