"""
The gateway as others see it in the catalog: that it runs, and what it was asked to load.

A release is loaded as its first request would load it, with the same checks: the stores into memory, the adapter into
the engines. A release that cannot be served is answered with the reason; while the engines are away the wish stays.

When an engine begins a new life, the adapters of the releases with traffic are loaded into it before they are asked
for; those that no release has traffic with and nobody asks for are let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from itertools import zip_longest

from sqlalchemy import func, select

from ryorin.catalog import Catalog, gateways
from ryorin.catalog.changes import Changes
from ryorin.catalog.tables import Adapter, Release, Tenant
from ryorin.digests import new_id
from ryorin.errors import RyorinError, Unavailable
from ryorin.models.registry import BaseModel
from ryorin.release import Retrieval
from ryorin.traffic import has_traffic
from ryorin_index.search import Searcher
from ryorin_index.store import live_stores
from ryorin_serve.fleet import Fleet
from ryorin_serve.prepare import PinnedAdapter, PinnedRelease, pinned

LOOK_S = 0.25  # for wishes, which somebody waits for
LIVES_S = 1.0  # for engines that began a new life
SEEN_EVERY_S = 5.0
LET_GO_EVERY_S = 60.0

_logger = logging.getLogger("ryorin.serve")


class Presence:
    """
    Says that the gateway runs, and loads what is wished, until it is stopped.

    most: adapters that a new engine gets before they are asked for.
    """

    def __init__(self, catalog: Catalog, searcher: Searcher, fleet: Fleet, base: BaseModel, most: int) -> None:
        self._most = most
        self._catalog = catalog
        self._searcher = searcher
        self._fleet = fleet
        self._base = base
        self._id = new_id("gw_")
        self._place = f"the gateway on {socket.gethostname()} (process {os.getpid()})"
        self._seen = float("-inf")
        self._changes = Changes(catalog.engine)
        self._as_of: int | None = None  # the catalog's last look that found out all that is wished
        self._lives: tuple[int, ...] = ()
        self._let_go_at = time.monotonic()
        self._in_hand: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """From now on the gateway is there."""
        with contextlib.suppress(Exception):  # a database that is away now is asked again
            await asyncio.to_thread(self._look)
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._keep_loaded())]

    async def stop(self) -> None:
        """It is there no longer; what it was loading is given up."""
        tasks = [*self._in_hand.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.to_thread(self._forget)
        except Exception as error:  # it is taken for dead soon
            _logger.warning("the gateway could not take its leave of the catalog: %s", error)
        self._changes.close()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            as_of = self._changes.look()
            if as_of is not None and as_of == self._as_of and time.monotonic() - self._seen < SEEN_EVERY_S:
                continue  # nobody wrote anything, so nobody wishes anything: four times a second, that counts
            try:
                wished = await asyncio.to_thread(self._look)
                self._as_of = as_of
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

    async def _keep_loaded(self) -> None:
        """Apart from the wishes: an engine that hangs does not keep the gateway from saying that it runs."""
        while True:
            await asyncio.sleep(LIVES_S)
            try:
                await self._reconcile()
            except Exception:
                _logger.exception("the gateway could not see to what its engines hold")
                await asyncio.sleep(SEEN_EVERY_S)

    async def _reconcile(self) -> None:
        """Load into engines that are new what has traffic; let go, now and then, what has none."""
        lives = self._fleet.lives
        new = any(life and life != before for life, before in zip_longest(lives, self._lives))
        due = time.monotonic() - self._let_go_at >= LET_GO_EVERY_S
        if not new and not due:
            self._lives = lives
            return
        adapters = await asyncio.to_thread(self._with_traffic)
        if new:
            for adapter in adapters[: self._most]:
                try:
                    await self._fleet.ensure(adapter.name, adapter.digest)
                except Unavailable:
                    return  # it is gone again; the next one is new too
                except RyorinError as error:
                    _logger.warning("adapter %s could not be loaded: %s", adapter.name, error.message)
        self._lives = lives
        if due:
            self._let_go_at = time.monotonic()
            await self._fleet.let_go({adapter.name for adapter in adapters})

    def _with_traffic(self) -> list[PinnedAdapter]:
        """The adapters of this base model that a tenant's row points to, those of the newest releases first."""
        with self._catalog.session() as session:
            rows = session.execute(
                select(Adapter.name, Adapter.digest)
                .join(Release, Release.adapter_id == Adapter.id)
                .join(Tenant, has_traffic())
                .where(Release.base_digest == self._base.digest, Adapter.deleted_at.is_(None))
                .group_by(Adapter.name, Adapter.digest)
                .order_by(func.max(Release.created_at).desc())
            ).all()
        return [PinnedAdapter(name, digest) for name, digest in rows]

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
                await self._fleet.ensure(release.adapter.name, release.adapter.digest)
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
