"""`/v1/responses`: answers as items, whole or as events in OpenAI's order."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import orjson
from starlette.requests import Request
from starlette.responses import Response

from ryorin.digests import new_id
from ryorin.scopes import CHAT
from ryorin_serve.answering import Answering
from ryorin_serve.auth import ScopedRoute
from ryorin_serve.options import ServeOptions
from ryorin_serve.relay import EngineStream, UpstreamError, events_of
from ryorin_serve.requests import query_of as url_query
from ryorin_serve.requests import read_json
from ryorin_serve.responses import (
    Asked,
    CitedText,
    call_item,
    message_item,
    parse_responses,
    response_object,
    search_item,
    text_part,
)
from ryorin_serve.turn import EventStream, Turn

_logger = logging.getLogger("ryorin.serve")


class ResponseRoutes:
    """The handler. answering: what answers, once the gateway runs."""

    def __init__(self, options: ServeOptions, answering: Callable[[], Answering]) -> None:
        self._options = options
        self._answering = answering

    def routes(self) -> list[ScopedRoute]:
        """What is served."""
        return [ScopedRoute("/v1/responses", self.create, CHAT, methods=["POST"])]

    async def create(self, request: Request) -> Response:
        """A response."""
        url_query(request, ())
        asked = parse_responses(await read_json(request, self._options.max_body_bytes))
        turn = await self._answering().begin(request, asked.chat)
        if asked.chat.stream:
            return await self._stream(request, asked, turn)
        content = await self._answering().whole(request, turn, lambda answer: orjson.dumps(_whole(asked, turn, answer)))
        return Response(content, media_type="application/json")

    async def _stream(self, request: Request, asked: Asked, turn: Turn) -> Response:
        answering = self._answering()
        response, _ = await answering.stream(request, turn)
        events = ResponseEvents(response, asked, turn)

        def close() -> None:
            response.close()
            answering.end(turn, "ok" if events.finished else "error" if events.failed else "cancelled")

        return EventStream(events, close)


def _cited_text(turn: Turn) -> CitedText:
    """An empty text of the turn's answer. Without retrieval a marker is no marker."""
    return CitedText(turn.prepared.hits or [], keeps_markers=not turn.is_gated)


def _status(reason: str | None) -> str:
    return "incomplete" if reason == "length" else "completed"


def _query(turn: Turn) -> str:
    return turn.prepared.query


def _whole(asked: Asked, turn: Turn, answer: dict[str, Any]) -> dict[str, Any]:
    (choice,) = answer["choices"]
    message = choice["message"]
    turn.usage = answer.get("usage") or {}
    turn.texts[0] = message.get("content") or ""
    status = _status(choice.get("finish_reason"))
    output = []
    if asked.searches:
        output.append(search_item(new_id("fs_"), asked, _query(turn), turn.prepared.hits or [], "completed"))
    calls = message.get("tool_calls") or []
    if turn.texts[0] or not calls:
        text = _cited_text(turn)
        text.feed(turn.texts[0], last=True)
        turn.removed[0] = text.removed
        output.append(message_item(new_id("msg_"), text, status))
    output += [call_item(new_id("fc_"), call, "completed") for call in calls]
    return response_object(_response_id(turn), turn.created_at, asked, status, output, turn.usage)


def _response_id(turn: Turn) -> str:
    return f"resp_{turn.request_id.removeprefix('req_')}"


