"""
Ten times what the engine can do, against the same gateway within its capacity.

An engine of known capacity stands behind the real gateway, each in a process of its own: it answers `RUNNING` requests
at once, each in `ANSWER_S`. Questions come at random moments, whether or not earlier ones are answered: first at 0.8
of the capacity, then at 10 times it. The value is the ratio of the 99th percentiles of what answered questions took.
Every refusal must be 429 or 503 with Retry-After, nothing may break, and the gateway's memory must stay.

    python bench/overload.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from common import report

RUNNING, ANSWER_S = 8, 0.4
WAITING = 6  # three quarters of RUNNING, as the gateway's defaults are
CAPACITY = RUNNING / ANSWER_S  # questions a second
TARGET = 2.0
KEY = "engine-key"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def engine(port: int) -> None:
    """VLLM's protocol; what is more than it can do waits in it."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    places = asyncio.Semaphore(RUNNING)

    async def chat(request: Request) -> JSONResponse:
        body = await request.json()
        async with places:
            await asyncio.sleep(ANSWER_S)
        message = {"role": "assistant", "content": "So it is.", "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": body["model"]}
        return JSONResponse({**head, "choices": [choice], "usage": usage})

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical")


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


def gateway(home: Path, port: int, engine_port: int) -> None:
    import uvicorn

    from ryorin.catalog import open_catalog
    from ryorin.models.registry import BaseModel
    from ryorin.settings import Settings
    from ryorin_index.search import Searcher
    from ryorin_serve.app import Gateway
    from ryorin_serve.options import ServeOptions

    catalog = open_catalog(Settings(home=home, database_url=f"sqlite:///{home / 'catalog.db'}"))
    made = Gateway(
        catalog, Searcher(catalog), Handle(engine_port), BaseModel("base", "b" * 64, home, "bench"),  # type: ignore[arg-type]
        base_served_as="base", engine_key=KEY, counter=Words(),  # type: ignore[arg-type]
        options=ServeOptions(max_running=RUNNING, max_waiting=WAITING),
    )  # fmt: skip
    uvicorn.run(made.app(), host="127.0.0.1", port=port, log_level="critical")


def prepared(home: Path) -> str:
    """A tenant with a live release of the base model alone; its key."""
    from ryorin.catalog import open_catalog
    from ryorin.catalog.keys import issue_key
    from ryorin.catalog.tenants import create_tenant, set_prompt
    from ryorin.prompt import Prompt
    from ryorin.release import create_release, promote
    from ryorin.settings import Settings

    catalog = open_catalog(Settings(home=home, database_url=f"sqlite:///{home / 'catalog.db'}"))
    with catalog.session() as session:
        tenant = create_tenant(session, "bench")
        prompt = set_prompt(session, tenant, Prompt(system="Answer."))
        promote(
            session,
            tenant,
            create_release(session, tenant, base_digest="b" * 64, prompt=prompt, adapter=None, stores=[]),
        )
        _, key = issue_key(session, tenant, catalog.settings.pepper())
    catalog.close()
    return key


class Load:
    """Questions, and what became of them: (status, seconds, whether it said when to come again)."""

    def __init__(self, http: aiohttp.ClientSession, url: str, key: str) -> None:
        self._http, self._url = http, url
        self._headers = {"authorization": f"Bearer {key}"}
        self.ended: list[tuple[int, float, bool]] = []
        self.broken: Counter[str] = Counter()

    async def ask(self) -> None:
        """One question."""
        began = time.perf_counter()
        body = {"model": "bench", "messages": [{"role": "user", "content": "Is it so?"}]}
        try:
            async with self._http.post(f"{self._url}/v1/chat/completions", json=body, headers=self._headers) as answer:
                await answer.read()
                said = "retry-after" in answer.headers and "retry-after-ms" in answer.headers
                self.ended.append((answer.status, time.perf_counter() - began, said))
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            self.broken[type(error).__name__] += 1

    async def run(self, rate: float, seconds: float, draw: random.Random) -> None:
        """Questions at random moments (Poisson), whatever becomes of them."""
        end, at = time.perf_counter() + seconds, time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            while at < end:
                at += draw.expovariate(rate)
                await asyncio.sleep(max(0.0, at - time.perf_counter()))
                tasks.create_task(self.ask())


async def measured(url: str, key: str, pid: int, seconds: float) -> dict[str, Any]:
    draw, process = random.Random(0), psutil.Process(pid)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as http:
        while True:
            try:
                async with http.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        break
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
        steady, flood = Load(http, url, key), Load(http, url, key)
        await Load(http, url, key).run(CAPACITY * 0.8, 3, draw)  # nothing is cold
        await steady.run(CAPACITY * 0.8, seconds, draw)
        await flood.run(CAPACITY * 10, min(10.0, seconds / 2), draw)  # memory is compared once it was flooded
        before, flood = process.memory_info().rss, Load(http, url, key)
        await flood.run(CAPACITY * 10, seconds, draw)
        grown = process.memory_info().rss - before
    if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
        sys.exit("error: the gateway died")
    return {"steady": steady, "flood": flood, "grown": grown, "before": before}


def p99(load: Load) -> float:
    return float(np.percentile([seconds for status, seconds, _ in load.ended if status == 200], 99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="15 s of each load instead of 120")
    seconds = 15.0 if parser.parse_args().quick else 120.0
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        home.mkdir()
        key, port, engine_port = prepared(home), free_port(), free_port()
        behind = context.Process(target=engine, args=(engine_port,), daemon=True)
        before = context.Process(target=gateway, args=(home, port, engine_port), daemon=True)
        behind.start()
        before.start()
        try:
            assert before.pid is not None
            found = asyncio.run(measured(f"http://127.0.0.1:{port}", key, before.pid, seconds))
        finally:
            for process in (before, behind):
                process.terminate()
                process.join(20)
    steady, flood = found["steady"], found["flood"]
    statuses = Counter(status for status, _, _ in flood.ended)
    wrong = [status for status, _, said in flood.ended if status != 200 and not (status in (429, 503) and said)]
    print(json.dumps({"steady": Counter(status for status, _, _ in steady.ended), "flood": statuses}), file=sys.stderr)
    if flood.broken or wrong:
        sys.exit(
            f"error: {sum(flood.broken.values())} connections broke, {len(wrong)} refusals were not as they must be"
        )
    report(
        "answered questions at ten times the capacity take no longer than twice as long, 99th percentile",
        p99(flood) / p99(steady),
        "times the same at 0.8 of the capacity",
        f"<= {TARGET}",
        "the same gateway and engine within their capacity",
        statuses[200],
        refused=sum(count for status, count in statuses.items() if status != 200),
        answered_share_of_capacity=round(statuses[200] / (CAPACITY * seconds), 3),
        p99_ms={"steady": round(1000 * p99(steady)), "flood": round(1000 * p99(flood))},
        memory_grown_share=round(found["grown"] / found["before"], 4),
    )


if __name__ == "__main__":
    main()
