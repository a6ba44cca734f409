"""
The gateway: routes, and the way of one request through them. docs/structures.md follows one.

Everything but `/health` needs a key, also what does not exist: the middleware identifies the caller before a route is
looked for. Every response carries `x-request-id`; every error is an OpenAI error object.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import aiohttp
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ryorin.catalog import Catalog
from ryorin.catalog.keys import keyed_hash
from ryorin.catalog.logs import asker_hash, prune_logs
from ryorin.errors import InvalidInput, NotFound, RyorinError
from ryorin.models.registry import BaseModel
from ryorin.prompt_tokens import TokenCounter
from ryorin.scopes import CHAT, KNOWLEDGE, SCOPES
from ryorin.traffic import SHADOW
from ryorin.worker import Worker
from ryorin_index.search import Hit, Searcher
from ryorin_serve.adapters import Adapters, EngineHandle
from ryorin_serve.answer import MarkerGate, citations, passage_url
from ryorin_serve.auth import Caller, ScopedRoute, identify
from ryorin_serve.chat import ChatRequest, parse_chat
from ryorin_serve.context import Context
from ryorin_serve.files import clear_away
from ryorin_serve.front_door import FrontDoor, on_http_error, on_ryorin_error, stopping
from ryorin_serve.limits import Quotas, counting
from ryorin_serve.log import LogWriter
from ryorin_serve.options import DEFAULTS, ServeOptions
from ryorin_serve.prepare import PinnedRelease, Prepared, Preparer
from ryorin_serve.presence import Presence
from ryorin_serve.relay import AdapterMissing, StreamRelay, Upstream, error_event
from ryorin_serve.requests import base_url, read_json
from ryorin_serve.routes_admin import AdminRoutes
from ryorin_serve.routes_embeddings import EmbeddingRoutes
from ryorin_serve.routes_files import FileRoutes
from ryorin_serve.routes_fine_tuning import FineTuningRoutes
from ryorin_serve.routes_releases import ReleaseRoutes
from ryorin_serve.routes_store_files import StoreFileRoutes
from ryorin_serve.routes_vector_stores import StoreRoutes
from ryorin_serve.shadow import DROPPED, Shadows
from ryorin_serve.traffic import Traffic

CLEAR_EVERY_S = 600.0  # expired files; they are not found any longer from the moment on
THREADS = 8  # of blocking work; below the catalog's pool of connections
UNWIND_S = 5.0  # for requests that were cut off at shutdown to write their row of the log
PASSAGE_ID = re.compile(r"[0-9]{1,18}")  # what fits into the catalog's 64 bits
# Of a healthy engine only the first byte may take long: it queues requests. A dead one closes its connections.
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5)

_logger = logging.getLogger("ryorin.serve")
Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed its connection; nobody waits for the answer."""


