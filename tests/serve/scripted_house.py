"""A scripted engine that speaks vLLM's protocol, and a house of two tenants behind a real gateway on loopback."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from sqlalchemy import select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from ryorin import release as releases
from ryorin import traffic
from ryorin.adapter_files import adapter_digest
from ryorin.catalog import Catalog, open_catalog, tenants
from ryorin.catalog.keys import issue_key
from ryorin.catalog.tables import Adapter, RequestLog, VectorStore
from ryorin.digests import new_id
from ryorin.errors import NotFound
from ryorin.foreground import Foreground
from ryorin.models.install import add_folder
from ryorin.models.registry import BaseModel, get_base
from ryorin.prompt import Prompt
from ryorin.release import Retrieval
from ryorin.scopes import SCOPES
from ryorin.settings import Settings
from ryorin.worker import Worker
from ryorin_index.attach_job import IndexFile
from ryorin_index.embed import Embed
from ryorin_index.search import Hit, Searcher
from ryorin_serve.app import Gateway
from ryorin_serve.options import ServeOptions
from ryorin_serve.providers import Providers
from ryorin_serve.server import QuietServer
from ryorin_serve.tracing import Traces

if TYPE_CHECKING:
    import openai

NO_CERTIFICATES = False  # `verify` of a client on loopback: without TLS, reading them is most of what a request costs
BASE = BaseModel(name="scripted", digest="b" * 64, path=Path("/nowhere"), source="test")


class PromptServer(QuietServer):
    """uvicorn looks ten times a second whether it should end; tests have no time for that."""

    async def main_loop(self) -> None:
        while not self.should_exit:
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What uvicorn's own does, without its two pauses of a tenth of a second."""
        for listening in [*self.servers, *(sockets or [])]:
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        end = time.monotonic() + 1
        while self.server_state.tasks and time.monotonic() < end:
            await asyncio.sleep(0.005)
        for task in self.server_state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


