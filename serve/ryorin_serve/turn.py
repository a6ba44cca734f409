"""One request on its way, and what becomes of it when its client leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ryorin.errors import RyorinError, Unavailable
from ryorin.traffic import FALLBACK, SHADOW
from ryorin_serve.answer import MarkerGate, citations
from ryorin_serve.auth import Caller
from ryorin_serve.chat import ChatRequest
from ryorin_serve.fleet import Replica
from ryorin_serve.front_door import stopping
from ryorin_serve.prepare import PinnedRelease, Prepared, needs_rewriting
from ryorin_serve.relay import error_event


class ClientGone(Exception):
    """The client closed its connection; nobody waits for the answer."""


class Turn:
    """One request on its way: what was asked by whom, what was prepared, what came back."""

    prepared: Prepared
    watch: ClientWatch  # of a turn that has a client
    shadow_of: str | None = None

    def __init__(self, request_id: str, caller: Caller, request: ChatRequest, base_url: str) -> None:
        self.request_id = request_id
        self.caller = caller
        self.request = request
        self.base_url = base_url
        self.created_at = time.time()
        self.began = time.perf_counter()
        self.first_token_ms: float | None = None
        self.texts: dict[int, str] = {}
        self.removed: dict[int, int] = {}  # of each choice: markers taken out that point to no passage
        self._gates: dict[int, MarkerGate] = {}
        self.usage: dict[str, Any] = {}
        self.leave: Callable[[], None] = lambda: None  # its place among those that are answered
        self.came: Callable[[], None] = lambda: None  # the first text, or the end: who asked waits no longer
        self.fallback: str | None = None  # the model elsewhere that answers it
        self.replica: Replica | None = None  # the engine that answers it
        self.span: Any = None  # OpenTelemetry's, where there are traces

    @property
    def part(self) -> str:
        """Which part of the tenant's traffic answers it."""
        return FALLBACK if self.fallback else self.prepared.part

    def turn_to(self, replica: Replica | None) -> None:
        """From now on this engine answers; None: none does."""
        if self.replica is not None:
            self.replica.in_flight -= 1
        self.replica = replica
        if replica is not None:
            replica.in_flight += 1

    def lost(self) -> RyorinError:
        """The error for an engine that stopped in the middle of the answer; others go to another engine first."""
        if self.replica is None:
            return Unavailable(f"{self.fallback} stopped in the middle of the answer; ask again.")
        self.replica.failed()
        return self.replica.upstream.gone("The engine stopped in the middle of the answer; ask again.")

    def saw_text(self) -> None:
        """Note when the first text came."""
        if self.first_token_ms is None:
            self.first_token_ms = (time.perf_counter() - self.began) * 1000
            self.came()

    def take(self, answer: dict[str, Any]) -> None:
        """Take over the engine's whole answer, and give it what it lacks: the model's public name, citations."""
        answer["model"] = self.request.model
        for choice in answer["choices"]:
            text = choice["message"].get("content") or ""
            if self.is_gated and text:
                text = choice["message"]["content"] = self.gate_of(choice["index"])(text, True)
            choice["message"].update(self.addition(choice["index"], text))
            self.texts[choice["index"]] = text
        self.usage = answer.get("usage") or {}

    @property
    def is_gated(self) -> bool:
        """Whether markers that point to no passage are taken out: of prose; JSON may need a text in their place."""
        form = self.request.sampling.get("response_format", {}).get("type", "text")
        return self.prepared.hits is not None and self.prepared.release.prompt.answer_schema is None and form == "text"

    def gate_of(self, choice: int) -> Callable[[str, bool], str]:
        """What of a choice's text goes on."""
        gate = self._gates.setdefault(choice, MarkerGate(len(self.prepared.hits or ())))

        def feed(piece: str, last: bool) -> str:
            text = gate.feed(piece, last)
            self.removed[choice] = gate.removed
            return text

        return feed

    def again(self, request_id: str, release: PinnedRelease) -> Turn:
        """The same request once more, for a shadow."""
        turn = Turn(request_id, self.caller, self.request, self.base_url)
        turn.shadow_of = self.request_id
        turn.prepared = Prepared(release, [], None, prompt_tokens=0, max_tokens=0, retrieval_ms=0.0, part=SHADOW)
        return turn

    def addition(self, choice: int, text: str) -> dict[str, Any]:
        """What a choice's message with this text gets: its citations, when passages were looked for."""
        if self.prepared.hits is None:
            return {}
        found = citations(text, self.prepared.hits, self.base_url)
        if needs_rewriting(self.prepared.release, self.request):
            found["context"]["intent"] = self.prepared.query
        if removed := self.removed.get(choice):
            found["context"]["removed_markers"] = removed
        return found


class EventStream(StreamingResponse):
    """Server-sent events. `close` is called at the end, also when the client left before the first event."""

    def __init__(self, events: AsyncIterable[bytes], close: Callable[[], None]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; one with an error is the last when the server is stopped first."""
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            await send({"type": "http.response.body", "body": error_event(stopping()), "more_body": False})
        finally:
            self._close()


class ClientWatch:
    """
    Sees whether the client is still there. What runs inside `with watch:` is cancelled when it leaves, and ClientGone
    raised; one task watches for the whole request, as a task for each step would cost more than the steps.
    """

    def __init__(self, request: Request) -> None:
        self._gone = self._cancelled = False
        self._inside: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._task = asyncio.ensure_future(_disconnected(request))
        self._task.add_done_callback(self._on_end)

    def end(self) -> None:
        """Watch no longer."""
        self._task.cancel()

    def __enter__(self) -> None:
        """Raises ClientGone when it left before."""
        if self._gone:
            raise ClientGone
        self._inside = asyncio.current_task()
        self._cancelling = self._inside.cancelling() if self._inside else 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        """As `asyncio.timeout` does it: a cancellation from elsewhere stays one."""
        task, self._inside = self._inside, None
        if not self._cancelled or task is None:
            return
        self._cancelled = False
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise ClientGone from error

    def _on_end(self, watching: asyncio.Task[None]) -> None:
        if watching.cancelled():
            return
        watching.exception()  # a connection that cannot be read is gone as well
        self._gone = True
        if self._inside is not None:
            self._cancelled = self._inside.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def on_gone(_request: Request, _error: Exception) -> Response:
    """For a client that left."""
    return Response(status_code=499)  # nobody reads it; 499 is what nginx writes into its log
