"""
Shadows: requests that were answered are answered once more by another release, for the log alone.

A shadow begins when the answer it shadows is complete, never more than `AT_ONCE` at a time in a gateway, and only while
no request waits in the engine: else it is dropped, which a row of the log says. So it takes a place in the engine's
batch that nobody waits for. What goes wrong in it is in its row; the client never learns that there was one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ryorin.digests import new_id
from ryorin.errors import RyorinError
from ryorin.traffic import SHADOW
from ryorin_serve.prepare import Preparer

if TYPE_CHECKING:
    from ryorin_serve.app import Turn

AT_ONCE = 2
DROPPED = "dropped"  # a status of the log

_logger = logging.getLogger("ryorin.serve")


class Shadows:
    """
    Answers requests again, in the background.

    waiting: how many requests wait in the engine. ask: asks the engine for a turn's whole answer. write: the row of the
    log, with the turn's status and why it is not 'ok'.
    """

    def __init__(
        self,
        preparer: Preparer,
        *,
        waiting: Callable[[], Awaitable[int]],
        ask: Callable[[Turn], Awaitable[dict[str, Any]]],
        write: Callable[..., None],
    ) -> None:
        self._preparer = preparer
        self._waiting = waiting
        self._ask = ask
        self._write = write
        self._running: set[asyncio.Task[None]] = set()
        self._ending = False

    def offer(self, turn: Turn) -> None:
        """Shadow an answered turn if its tenant has a shadow for it; returns at once."""
        release = turn.prepared.shadow
        if release is None or self._ending:
            return
        shadow = turn.again(new_id("req_"), release)
        if len(self._running) >= AT_ONCE:
            self._write(shadow, DROPPED, f"{AT_ONCE} shadows are on their way already")
            return
        task = asyncio.create_task(self._answer(shadow))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def drain(self, timeout_s: float) -> None:
        """Wait for those on their way; those that take longer are cut off, and their rows say so."""
        self._ending = True
        if self._running:
            await asyncio.wait(self._running, timeout=timeout_s)
        for task in list(self._running):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _answer(self, turn: Turn) -> None:
        release = turn.prepared.release
        try:
            if waiting := await self._waiting():
                self._write(turn, DROPPED, f"{waiting} requests waited in the engine")
                return
            turn.prepared = await asyncio.to_thread(self._preparer.prepare, turn.caller, turn.request, release, SHADOW)
            turn.take(await self._ask(turn))
            self._write(turn, "ok", None)
        except asyncio.CancelledError:
            self._write(turn, "cancelled", "the server was stopped")
            raise
        except RyorinError as error:
            self._write(turn, "error", error.message)
        except Exception as error:
            _logger.exception("the shadow of request %s failed", turn.shadow_of)
            self._write(turn, "error", f"{type(error).__name__}: {error}")