class Gateway:
    """What all requests share, and the handlers of the routes."""

    def __init__(
        self,
        catalog: Catalog,
        searcher: Searcher,
        engine: EngineHandle,
        base: BaseModel,
        *,
        base_served_as: str,
        engine_key: str,
        counter: TokenCounter,
        options: ServeOptions = DEFAULTS,
        workers: Sequence[Worker] = (),
        shadows_beside: bool = True,
    ) -> None:
        self._catalog = catalog
        self._searcher = searcher
        self._engine = engine
        self._base_served_as = base_served_as
        self._engine_key = engine_key
        self._options = options
        self._base = base
        self._workers = workers
        self._shadows_beside = shadows_beside
        self._pepper = catalog.settings.pepper()
        self._preparer = Preparer(catalog, searcher, counter, base, options)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway")
        self._open_turns: set[Turn] = set()
        self._log: LogWriter
        self._quotas: Quotas
        self._upstream: Upstream
        self._adapters: Adapters
        self._traffic: Traffic
        self._shadows: Shadows

    def app(self) -> Starlette:
        """The ASGI application."""
        context = Context(
            self._catalog,
            self._searcher,
            self._options,
            self._in_thread,
            self._wake,
            admit=lambda caller: self._quotas.admit(caller),
            count_tokens=lambda caller, tokens: self._quotas.count_tokens(caller, tokens),
        )
        app = Starlette(
            routes=[
                Route("/health", self.health),
                ScopedRoute("/v1/models", self.models, *SCOPES),
                ScopedRoute("/v1/models/{model:path}", self.model, *SCOPES),
                ScopedRoute("/v1/chat/completions", self.chat, CHAT, methods=["POST"]),
                ScopedRoute("/ryorin/v1/passages/{passage_id}", self.passage, CHAT, KNOWLEDGE),
                *EmbeddingRoutes(context).routes(),
                *FileRoutes(context).routes(),
                *StoreRoutes(context).routes(),
                *StoreFileRoutes(context).routes(),
                *FineTuningRoutes(context, self._preparer, self._base).routes(),
                *ReleaseRoutes(context, self._base).routes(),
                *AdminRoutes(context).routes(),
            ],
            exception_handlers={
                RyorinError: on_ryorin_error,
                HTTPException: on_http_error,
                ClientGone: _on_gone,
                ClientDisconnect: _on_gone,
            },
            lifespan=self._lifespan,
        )
        app.add_middleware(FrontDoor, identify=self._identify)
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        headers = {"authorization": f"Bearer {self._engine_key}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=headers, timeout=TIMEOUT, connector=connector) as http:
            self._log = LogWriter(self._catalog)
            self._quotas = Quotas(self._catalog)
            self._upstream = Upstream(self._engine, http)
            self._adapters = Adapters(
                self._engine, http, self._catalog.settings.adapters_dir, self._options.max_lora_rank
            )
            self._traffic = Traffic(self._catalog, self._preparer, self._adapters, self._in_thread)
            self._shadows = Shadows(
                self._preparer,
                beside=self._shadows_beside,
                in_flight=lambda: len(self._open_turns),
                waiting=self._upstream.waiting,
                ask=self._ask_unseen,
                write=self._write_log,
            )
            presence = Presence(self._catalog, self._searcher, self._adapters, self._base)
            await presence.start()
            clearing = asyncio.create_task(self._clear_away())
            for worker in self._workers:
                worker.start()
            try:
                async with counting(self._quotas):
                    yield
            finally:
                clearing.cancel()
                await presence.stop()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(UNWIND_S):
                        while self._open_turns:
                            await asyncio.sleep(0.01)
                await self._shadows.drain(UNWIND_S)
                await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in self._workers))
                await asyncio.to_thread(self._log.close)
                self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[..., Result], *args: object) -> Result:
        context = contextvars.copy_context()  # who acts
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: context.run(work, *args))

    def _wake(self) -> None:
        for worker in self._workers:
            worker.wake()

    async def _clear_away(self) -> None:
        """Delete expired files and old logs, now and then."""
        while True:
            try:
                await asyncio.to_thread(clear_away, self._catalog)
                await asyncio.to_thread(self._prune_logs)
            except Exception:
                _logger.exception("expired files and logs could not be cleared away")
            await asyncio.sleep(CLEAR_EVERY_S)

    def _prune_logs(self) -> None:
        """Delete the rows of the log that are older than their tenants keep them."""
        more = True
        while more:
            with self._catalog.session() as session:
                more = bool(prune_logs(session))

    async def _identify(self, authorization: str | None) -> Caller:
        return await self._in_thread(identify, self._catalog, self._pepper, authorization)

    async def health(self, _request: Request) -> Response:
        """Whether requests can be answered: 200, or 503 while the engine starts."""
        ready = self._engine.state == "ready"
        body = {"status": "ok" if ready else "unavailable", "engine": self._engine.state}
        return JSONResponse(body, status_code=200 if ready else 503)

    async def models(self, request: Request) -> Response:
        """The caller's alias and releases."""
        found = await self._in_thread(self._preparer.models, request.state.caller)
        return JSONResponse({"object": "list", "data": [_model_object(*model) for model in found]})

    async def model(self, request: Request) -> Response:
        """One model of the caller."""
        name = request.path_params["model"]
        release = await self._in_thread(self._preparer.pin, request.state.caller, name)
        return JSONResponse(_model_object(name, release.created_at))

    async def passage(self, request: Request) -> Response:
        """A passage of the caller's tenant: what a citation points to."""
        caller: Caller = request.state.caller
        passage_id = request.path_params["passage_id"]
        if PASSAGE_ID.fullmatch(passage_id) is None:
            raise NotFound(f"no passage {passage_id}", param="passage_id")
        hit = await self._in_thread(self._searcher.passage, caller.tenant_id, int(passage_id))
        return JSONResponse(_passage_object(hit, base_url(request)))

    async def chat(self, request: Request) -> Response:
        """A chat completion, whole or streamed."""
        asked = parse_chat(await read_json(request, self._options.max_body_bytes))
        self._check_tools(asked)
        self._upstream.check()
        request.state.headers = await self._quotas.admit(request.state.caller)
        self._shadows.make_way()
        turn = Turn(request.state.request_id, request.state.caller, asked, base_url(request))
        turn.prepared = await self._traffic.prepare(turn.caller, asked)
        self._open_turns.add(turn)
        if asked.stream:
            return await self._stream(request, turn)
        return await self._whole(request, turn)

    def _check_tools(self, asked: ChatRequest) -> None:
        """Raise InvalidInput when the model is to choose among tools, and vLLM cannot tell calls from text."""
        chosen = asked.sampling.get("tool_choice", "auto")
        if asked.sampling.get("tools") and chosen == "auto" and not self._options.tool_call_parser:
            raise InvalidInput(
                "tool_choice 'auto' needs a parser for this base model's calls, and the server was started without one "
                "(ryorin serve --tool-call-parser); use 'required', a function by its name, or 'none'.",
                code="unsupported_value",
                param="tool_choice",
            )

    async def _whole(self, request: Request, turn: Turn) -> Response:
        body = self._engine_body(turn)
        status = "error"
        try:
            answer = await _unless_gone(request, self._with_adapter(turn, body, self._upstream.complete))
            turn.take(answer)
            status = "ok"
            return Response(orjson.dumps(answer), media_type="application/json")
        except (ClientGone, asyncio.CancelledError):
            status = "cancelled"
            raise
        finally:
            self._write_log(turn, status)

    async def _stream(self, request: Request, turn: Turn) -> Response:
        body = self._engine_body(turn) | {"stream": True, "stream_options": {"include_usage": True}}
        try:
            response = await _unless_gone(request, self._with_adapter(turn, body, self._upstream.open))
        except BaseException as error:
            self._write_log(turn, "cancelled" if isinstance(error, ClientGone | asyncio.CancelledError) else "error")
            raise
        relay = StreamRelay(
            self._upstream,
            response,
            engine_model=body["model"],
            model=turn.request.model,
            include_usage=turn.request.include_usage,
            addition=turn.addition,
            gate=turn.gate_of if turn.is_gated else None,
            on_text=turn.saw_text,
        )

        def close() -> None:
            response.close()
            turn.texts, turn.usage = relay.texts, relay.usage
            self._write_log(turn, "ok" if relay.finished else "error" if relay.failed else "cancelled")

        return EventStream(relay, close)

    def _engine_body(self, turn: Turn) -> dict[str, Any]:
        prepared = turn.prepared
        adapter = prepared.release.adapter
        return {
            **turn.request.sampling,
            "model": adapter.name if adapter else self._base_served_as,
            "messages": prepared.messages,
            "max_tokens": prepared.max_tokens,
            "cache_salt": self._cache_salt(turn.caller),
        }

    def _cache_salt(self, caller: Caller) -> str:
        """The prefix cache of one tenant tells another nothing; nobody else can know the salt."""
        return keyed_hash(self._pepper, f"cache\0{caller.tenant_id}")

    async def _with_adapter(
        self, turn: Turn, body: dict[str, Any], ask: Callable[[dict[str, Any], str], Awaitable[Result]]
    ) -> Result:
        """Ask the engine once it holds the release's adapter; again, once, when it turns out not to."""
        adapter = turn.prepared.release.adapter
        for last in (False, True):
            if adapter:
                await self._adapters.ensure(adapter.name, adapter.digest)
            try:
                return await ask(body, turn.request_id)
            except AdapterMissing:
                if adapter is None or last:
                    raise self._upstream.gone("The engine lost the adapter; try again.") from None
                self._adapters.forget(adapter.name)
        raise AssertionError("unreachable")

    async def _ask_unseen(self, turn: Turn) -> dict[str, Any]:
        return await self._with_adapter(turn, self._engine_body(turn), self._upstream.complete)

    def _write_log(self, turn: Turn, status: str, reason: str | None = None) -> None:
        self._open_turns.discard(turn)
        prepared = turn.prepared
        texts = [text for _, text in sorted(turn.texts.items())]
        self._log.write(
            id=turn.request_id,
            tenant_id=turn.caller.tenant_id,
            key_id=turn.caller.key_id,
            release_id=prepared.release.id,
            created_at=turn.created_at,
            messages=[] if status == DROPPED else turn.request.conversation,  # they stand in the row it would shadow
            answer="\n\n".join(texts),
            passages=[
                {"passage_id": hit.passage_id, "document_id": hit.document_id, "score": round(hit.score, 6)}
                for hit in prepared.hits or []
            ],
            prompt_tokens=turn.usage.get("prompt_tokens") or prepared.prompt_tokens,
            completion_tokens=turn.usage.get("completion_tokens") or 0,
            retrieval_ms=prepared.retrieval_ms,
            first_token_ms=turn.first_token_ms,
            total_ms=(time.perf_counter() - turn.began) * 1000,
            status=status,
            part=prepared.part,
            passed_release_id=prepared.passed.release_id if prepared.passed else None,
            reason=prepared.passed.reason if prepared.passed else reason,
            shadow_of=turn.shadow_of,
            asker=self._asker(turn),
        )
        if turn.shadow_of is None:
            usage = turn.usage
            self._quotas.count_tokens(
                turn.caller, (usage.get("prompt_tokens") or 0) + (usage.get("completion_tokens") or 0)
            )
        if status == "ok" and turn.shadow_of is None:
            self._shadows.offer(turn)

    def _asker(self, turn: Turn) -> str | None:
        name = turn.request.user
        return None if name is None else asker_hash(self._pepper, turn.caller.tenant_id, name)


