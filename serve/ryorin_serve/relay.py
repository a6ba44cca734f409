"""
Talking to the engine: one request, answered whole or as a stream that is relayed event by event.

A stream's events go on as the bytes they came as, with the adapter's name replaced by the model that was asked for;
each is read only for its text. The event that ends a choice is rewritten, because the citations belong on it: only then
is the text whole. The usage event is asked for always (the log wants it) and shown only to a client that asked.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import aiohttp
import orjson

from ryorin.errors import InvalidInput, RyorinError, Unavailable
from ryorin_serve.engine_handle import EngineHandle, unavailable
from ryorin_serve.errors import error_object

DONE = b"data: [DONE]\n\n"
COUNTED_S = 1.0  # vLLM takes milliseconds to write its metrics, in the process that sends the streams
WAITING = re.compile(rb"^vllm:num_requests_waiting\{[^\n]*\} (\S+)", re.MULTILINE)  # a line for each of its engines

_logger = logging.getLogger("ryorin.serve")


class AdapterMissing(RyorinError, LookupError):
    """The engine does not hold the adapter it was asked for; it was started anew, or unloaded it."""


class Bytes(Protocol):
    """What comes, as it comes."""

    def iter_any(self) -> AsyncIterator[bytes]:
        """Piece by piece."""


class EngineStream(Protocol):
    """A stream of server-sent events: aiohttp's response, or what stands for it."""

    @property
    def content(self) -> Bytes:
        """Its bytes."""

    def close(self) -> None:
        """Read no more; who sends it learns so."""