@contextmanager
def running(app: ASGIApp, kind: type[QuietServer] = PromptServer) -> Iterator[str]:
    """The app on a real uvicorn in a thread; yields its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        server = kind(uvicorn.Config(app, log_level="critical", lifespan="on", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


class Engine:
    """
    What vLLM does, scripted: answers in `pieces`, one event each; loads adapters; dies.

    deltas: what a stream is made of in place of `pieces`, as of a call of tools.
    script: says what to answer to a request's body, in place of `pieces`; whole answers only, a choice each time asked.
    gate: held closed, a stream stops before its second piece. cut_after: the connection breaks after so many pieces.
    refuse, refuse_load: answer every question, every adapter with this status and message. health: the status of
    /health. waiting: the requests that wait, by /metrics. It also plays the supervisor's handle.
    """

    def __init__(self) -> None:
        self.state = "ready"
        self.generation = 1
        self.retry_after_s = 7.5
        self.script: Callable[[dict[str, Any]], str] | None = None
        self.deltas: list[dict[str, Any]] | None = None
        self.pieces: list[str] = ["Refunds take 30 days ", "[", "2]", "."]
        self.requests: list[dict[str, Any]] = []
        self.traceparents: list[str | None] = []
        self.loading: list[str] = []
        self.loads: list[str] = []
        self.adapters: set[str] = set()
        self.load_delay_s = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.cut_after: int | None = None
        self.refuse: tuple[int, str] | None = None
        self.refuse_load: tuple[int, str] | None = None
        self.health = 200
        self.waiting, self.counted = 0, 0
        self.closed_early = threading.Event()
        self.served_as = "ryorin-base"
        self.url = ""
        self._running: Any = None

    def start(self) -> None:
        """Listen, on a new port."""
        self._running = running(
            Starlette(
                routes=[
                    Route("/v1/chat/completions", self._chat, methods=["POST"]),
                    Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                    Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
                    Route("/v1/models", self._models),
                    Route("/metrics", self._metrics),
                    Route("/health", lambda _: Response(status_code=self.health)),
                ]
            )
        )
        self.url = self._running.__enter__()
        self.adapters = set()

    def stop(self) -> None:
        """Stop listening, as a killed engine does."""
        if self._running is not None:
            self.gate.set()
            self._running.__exit__(None, None, None)
            self._running = None

    def restart(self) -> None:
        """A new life: another port, no adapters."""
        self.stop()
        self.start()
        self.generation += 1

    async def _metrics(self, request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer engine-key"
        self.counted += 1
        name, label = "vllm:num_requests_waiting", 'engine="0",model_name="ryorin-base"'
        return Response(
            f"# TYPE {name} gauge\n{name}{{{label}}} {float(self.waiting)}\n"
            f'{name}_by_reason{{{label},reason="capacity"}} 7.0\n'
        )

    async def _load(self, request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer engine-key"
        body = await request.json()
        self.loading.append(body["lora_name"])
        await asyncio.sleep(self.load_delay_s)
        if self.refuse_load:
            status, message = self.refuse_load
            return _error(status, message.format(**body))
        self.loads.append(body["lora_name"])
        assert Path(body["lora_path"]).name == body["lora_name"]
        self.adapters.add(body["lora_name"])
        return Response("Success")

    async def _unload(self, request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer engine-key"
        self.adapters.discard((await request.json())["lora_name"])
        return Response("Success")

    async def _models(self, request: Request) -> Response:
        if request.headers["authorization"] != "Bearer engine-key":
            return _error(401, "Unauthorized")
        return JSONResponse({"data": [{"id": self.served_as, "max_model_len": 400}]})

    async def _chat(self, request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer engine-key"
        body = await request.json()
        self.requests.append(body)
        self.traceparents.append(request.headers.get("traceparent"))
        if self.refuse:
            status, message = self.refuse
            return _error(status, message)
        if body["model"] not in {"ryorin-base", *self.adapters}:
            return _error(404, f"The model `{body['model']}` does not exist.")
        answer_id = f"chatcmpl-{request.headers['x-request-id']}"
        usage = {"prompt_tokens": 11, "completion_tokens": len(self.pieces), "total_tokens": 11 + len(self.pieces)}
        head = {"id": answer_id, "created": int(time.time()), "model": body["model"]}
        choices = range(body.get("n") or 1)
        if self.deltas is not None:
            return self._calls(head, usage, stream=bool(body.get("stream")))
        if not body.get("stream"):
            while not self.gate.is_set():
                if await request.is_disconnected():
                    self.closed_early.set()
                    return Response()
                await _moment()
            said = [self.script(body) if self.script else "".join(self.pieces) for _ in choices]
            done = [
                {
                    "index": n,
                    "message": {"role": "assistant", "content": said[n], "refusal": None, "annotations": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
                for n in choices
            ]
            return JSONResponse({**head, "object": "chat.completion", "choices": done, "usage": usage})
        return StreamingResponse(self._events(request, head, list(choices), usage), media_type="text/event-stream")

    def _calls(self, head: dict[str, Any], usage: dict[str, Any], *, stream: bool) -> Response:
        """An answer that calls one tool."""
        assert self.deltas is not None
        if stream:
            choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in self.deltas]
            choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
            chunk = {**head, "object": "chat.completion.chunk"}
            events = [_sse({**chunk, "choices": [choice]}) for choice in choices]
            return Response(b"".join([*events, b"data: [DONE]\n\n"]), media_type="text/event-stream")
        parts = [delta["tool_calls"][0] for delta in self.deltas if "tool_calls" in delta]
        arguments = "".join(part["function"]["arguments"] for part in parts)
        called = {"name": parts[0]["function"]["name"], "arguments": arguments}
        call = {"id": parts[0]["id"], "type": "function", "function": called}
        message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def _events(
        self, request: Request, head: dict[str, Any], choices: list[int], usage: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        head = {**head, "object": "chat.completion.chunk"}

        def event(index: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
            return _sse({**head, "choices": [choice]})

        try:
            for index in choices:
                yield event(index, {"role": "assistant", "content": ""})
            for place, piece in enumerate(self.pieces):
                while place and not self.gate.is_set():
                    await _moment()
                if self.cut_after == place:
                    await _moment()  # what was sent before is on its way
                    await _moment()
                    raise ConnectionResetError("cut, as scripted")
                last = "stop" if place == len(self.pieces) - 1 else None
                # Two events may come in one packet, and one in two: cut them somewhere else than at their ends.
                data = b"".join(event(index, {"content": piece}, last) for index in choices)
                yield data[:37]
                yield data[37:]
            yield _sse({**head, "choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"
        except BaseException:
            self.closed_early.set()
            raise


async def _moment() -> None:
    await asyncio.sleep(0.02)


def _sse(value: object) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _error(status: int, message: str) -> JSONResponse:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return JSONResponse({"error": error}, status_code=status)


class Shelf:
    """A Searcher over a fixed shelf of passages, each of one tenant; a question finds all of them, best first."""

    def __init__(self) -> None:
        self.hits: dict[str, list[Hit]] = {}
        self.queries: list[tuple[str, list[str], str, int]] = []
        self.warmed: list[tuple[str, list[str]]] = []
        self.refuse_warm: Exception | None = None

    def put(self, tenant_id: str, *texts: str) -> None:
        start = sum(map(len, self.hits.values())) + 1
        self.hits[tenant_id] = [
            Hit(start + n, "vs_1", "doc_1", "handbook.md", f"Handbook > {n}", text, 0.9 - n / 10, 0, len(text), n)
            for n, text in enumerate(texts)
        ]

    def search(
        self, tenant_id: str, store_ids: Sequence[str], query: str, *, retrieval: Retrieval, without: Collection[int]
    ) -> list[Hit]:
        self.queries.append((tenant_id, list(store_ids), query, retrieval.top_k))
        return self.hits.get(tenant_id, [])[: retrieval.top_k]

    def warm(self, tenant_id: str, store_ids: Sequence[str], retrieval: Retrieval) -> None:
        self.warmed.append((tenant_id, list(store_ids)))
        if self.refuse_warm:
            raise self.refuse_warm

    def passage(self, tenant_id: str, passage_id: int) -> Hit:
        for hit in self.hits.get(tenant_id, []):
            if hit.passage_id == passage_id:
                return hit
        raise NotFound(f"no passage {passage_id}", param="passage_id")


class WordCounter:
    """A token is a word."""

    def count(self, messages: list[Any], tools: Any = None) -> int:
        return sum(len(message["content"].split()) for message in messages)


@dataclass
class House:
    """Two tenants, `support` and `people`, each with a key and a live release with documents, behind one gateway."""

    catalog: Catalog
    engine: Engine
    shelf: Shelf
    base: BaseModel = BASE
    url: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    key_ids: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    clients: list[openai.OpenAI] = field(default_factory=list)
    adapter_digests: dict[str, str] = field(default_factory=dict)
    engines: list[Engine] = field(default_factory=list)
    foreground: Foreground = field(default_factory=Foreground)

    def client(self, tenant: str = "support", **options: Any) -> openai.OpenAI:
        """The unmodified client, strict, without retries of its own."""
        import openai  # takes half a second, which `serve_with_fake_engine.py` need not wait

        plain = openai.DefaultHttpxClient(verify=NO_CERTIFICATES)  # the client's own in all else
        options = {
            "api_key": self.keys.get(tenant, tenant),
            "max_retries": 0,
            "timeout": 60,
            "http_client": plain,
        } | options
        client = openai.OpenAI(base_url=f"{self.url}/v1", _strict_response_validation=True, **options)
        self.clients.append(client)
        return client

    def add_tenant(self, name: str) -> None:
        """A tenant with a key, a store and a live release."""
        with self.catalog.session() as session:
            tenant = tenants.create_tenant(session, name)
            key, self.keys[name] = issue_key(session, tenant, self.catalog.settings.pepper(), scopes=SCOPES)
            self.ids[name], self.key_ids[name] = tenant.id, key.id
            store = VectorStore(
                id=new_id("vs_"),
                tenant_id=tenant.id,
                name="handbook",
                embedder="e5",
                embedder_digest="e5",
                dimensions=3,
            )
            session.add(store)
        self.release(name)

    def release(
        self,
        tenant_name: str,
        *,
        adapter: str | None = None,
        system: str = "",
        top_k: int | None = None,
        promote: bool = True,
    ) -> int:
        """A new release of the tenant, live unless not to be promoted; its version."""
        with self.catalog.session() as session:
            tenant = tenants.get_tenant(session, tenant_name)
            prompt = tenants.set_prompt(session, tenant, Prompt(system=system or f"You are the {tenant_name} desk."))
            stores = session.scalars(select(VectorStore).where(VectorStore.tenant_id == tenant.id)).all()
            if top_k == 0:
                stores = []
            row = None
            if adapter:
                row = session.scalar(select(Adapter).where(Adapter.name == adapter)) or Adapter(
                    id=new_id("ad_"),
                    tenant_id=tenant.id,
                    name=adapter,
                    digest=self.adapter_digests[adapter],
                    base_digest=self.base.digest,
                    prompt_digest=prompt.digest,
                    rank=16,
                    manifest={},
                )
                session.add(row)
                session.flush()
            made = releases.create_release(
                session,
                tenant,
                base_digest=self.base.digest,
                prompt=prompt,
                adapter=row,
                stores=stores,
                allow_prompt_mismatch=True,
            )
            if promote:
                releases.promote(session, tenant, made)
            return made.version

    def canary(self, version: int, share: float, tenant_name: str = "support") -> None:
        """A release as the tenant's canary, unannounced."""
        with self.catalog.session() as session:
            tenant = tenants.get_tenant(session, tenant_name)
            traffic.set_beside(session, tenant, traffic.CANARY, releases.get_release(session, tenant, version), share)

    def askers(self, version: int, share: float, field: str = "user", *, inside: bool, count: int = 2) -> list[str]:
        """Values of a request's field that fall into a share of a release of `support`, or do not."""
        with self.catalog.session() as session:
            release = releases.get_release(session, tenants.get_tenant(session, "support"), version)
        names = (f"asker {n}" for n in itertools.count())
        key = self.key_ids["support"]
        fitting = (n for n in names if traffic.falls_into(share, f"{key}\0{field}:{n}", release.id) == inside)
        return list(itertools.islice(fitting, count))

    def shadow(self, version: int, share: float = 1.0, tenant_name: str = "support") -> None:
        """A release as the tenant's shadow, unannounced."""
        with self.catalog.session() as session:
            tenant = tenants.get_tenant(session, tenant_name)
            traffic.set_beside(session, tenant, traffic.SHADOW, releases.get_release(session, tenant, version), share)

    def adapter_folder(self, name: str, *, rank: int = 16) -> Path:
        """A folder as training leaves it."""
        folder = self.catalog.settings.adapters_dir / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        self.adapter_digests[name] = adapter_digest(folder)
        return folder

    def logs(self, count: int) -> list[RequestLog]:
        """The request log once it has `count` rows; they are written after the answer went out."""
        return eventually(lambda: self._logs(count))

    def _logs(self, count: int) -> list[RequestLog]:
        with self.catalog.session() as session:
            rows = list(session.scalars(select(RequestLog).order_by(RequestLog.created_at)))
        return rows if len(rows) >= count else []