class Turn:
    """One request on its way: what was asked by whom, what was prepared, what came back."""

    prepared: Prepared
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
        self.gates: dict[int, MarkerGate] = {}
        self.usage: dict[str, Any] = {}

    def saw_text(self) -> None:
        """Note when the first text came."""
        if self.first_token_ms is None:
            self.first_token_ms = (time.perf_counter() - self.began) * 1000

    def take(self, answer: dict[str, Any]) -> None:
        """Take over the engine's whole answer, and give it what it lacks: the model's public name, citations."""
        answer["model"] = self.request.model
        for choice in answer["choices"]:
            text = choice["message"].get("content") or ""
            if self.is_gated and text:
                text = choice["message"]["content"] = self.gate_of(choice["index"])(text, True)
            choice["message"].update(self.addition(text))
            self.texts[choice["index"]] = text
        self.usage = answer.get("usage") or {}

    @property
    def is_gated(self) -> bool:
        """Whether markers that point to no passage are taken out: of prose; JSON may need a text in their place."""
        form = self.request.sampling.get("response_format", {}).get("type", "text")
        return self.prepared.hits is not None and self.prepared.release.prompt.answer_schema is None and form == "text"

    def gate_of(self, choice: int) -> Callable[[str, bool], str]:
        """What of a choice's text goes on."""
        gate = self.gates.setdefault(choice, MarkerGate(len(self.prepared.hits or ())))
        return gate.feed

    def again(self, request_id: str, release: PinnedRelease) -> Turn:
        """The same request once more, for a shadow."""
        turn = Turn(request_id, self.caller, self.request, self.base_url)
        turn.shadow_of = self.request_id
        turn.prepared = Prepared(release, [], None, prompt_tokens=0, max_tokens=0, retrieval_ms=0.0, part=SHADOW)
        return turn

    def addition(self, text: str) -> dict[str, Any]:
        """What a message with this text gets: its citations, when passages were looked for."""
        if self.prepared.hits is None:
            return {}
        found = citations(text, self.prepared.hits, self.base_url)
        removed = sum(gate.removed for gate in self.gates.values())
        if removed:
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


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client goes away first. Raises ClientGone then."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return await task
    finally:
        for unfinished in (task, watch):
            unfinished.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await unfinished


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _model_object(name: str, created_at: float) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created_at), "owned_by": name.partition("@")[0]}


def _passage_object(hit: Hit, base_url: str) -> dict[str, Any]:
    return {
        "object": "ryorin.passage",
        "id": hit.passage_id,
        "text": hit.text,
        "title": hit.title,
        "filename": hit.filename,
        "document_id": hit.document_id,
        "vector_store_id": hit.store_id,
        "page": hit.page,
        "start": hit.start,
        "end": hit.end,
        "url": passage_url(base_url, hit.passage_id),
    }


async def _on_gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; 499 is what nginx writes into its log
