"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from ryorin.scopes import CHAT
from ryorin_serve.answering import Answering
from ryorin_serve.auth import ScopedRoute
from ryorin_serve.chat import parse_chat
from ryorin_serve.options import ServeOptions
from ryorin_serve.relay import StreamRelay
from ryorin_serve.requests import read_json
from ryorin_serve.turn import EventStream, Turn


class ChatRoutes:
    """The handler. answering: what answers, once the gateway runs."""

    def __init__(self, options: ServeOptions, answering: Callable[[], Answering]) -> None:
        self._options = options
        self._answering = answering

    def routes(self) -> list[ScopedRoute]:
        """What is served."""
        return [ScopedRoute("/v1/chat/completions", self.create, CHAT, methods=["POST"])]

    async def create(self, request: Request) -> Response:
        """A chat completion, whole or streamed."""
        asked = parse_chat(await read_json(request, self._options.max_body_bytes))
        turn = await self._answering().begin(request, asked)
        if asked.stream:
            return await self._stream(request, turn)
        content = await self._answering().whole(request, turn, lambda answer: _taken(turn, answer))
        return Response(content, media_type="application/json")

    async def _stream(self, request: Request, turn: Turn) -> Response:
        answering = self._answering()
        response, engine_model = await answering.stream(request, turn)
        relay = StreamRelay(
            response,
            lost=turn.lost,
            engine_model=engine_model,
            model=turn.request.model,
            include_usage=turn.request.include_usage,
            addition=turn.addition,
            gate=turn.gate_of if turn.is_gated else None,
            on_text=turn.saw_text,
        )

        def close() -> None:
            response.close()
            turn.texts, turn.usage = relay.texts, relay.usage
            answering.end(turn, "ok" if relay.finished else "error" if relay.failed else "cancelled")

        return EventStream(relay, close)


def _taken(turn: Turn, answer: dict[str, Any]) -> bytes:
    turn.take(answer)
    return orjson.dumps(answer)
