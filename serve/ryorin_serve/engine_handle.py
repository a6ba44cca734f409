"""What the gateway knows of an engine, whoever runs it, and of several together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any, Literal, Protocol

from ryorin.errors import Unavailable

State = Literal["starting", "ready", "down"]
ENGINE_UNAVAILABLE = "engine_unavailable"  # the code of an error


class EngineHandle(Protocol):
    """
    An engine.

    generation: which life it is in; what was loaded into an earlier one is lost. retry_after_s: a guess of when it is
    ready again.
    """

    state: State
    generation: int

    @property
    def url(self) -> str:
        """Where it listens."""

    @property
    def retry_after_s(self) -> float:
        """When it may be ready again."""


class EngineLife(EngineHandle, Protocol):
    """An engine as who serves sees it."""

    def start(self) -> None:
        """Begin to watch it, in the background; one that is ours is started."""

    async def first_ready(self) -> None:
        """Wait until it is ready for the first time. Raises EngineFailed when it never will be."""

    async def stop(self) -> None:
        """End what was started; safe to call twice."""

    def kill(self) -> None:
        """The same at once, from anywhere."""


class Watched:
    """An engine that a task in the background watches, from `_watch` to `stop`."""

    _task: asyncio.Task[None] | None = None
    _first_ready: asyncio.Future[None] | None = None

    def _watch(self, watching: Coroutine[Any, Any, None], name: str) -> None:
        loop = asyncio.get_running_loop()
        self._first_ready = loop.create_future()
        self._task = loop.create_task(watching, name=name)

    async def first_ready(self) -> None:
        """Wait until it is ready for the first time. Raises EngineFailed when it never will be."""
        assert self._first_ready is not None, "start() comes first"
        await asyncio.shield(self._first_ready)

    async def stop(self) -> None:
        """Watch no longer; safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._first_ready is not None:
            self._first_ready.cancel()


def state_of(engines: Sequence[EngineHandle]) -> State:
    """The best that is true of one of them."""
    states = {engine.state for engine in engines}
    order: tuple[State, ...] = ("ready", "starting", "down")
    return next(state for state in order if state in states)


def retry_after_s(engines: Sequence[EngineHandle]) -> float:
    """When the first of them may be ready again, in seconds."""
    return min(engine.retry_after_s for engine in engines)


def unavailable(message: str, *engines: EngineHandle) -> Unavailable:
    """The error for engines that do not answer."""
    return Unavailable(message, retry_after_s=retry_after_s(engines), code=ENGINE_UNAVAILABLE)