class ResponseEvents:
    """
    The events of one response, from the engine's chunks.

    finished: the stream came to its regular end. failed: the engine broke off; the last event says so.
    """

    def __init__(self, response: EngineStream, asked: Asked, turn: Turn) -> None:
        self._response = response
        self._asked = asked
        self._turn = turn
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._text: CitedText | None = None
        self._text_at = 0
        self._message_id = new_id("msg_")
        self._calls: dict[int, dict[str, Any]] = {}  # by the engine's index: the call so far, its item and place
        self.finished = False
        self.failed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The events."""
        yield self._event("response.created", response=self._shown("in_progress"))
        yield self._event("response.in_progress", response=self._shown("in_progress"))
        for event in self._searched():
            yield event
        reason: str | None = None
        try:
            async for data in events_of(self._response):
                if data == b"[DONE]":
                    self.finished = True
                    break
                chunk = orjson.loads(data)
                if "error" in chunk:
                    raise UpstreamError
                if chunk.get("usage"):
                    self._turn.usage = chunk["usage"]
                for choice in chunk.get("choices") or ():
                    reason = choice.get("finish_reason") or reason
                    for event in self._taken(choice["delta"]):
                        yield event
            if not self.finished:
                raise aiohttp.ClientPayloadError("the stream ended before [DONE]")
        except Exception as error:
            if not isinstance(error, OSError | aiohttp.ClientError | orjson.JSONDecodeError | UpstreamError):
                _logger.exception("a stream of a response could not be made")
            self.failed, self.finished = True, False
            told = {"code": "server_error", "message": self._turn.lost().message}
            yield self._event("response.failed", response=self._shown("failed", told))
            return
        finally:
            self._response.close()
        status = _status(reason)
        for event in self._ended(status):
            yield event
        yield self._event(f"response.{status}", response=self._shown(status))

    def _searched(self) -> list[bytes]:
        """The search is over before the engine is asked."""
        if not self._asked.searches:
            return []
        item_id, hits = new_id("fs_"), self._turn.prepared.hits or []
        item = search_item(item_id, self._asked, _query(self._turn), hits, "in_progress")
        found = [self._event("response.output_item.added", output_index=0, item=item)]
        for step in ("in_progress", "searching", "completed"):
            found.append(self._event(f"response.file_search_call.{step}", output_index=0, item_id=item_id))
        item = search_item(item_id, self._asked, _query(self._turn), hits, "completed")
        self._output.append(item)
        return [*found, self._event("response.output_item.done", output_index=0, item=item)]

    def _taken(self, delta: dict[str, Any]) -> list[bytes]:
        found = []
        if delta.get("content"):
            self._turn.saw_text()
            self._turn.texts[0] = self._turn.texts.get(0, "") + delta["content"]
            found += self._opened_text()
            assert self._text is not None
            found += self._told(*self._text.feed(delta["content"]))
        for part in delta.get("tool_calls") or ():
            found += self._called(part)
        return found

    def _opened_text(self) -> list[bytes]:
        if self._text is not None:
            return []
        self._text, self._text_at = _cited_text(self._turn), len(self._output)
        item = message_item(self._message_id, None, "in_progress")
        self._output.append(item)
        return [
            self._event("response.output_item.added", output_index=self._text_at, item=item),
            self._of_text("response.content_part.added", part=text_part(self._text)),
        ]

    def _told(self, shown: str, cited: list[dict[str, Any]]) -> list[bytes]:
        assert self._text is not None
        self._turn.removed[0] = self._text.removed
        found = [self._of_text("response.output_text.delta", delta=shown, logprobs=[])] if shown else []
        first = len(self._text.annotations) - len(cited)
        return found + [
            self._of_text("response.output_text.annotation.added", annotation_index=first + at, annotation=each)
            for at, each in enumerate(cited)
        ]

    def _called(self, part: dict[str, Any]) -> list[bytes]:
        """A piece of a function's call."""
        function, found = part.get("function") or {}, []
        known = self._calls.get(part["index"])
        if known is None:
            call = {"id": part.get("id") or new_id("call_"), "function": {"name": "", "arguments": ""}}
            known = self._calls[part["index"]] = {"call": call, "item_id": new_id("fc_"), "at": len(self._output)}
            known["call"]["function"]["name"] = function.get("name") or ""
            item = call_item(known["item_id"], known["call"], "in_progress")
            self._output.append(item)
            found.append(self._event("response.output_item.added", output_index=known["at"], item=item))
        if piece := function.get("arguments"):
            known["call"]["function"]["arguments"] += piece
            place = {"output_index": known["at"], "item_id": known["item_id"]}
            found.append(self._event("response.function_call_arguments.delta", **place, delta=piece))
        return found

    def _ended(self, status: str) -> list[bytes]:
        """What was begun is done."""
        found = []
        if self._text is None and not self._calls:
            found += self._opened_text()
        if self._text is not None:
            found += self._told(*self._text.feed("", last=True))
            part = text_part(self._text)
            found.append(self._of_text("response.output_text.done", text=self._text.text, logprobs=[]))
            found.append(self._of_text("response.content_part.done", part=part))
            found.append(self._done(self._text_at, message_item(self._message_id, self._text, status)))
        for known in self._calls.values():
            function = known["call"]["function"]
            place = {"output_index": known["at"], "item_id": known["item_id"]}
            found.append(
                self._event(
                    "response.function_call_arguments.done",
                    **place,
                    name=function["name"],
                    arguments=function["arguments"],
                )
            )
            found.append(self._done(known["at"], call_item(known["item_id"], known["call"], "completed")))
        return found

    def _done(self, at: int, item: dict[str, Any]) -> bytes:
        self._output[at] = item
        return self._event("response.output_item.done", output_index=at, item=item)

    def _of_text(self, kind: str, **more: Any) -> bytes:
        return self._event(kind, output_index=self._text_at, content_index=0, item_id=self._message_id, **more)

    def _shown(self, status: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
        turn = self._turn
        usage = {} if status == "in_progress" else turn.usage
        return response_object(_response_id(turn), turn.created_at, self._asked, status, self._output, usage, error)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = orjson.dumps({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
