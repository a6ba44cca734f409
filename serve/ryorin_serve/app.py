"""
The gateway: its parts, its routes and its life. docs/structures.md follows one request through it.

Everything but `/health` and `/ready` needs a key, also what does not exist: the middleware identifies the caller before
a route is looked for. Every response carries `x-request-id`; every error is an OpenAI error object.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import aiohttp
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ryorin.catalog import Catalog
from ryorin.catalog.logs import prune_logs
from ryorin.errors import InvalidInput, NotFound, RyorinError
from ryorin.foreground import Foreground
from ryorin.models.registry import BaseModel
from ryorin.prompt_tokens import TokenCounter
from ryorin.scopes import CHAT, KNOWLEDGE, SCOPES
from ryorin.worker import Worker
from ryorin_index.search import Hit, Searcher
from ryorin_serve.adapters import AdapterFiles
from ryorin_serve.answer import passage_url
from ryorin_serve.answering import Answering
from ryorin_serve.auth import Caller, Callers, ScopedRoute
from ryorin_serve.context import Context
from ryorin_serve.engine_handle import EngineHandle
from ryorin_serve.files import clear_away
from ryorin_serve.fleet import Fleet
from ryorin_serve.front_door import FrontDoor, on_http_error, on_ryorin_error
from ryorin_serve.limits import Quotas, counting
from ryorin_serve.log import LogWriter
from ryorin_serve.metrics import Metrics
from ryorin_serve.options import DEFAULTS, ServeOptions
from ryorin_serve.prepare import Preparer
from ryorin_serve.presence import Presence
from ryorin_serve.providers import Providers
from ryorin_serve.readiness import Readiness
from ryorin_serve.requests import base_url
from ryorin_serve.routes_admin import AdminRoutes
from ryorin_serve.routes_chat import ChatRoutes
from ryorin_serve.routes_embeddings import EmbeddingRoutes
from ryorin_serve.routes_files import FileRoutes
from ryorin_serve.routes_fine_tuning import FineTuningRoutes
from ryorin_serve.routes_releases import ReleaseRoutes
from ryorin_serve.routes_responses import ResponseRoutes
from ryorin_serve.routes_store_files import StoreFileRoutes
from ryorin_serve.routes_vector_stores import StoreRoutes
from ryorin_serve.shadow import Shadows
from ryorin_serve.tracing import Traces
from ryorin_serve.traffic import Traffic
from ryorin_serve.turn import ClientGone, on_gone
from ryorin_serve.vllm import resident_adapters

CLEAR_EVERY_S = 600.0  # expired files; they are not found any longer from the moment on
THREADS = 8  # of blocking work; with those that prove keys no more than the catalog's pool has connections
UNWIND_S = 5.0  # for requests that were cut off at shutdown to write their row of the log
PASSAGE_ID = re.compile(r"[0-9]{1,18}")  # what fits into the catalog's 64 bits
# Of a healthy engine only the first byte may take long: it queues requests. A dead one closes its connections.
CONNECT_S = 5

_logger = logging.getLogger("ryorin.serve")
Result = TypeVar("Result")


class Gateway:
    """What all requests share, and the handlers of the routes."""

    def __init__(
        self,
        catalog: Catalog,
        searcher: Searcher,
        engines: Sequence[EngineHandle],
        base: BaseModel,
        *,
        engine_key: str,
        counter: TokenCounter,
        options: ServeOptions = DEFAULTS,
        workers: Sequence[Worker] = (),
        shadows_beside: bool = True,
        foreground: Foreground | None = None,
        traces: Traces | None = None,
        providers: Providers | None = None,
    ) -> None:
        self._providers = providers or Providers()
        self._traces = traces or Traces.by_environment()
        self._catalog = catalog
        self._searcher = searcher
        self._engines = engines
        self._engine_key = engine_key
        self._options = options
        self._base = base
        self._workers = workers
        self._shadows_beside = shadows_beside
        self._foreground = foreground or Foreground()
        self._pepper = catalog.settings.pepper()
        self._preparer = Preparer(catalog, searcher, counter, base, options, self._traces)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway")
        self._callers = Callers(catalog, self._pepper)
        self._quotas: Quotas
        self._answering: Answering

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
                *Readiness(self._catalog, self._engines, elsewhere=bool(self._providers.names)).routes(),
                ScopedRoute("/v1/models", self.models, *SCOPES),
                ScopedRoute("/v1/models/{model:path}", self.model, *SCOPES),
                ScopedRoute("/ryorin/v1/passages/{passage_id}", self.passage, CHAT, KNOWLEDGE),
                *ChatRoutes(self._options, lambda: self._answering).routes(),
                *ResponseRoutes(self._options, lambda: self._answering).routes(),
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
                ClientGone: on_gone,
                ClientDisconnect: on_gone,
            },
            lifespan=self._lifespan,
        )
        app.add_middleware(FrontDoor, identify=self._callers.identify)
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        headers = {"authorization": f"Bearer {self._engine_key}"}
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._options.engine_silence_s)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as http:
            log, metrics = LogWriter(self._catalog), Metrics()
            self._quotas = Quotas(self._catalog)
            options = self._options
            files = AdapterFiles(self._catalog.settings.adapters_dir, options.max_lora_rank, options.engine_adapters)
            fleet = Fleet(self._engines, http, files)
            answering = self._answering = Answering(
                fleet,
                Traffic(self._catalog, self._preparer, fleet, self._in_thread),
                self._quotas,
                log,
                options=self._options,
                pepper=self._pepper,
                metrics=metrics,
                traces=self._traces,
                providers=self._providers,
                foreground=self._foreground,
            )
            metrics.watch("running", lambda: answering.admission.running)
            metrics.watch("waiting", lambda: answering.admission.waiting)
            metrics.watch("engines_ready", lambda: len(fleet.ready))
            metrics.watch("log_rows_dropped", lambda: log.dropped)
            stop_metrics = self._serve_metrics(metrics)
            answering.shadows = Shadows(
                prepare=answering.prepare_unseen,
                beside=self._shadows_beside,
                in_flight=lambda: len(answering.open_turns),
                waiting=fleet.waiting,
                ask=answering.unseen,
                write=answering.end,
            )
            presence = Presence(self._catalog, self._searcher, fleet, self._base, resident_adapters(options))
            await presence.start()
            clearing = asyncio.create_task(self._clear_away())
            for worker in self._workers:
                worker.start()
            try:
                async with counting(self._quotas):
                    yield
            finally:
                clearing.cancel()
                await asyncio.to_thread(stop_metrics)
                await presence.stop()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(UNWIND_S):
                        while answering.open_turns:
                            await asyncio.sleep(0.01)
                await answering.shadows.drain(UNWIND_S)
                await self._providers.close()
                await self._quotas.save()
                await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in self._workers))
                await asyncio.to_thread(log.close)
                await asyncio.to_thread(self._traces.close)
                self._callers.close()
                self._threads.shutdown(wait=False, cancel_futures=True)

    def _serve_metrics(self, metrics: Metrics) -> Callable[[], None]:
        """Serve the figures, if there is a port for them; how to stop."""
        port = self._options.metrics_port
        if port is None:
            return lambda: None
        try:
            stop: Callable[[], None] = metrics.serve(self._options.metrics_host, port)
        except OSError as error:
            raise InvalidInput(f"metrics cannot be served on port {port}: {error}", param="metrics_port") from error
        return stop

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