class Upstream:
    """The engine's chat completions. Raises Unavailable when it does not answer, InvalidInput for what it refuses."""

    def __init__(self, engine: EngineHandle, http: aiohttp.ClientSession) -> None:
        self._engine = engine
        self._http = http
        self._counted = (float("-inf"), 0)

    def check(self) -> None:
        """Raise Unavailable unless the engine is ready."""
        if self._engine.state != "ready":
            raise self.gone(f"The engine is {self._engine.state}; try again.")

    def gone(self, message: str = "The engine went away; try again.") -> Unavailable:
        """The error for an engine that does not answer."""
        return unavailable(message, self._engine)

    async def open(self, body: dict[str, Any], headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Send a request; the response's head has come and is a success. The caller closes it."""
        self.check()
        try:
            response = await self._http.post(
                f"{self._engine.url}/v1/chat/completions",
                data=orjson.dumps(body),
                headers={"content-type": "application/json", **headers},
            )
            if response.status == 200:
                return response
            async with response:
                text = await response.read()
        except (TimeoutError, aiohttp.ClientError) as error:
            raise self.gone() from error
        raise self._refusal(response.status, text, str(body["model"]))

    async def stream(self, body: dict[str, Any], headers: dict[str, str]) -> EngineStream:
        """The stream of an answer, which the caller closes."""
        return await self.open(body, headers)

    async def complete(self, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        """A whole answer."""
        response = await self.open(body, headers)
        try:
            async with response:
                answer: dict[str, Any] = orjson.loads(await response.read())
        except (TimeoutError, aiohttp.ClientError, orjson.JSONDecodeError) as error:
            raise self.gone() from error
        return answer

    async def waiting(self) -> int:
        """How many requests wait in the engine, by its own count; as it was up to `COUNTED_S` ago."""
        counted_at, waiting = self._counted
        if time.monotonic() - counted_at < COUNTED_S:
            return waiting
        self.check()
        try:
            async with self._http.get(f"{self._engine.url}/metrics") as response:
                counts = WAITING.findall(await response.read())
        except (TimeoutError, aiohttp.ClientError) as error:
            raise self.gone() from error
        if not counts:
            raise self.gone("The engine does not say how many requests wait.")
        self._counted = (time.monotonic(), int(sum(map(float, counts))))
        return self._counted[1]

    def _refusal(self, status: int, text: bytes, model: str) -> RyorinError:
        try:
            error = orjson.loads(text)["error"]
            message, param = str(error["message"]), error.get("param")
        except (orjson.JSONDecodeError, KeyError, TypeError):
            message, param = text.decode(errors="replace")[:300], None
        if status == 404:
            return AdapterMissing(message)
        if 400 <= status < 500:
            # What vLLM calls the model is nobody's business outside.
            return InvalidInput(message.replace(model, "the model"), param=param if isinstance(param, str) else None)
        return self.gone("The engine failed to answer; try again.")


class StreamRelay:
    """
    Relays one stream and keeps what the log and the citations need.

    lost: the error for a stream that ends too early.
    texts: the answer of each choice so far. usage: as vLLM counted. finished: the stream came to its regular end.
    addition: from a choice and its whole text to what its last event gets (citations). gate: of a choice's text, what
    of it goes on; None lets all of it through as it came.
    """

    def __init__(
        self,
        response: EngineStream,
        *,
        lost: Callable[[], RyorinError],
        engine_model: str,
        model: str,
        include_usage: bool,
        addition: Callable[[int, str], dict[str, Any]],
        gate: Callable[[int], Callable[[str, bool], str]] | None,
        on_text: Callable[[], None],
    ) -> None:
        self._gate = gate
        self._lost = lost
        self._response = response
        self._model = model
        self._names = (b'"model":' + orjson.dumps(engine_model), b'"model":' + orjson.dumps(model))
        self._include_usage = include_usage
        self._addition = addition
        self._on_text = on_text
        self.texts: dict[int, str] = {}
        self.usage: dict[str, Any] = {}
        self.finished = False
        self.failed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The events for the client. A failure is one last event with an error, and no `[DONE]`."""
        try:
            async for event in events_of(self._response):
                if event == b"[DONE]":
                    self.finished = True
                    yield DONE
                    return
                if out := self._relayed(event):
                    yield out
            raise aiohttp.ClientPayloadError("the stream ended before [DONE]")
        except Exception as error:
            if not isinstance(error, OSError | aiohttp.ClientError | orjson.JSONDecodeError | UpstreamError):
                _logger.exception("a stream could not be relayed")  # the client is owed an end all the same
            self.failed = True
            yield error_event(self._lost())
        finally:
            self._response.close()  # a connection cut in the middle is how vLLM learns to stop generating

    def _relayed(self, event: bytes) -> bytes | None:
        """What the client gets for an event, or None when it is not for the client."""
        chunk = orjson.loads(event)
        if "error" in chunk:
            raise UpstreamError
        if chunk.get("usage"):
            self.usage = chunk["usage"]
        choices = chunk.get("choices")
        if not choices:
            if not (self._include_usage and chunk.get("usage")):
                return None
            return b"data: " + event.replace(*self._names, 1) + b"\n\n"
        changed = False
        for choice in choices:
            index, delta = choice["index"], choice["delta"]
            ended = bool(choice.get("finish_reason"))
            text = delta.get("content") or ""
            if self._gate is not None and (text or ended):
                let_through = self._gate(index)(text, ended)
                if let_through != text:
                    delta["content"] = text = let_through
                    changed = True
            if text:
                self.texts[index] = self.texts.get(index, "") + text
                self._on_text()
            if ended:
                delta.update(self._addition(index, self.texts.get(index, "")))
                changed = True
        if not changed:
            return b"data: " + event.replace(*self._names, 1) + b"\n\n"
        chunk["model"] = self._model
        return _event(chunk)


class UpstreamError(Exception):
    """An error event in vLLM's stream."""


async def events_of(response: EngineStream) -> AsyncIterator[bytes]:
    """The payload of each event of a stream; they end with an empty line, wherever the network cut them."""
    rest = b""
    async for data in response.content.iter_any():
        *events, rest = (rest + data).split(b"\n\n")
        for event in events:
            if event.startswith(b"data:"):
                yield event[5:].strip()


def error_event(error: RyorinError) -> bytes:
    """The last event of a stream that failed."""
    return _event(error_object(error.message, error.type, param=error.param, code=error.code))


def _event(value: object) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
