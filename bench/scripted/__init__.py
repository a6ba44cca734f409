"""
The real gateway before an engine of known capacity, each in a process of its own: what its benches share.

The engine speaks vLLM's protocol: it answers `running` requests at once, each in `answer_s`, by the name of the adapter
that was asked; a stream has as many pieces as the request allows tokens, and they come as fast as they are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

KEY = "engine-key"
BASE = "b" * 64
TENANT = "bench"


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def engine(port: int, running: int, answer_s: float) -> None:
    """VLLM's protocol; what is more than it can do waits in it."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    places = asyncio.Semaphore(running)

    async def chat(request: Request) -> Response:
        body = await request.json()
        async with places:
            await asyncio.sleep(answer_s)
        if body.get("stream"):
            return StreamingResponse(pieces(body["model"], body["max_tokens"]), media_type="text/event-stream")
        message = {"role": "assistant", "content": body["model"], "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": body["model"]}
        return JSONResponse({**head, "choices": [choice], "usage": usage})

    async def load(_: Request) -> Response:
        return Response("Success")

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/load_lora_adapter", load, methods=["POST"]),
    ]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="critical")


async def pieces(model: str, count: int) -> AsyncIterator[bytes]:
    """A stream of so many tokens, each in an event of its own, as vLLM writes them."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": model}

    def event(delta: dict[str, str], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, "token_ids": None}
        return b"data: " + json.dumps({**head, "choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"

    yield event({"role": "assistant", "content": ""})
    tokens = [event({"content": f" token{number}"}) for number in range(10)]  # litellm ends streams that repeat a chunk
    for number in range(count - 1):
        yield tokens[number % 10]
    yield event({"content": "."}, "stop")
    usage = {"prompt_tokens": 10, "completion_tokens": count, "total_tokens": 10 + count}
    yield b"data: " + json.dumps({**head, "choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"


class Handle:
    """The gateway's view of the engine."""

    state, generation, retry_after_s = "ready", 1, 5.0

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"


class Words:
    """A token is a word."""

    def count(self, messages: list[Any], tools: Any = None) -> int:
        """How many."""
        return sum(len(message["content"].split()) for message in messages)


def opened(home: Path) -> Any:
    """The home's catalog."""
    from ryorin.catalog import open_catalog
    from ryorin.settings import Settings

    return open_catalog(Settings(home=home, database_url=f"sqlite:///{home / 'catalog.db'}"))


def gateway(home: Path, port: int, engine_port: int, bounds: dict[str, Any]) -> None:
    """The gateway as it is served."""
    import uvicorn

    from ryorin.models.registry import BaseModel
    from ryorin_index.search import Searcher
    from ryorin_serve.app import Gateway
    from ryorin_serve.options import ServeOptions

    catalog = opened(home)
    made = Gateway(
        catalog, Searcher(catalog), [Handle(engine_port)], BaseModel("base", BASE, home, "bench"),  # type: ignore[arg-type]
        engine_key=KEY, counter=Words(), options=ServeOptions(**bounds),  # type: ignore[arg-type]
    )  # fmt: skip
    uvicorn.run(made.app(), host="127.0.0.1", port=port, log_level="critical")


def a_tenant(home: Path) -> str:
    """A tenant with a live release of the base model alone; its key."""
    from ryorin.catalog.keys import issue_key
    from ryorin.catalog.tenants import create_tenant, set_prompt
    from ryorin.prompt import Prompt
    from ryorin.release import create_release, promote

    with contextlib.closing(opened(home)) as catalog, catalog.session() as session:
        tenant = create_tenant(session, TENANT)
        prompt = set_prompt(session, tenant, Prompt(system="Answer."))
        made = create_release(session, tenant, base_digest=BASE, prompt=prompt, adapter=None, stores=[])
        promote(session, tenant, made)
        _, key = issue_key(session, tenant, catalog.settings.pepper())
    return key


@dataclass(frozen=True)
class House:
    """Where the gateway is, its process, its tenant's key; where the engine is."""

    home: Path
    url: str
    pid: int
    key: str
    engine_url: str


@contextlib.contextmanager
def served(home: Path, running: int, answer_s: float, **bounds: Any) -> Iterator[House]:
    """Both processes. bounds: options of the gateway."""
    home.mkdir()
    key, port, engine_port = a_tenant(home), free_port(), free_port()
    context = multiprocessing.get_context("spawn")
    behind = context.Process(target=engine, args=(engine_port, running, answer_s), daemon=True)
    before = context.Process(target=gateway, args=(home, port, engine_port, bounds), daemon=True)
    behind.start()
    before.start()
    try:
        assert before.pid is not None
        yield House(home, f"http://127.0.0.1:{port}", before.pid, key, f"http://127.0.0.1:{engine_port}")
    finally:
        for process in (before, behind):
            process.terminate()
            process.join(20)


@dataclass(frozen=True)
class Ended:
    """What became of a question. came_at: Unix seconds when it was sent. said_when: whether it may come again."""

    came_at: float
    seconds: float
    status: int
    said_when: bool
    answer: str


class Load:
    """Questions that come at random moments, whatever becomes of them."""

    def __init__(self, http: aiohttp.ClientSession, house: House) -> None:
        self._http, self._url = http, house.url
        self._headers = {"authorization": f"Bearer {house.key}"}
        self.ended: list[Ended] = []
        self.broken: Counter[str] = Counter()

    async def ready(self) -> None:
        """Wait until the gateway answers."""
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with self._http.get(f"{self._url}/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)

    async def ask(self) -> None:
        """One question."""
        began, came_at = time.perf_counter(), time.time()
        body = {"model": TENANT, "messages": [{"role": "user", "content": "Is it so?"}]}
        try:
            async with self._http.post(f"{self._url}/v1/chat/completions", json=body, headers=self._headers) as answer:
                said = await answer.json()
                text = said["choices"][0]["message"]["content"] if answer.status == 200 else ""
                when = "retry-after" in answer.headers and "retry-after-ms" in answer.headers
                self.ended.append(Ended(came_at, time.perf_counter() - began, answer.status, when, text))
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            self.broken[type(error).__name__] += 1

    async def run(self, rate: float, seconds: float, draw: Any) -> None:
        """`rate` questions a second, at random moments (Poisson)."""
        end, at = time.perf_counter() + seconds, time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            while at < end:
                at += draw.expovariate(rate)
                await asyncio.sleep(max(0.0, at - time.perf_counter()))
                tasks.create_task(self.ask())


def client() -> aiohttp.ClientSession:
    """For as many questions as come."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60))
