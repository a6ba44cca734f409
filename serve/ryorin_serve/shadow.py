"""
Shadows: requests that were answered are answered once more by another release, for the log alone.

A shadow begins when the answer it shadows is complete, and makes way for whoever waits for an answer. Where the engine
computes many requests for the price of one (a GPU), it takes one of `AT_ONCE` places beside them, and none while
requests wait in the engine. Where each one costs (a CPU), it begins when nothing was asked for `QUIET_S` and is broken
off, to be begun anew, when something is. It is tried for `PATIENCE_S`, `BACKLOG` of them at a time; what finds no room
is dropped, which its row of the log says. What goes wrong is in its row too; the client never learns of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ryorin.digests import new_id
from ryorin.errors import RyorinError
from ryorin_serve.prepare import PinnedRelease, Prepared

if TYPE_CHECKING:
    from ryorin_serve.turn import Turn

AT_ONCE = 2
BACKLOG = 32
PATIENCE_S = 60.0
QUIET_S = 0.5
LOOK_S = 0.1
DROPPED = "dropped"  # a status of the log

_logger = logging.getLogger("ryorin.serve")


class Shadows:
    """
    Answers requests again, in the background.

    prepare: a turn for a release. beside: whether shadows are computed beside requests, or in quiet moments alone.
    in_flight: how many requests of clients are being answered here. waiting: how many wait in the engines. ask: asks
    an engine for a turn's whole answer. write: the row of the log, with the turn's status and why it is not 'ok'.
    """

    def __init__(
        self,
        *,
        prepare: Callable[[Turn, PinnedRelease], Awaitable[Prepared]],
        beside: bool,
        in_flight: Callable[[], int],
        waiting: Callable[[], Awaitable[int]],
        ask: Callable[[Turn], Awaitable[dict[str, Any]]],
        write: Callable[..., None],
    ) -> None:
        self._prepare = prepare
        self._beside = beside
        self._in_flight = in_flight
        self._waiting = waiting
        self._ask = ask
        self._write = write
        self._places = asyncio.Semaphore(AT_ONCE)
        self._shadows: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._active_at = float("-inf")
        self._ending = False

    def make_way(self) -> None:
        """A client asks: what shadows compute is broken off, where it would cost the client time."""
        self._active_at = time.monotonic()
        if not self._beside:
            for task in self._asking:
                task.cancel()

    def offer(self, turn: Turn) -> None:
        """Shadow an answered turn if its tenant has a shadow for it; returns at once."""
        self._active_at = time.monotonic()
        release = turn.prepared.shadow
        if release is None or self._ending:
            return
        shadow = turn.again(new_id("req_"), release)
        if len(self._shadows) >= BACKLOG:
            self._write(shadow, DROPPED, f"{BACKLOG} shadows wait already")
            return
        task = asyncio.create_task(self._shadow(shadow))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def drain(self, timeout_s: float) -> None:
        """Wait for those that are computed; what is not done then is cut off, and its row says so."""
        self._ending = True
        if self._asking:
            await asyncio.wait(self._asking, timeout=timeout_s)
        for task in self._shadows:
            task.cancel()
        await asyncio.gather(*self._shadows, return_exceptions=True)

    async def _shadow(self, turn: Turn) -> None:
        """Try until there is room, and write the row of what came of it."""
        end = time.monotonic() + PATIENCE_S
        try:
            while busy := await self._try(turn):
                if time.monotonic() > end:
                    self._write(turn, DROPPED, busy)
                    return
                await asyncio.sleep(LOOK_S)
            self._write(turn, "ok", None)
        except asyncio.CancelledError:
            self._write(turn, "cancelled", "the server was stopped")
            raise
        except RyorinError as error:
            self._write(turn, "error", error.message)
        except Exception as error:
            _logger.exception("the shadow of request %s failed", turn.shadow_of)
            self._write(turn, "error", f"{type(error).__name__}: {error}")

    async def _try(self, turn: Turn) -> str | None:
        """Answer the turn; why there is no room for it, or None when it is answered."""
        async with self._places:
            if busy := await self._busy():
                return busy
            task = asyncio.create_task(self._answer(turn))
            self._asking.add(task)
            try:
                await task
            except asyncio.CancelledError:
                if self._ending or not task.cancelled():
                    task.cancel()
                    raise
                return "requests came while it was answered"
            finally:
                self._asking.discard(task)
        return None

    async def _busy(self) -> str | None:
        if self._ending:
            return "the server ends"
        if self._in_flight():
            self._active_at = time.monotonic()
        if not self._beside and time.monotonic() - self._active_at < QUIET_S:
            return "requests were being answered"
        waiting = await self._waiting()
        return f"{waiting} requests waited in the engine" if waiting else None

    async def _answer(self, turn: Turn) -> None:
        turn.began = time.perf_counter()  # the time it waited for room says nothing of the release
        release = turn.prepared.release
        turn.prepared = await self._prepare(turn, release)
        turn.take(await self._ask(turn))