@contextmanager
def built(
    home: Path,
    database: Path | str,
    options: ServeOptions,
    kind: type[QuietServer] = PromptServer,
    embed: Embed | None = None,
    base_folder: Path | None = None,
    shadows_beside: bool = True,
    traces: Traces | None = None,
    replicas: int = 1,
    providers: Providers | None = None,
) -> Iterator[House]:
    """
    The house, with everything in it running; the gateway on a server of this kind.

    database: an empty catalog on SQLite, to be copied, or the address of one on PostgreSQL.
    embed: in place of the shelf stand a real searcher and a real worker, with this embedder.
    base_folder: a real base model, for which a real worker trains.
    shadows_beside: as on a GPU. traces: of questions. replicas: engines, the first of which is `house.engine`.
    providers: models elsewhere.
    """
    home.mkdir()
    if isinstance(database, Path):
        database = f"sqlite:///{shutil.copy(database, home / 'catalog.db')}"
    catalog = open_catalog(Settings(home=home, database_url=database))
    engines, shelf = [Engine() for _ in range(replicas)], Shelf()
    for engine in engines:
        engine.start()
    base = BASE
    if base_folder is not None:
        add_folder(catalog.settings, "tiny", base_folder, "base", lambda _: None)
        base = get_base(catalog.settings, "tiny")
    house = House(catalog, engines[0], shelf, base, engines=engines)
    for name in ("support", "people"):
        house.add_tenant(name)
    shelf.put(house.ids["support"], "Returns: unused goods only.", "Refunds: within 30 days.", "Shipping: 2 days.")
    shelf.put(house.ids["people"], "Leave: 20 days a year.")
    searcher, workers = shelf, []
    if base_folder is not None:
        workers.append(Worker(catalog, kinds=["fine_tune"], poll_s=0.05, foreground=house.foreground))
    if embed is not None:
        searcher = Searcher(catalog, lambda _: embed)  # type: ignore[assignment]
        handler = IndexFile(catalog, lambda _: embed)
        workers.append(Worker(catalog, handlers={"index_file": handler}, poll_s=0.05, retry_delay_s=0.01))
    gateway = Gateway(
        catalog,
        searcher,  # type: ignore[arg-type]
        engines,  # type: ignore[arg-type]
        base,
        engine_key="engine-key",
        counter=WordCounter(),  # type: ignore[arg-type]
        options=options,
        workers=workers,
        shadows_beside=shadows_beside,
        foreground=house.foreground,
        traces=traces,
        providers=providers,
    )
    with running(gateway.app(), kind) as house.url:
        yield house
        for client in house.clients:
            client.close()
    for engine in engines:
        engine.stop()
    catalog.close()


def eventually(look: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """What `look` returns once it is true. Fails after the timeout."""
    end = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found
