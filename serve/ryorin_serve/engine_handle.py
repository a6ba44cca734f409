"""What the gateway knows of an engine, whoever runs it, and of several together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

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
