"""
Processor time that a request and a streamed token cost in the gateway, against litellm's Router.acompletion.

A scripted engine answers at once, in a process of its own. Before it stand, each in a process of its own: the gateway
with everything on (key, limits, release, prompt, window, admission, log, figures), without retrieval, whose cost is the
embedder's; litellm's Router with the engine as its one deployment, called in its own process; and a bare relay of ASGI
and aiohttp, which does nothing but pass bytes on; all of them on uvloop. Rounds of all three take turns. A token's cost
is what a longer stream costs more than a shorter one. The value is the gateway's share of litellm's for a request.

    python bench/gateway_cpu.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import uvloop
from common import report
from scripted import KEY, TENANT, Load, client, free_port, served

SHORT, LONG = 4, 260  # tokens of a stream
AT_ONCE = 8
MESSAGES = [{"role": "user", "content": "Is it so?"}]
TARGET, TOKEN_TARGET = 1 / 8, 1 / 20
Ask = Callable[[int | None], Awaitable[None]]  # with how many tokens to stream; None asks for a whole answer


def relay(port: int, engine_url: str) -> None:
    """Passes bytes on."""
    import uvicorn

    session: Any = None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal session
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            return
        session = session or aiohttp.ClientSession()
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        async with session.post(f"{engine_url}{scope['path']}", data=body, headers=headers) as answer:
            kind = answer.headers["content-type"].encode()
            await send({"type": "http.response.start", "status": answer.status, "headers": [(b"content-type", kind)]})
            async for data in answer.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical")


def litellm_router(pipe: Any, engine_url: str) -> None:
    """Makes the rounds it is told to, and tells when each is done."""
    import os

    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    litellm.suppress_debug_info = True
    params = {"model": "openai/ryorin-base", "api_base": f"{engine_url}/v1", "api_key": KEY}
    router = litellm.Router(model_list=[{"model_name": TENANT, "litellm_params": params}], num_retries=0)

    async def ask(tokens: int | None) -> None:
        if tokens is None:
            await router.acompletion(model=TENANT, messages=MESSAGES, max_tokens=8)
            return
        stream = await router.acompletion(model=TENANT, messages=MESSAGES, max_tokens=tokens, stream=True)
        async for _ in stream:
            pass

    async def serve() -> None:
        while (told := await asyncio.to_thread(pipe.recv)) is not None:
            count, tokens = told
            await many(ask, count, tokens)
            pipe.send("done")

    uvloop.run(serve())


async def many(ask: Ask, count: int, tokens: int | None) -> None:
    """So many questions, `AT_ONCE` of them at a time."""
    left = iter(range(count))

    async def one_after_another() -> None:
        for _ in left:
            await ask(tokens)

    await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))


@contextlib.contextmanager
def beside(target: Callable[..., None], *arguments: Any) -> Iterator[multiprocessing.process.BaseProcess]:
    """A process that runs meanwhile."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.terminate()
        process.join(20)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def measured(
    house: Any, relay_url: str, relay_pid: int, pipe: Any, litellm_pid: int, rounds: int, count: int
) -> Any:
    """Milliseconds by way and kind (None for whole answers, else tokens of streams), one for each round."""

    async def ready(http: aiohttp.ClientSession) -> None:
        await Load(http, house).ready()
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                await asking(relay_url)(http)(None)
                return
            await asyncio.sleep(0.1)

    def asking(url: str) -> Callable[[aiohttp.ClientSession], Ask]:
        def with_session(http: aiohttp.ClientSession) -> Ask:
            async def ask(tokens: int | None) -> None:
                body = {"model": TENANT, "messages": MESSAGES, "max_tokens": tokens or 8, "stream": tokens is not None}
                headers = {"authorization": f"Bearer {house.key}"}
                async with http.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
                    data = await answer.read()
                    if answer.status != 200 or (tokens and not data.endswith(b"[DONE]\n\n")):
                        raise SystemExit(f"error: {answer.status} {data[-200:]!r}")

            return ask

        return with_session

    found: dict[str, dict[int | None, list[float]]] = {}
    async with client() as http:
        await ready(http)

        async def by_http(url: str, number: int, tokens: int | None) -> None:
            await many(asking(url)(http), number, tokens)

        async def by_litellm(number: int, tokens: int | None) -> None:
            pipe.send((number, tokens))
            await asyncio.to_thread(pipe.recv)

        ways: dict[str, tuple[psutil.Process, Callable[[int, int | None], Awaitable[None]]]] = {
            "gateway": (psutil.Process(house.pid), lambda number, tokens: by_http(house.url, number, tokens)),
            "relay": (psutil.Process(relay_pid), lambda number, tokens: by_http(relay_url, number, tokens)),
            "litellm": (psutil.Process(litellm_pid), by_litellm),
        }
        for each in range(rounds + 1):
            for kind in (None, SHORT, LONG):
                for name, (process, ask) in ways.items():
                    number = count if kind != LONG else max(AT_ONCE, count // 4)
                    before = cpu_s(process)
                    await ask(number, kind)
                    if each:  # nothing is cold
                        spent = 1000 * (cpu_s(process) - before) / number
                        found.setdefault(name, {}).setdefault(kind, []).append(spent)
            print(f"round {each} of {rounds}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 160 requests instead of 7 of 800")
    rounds, count = (3, 160) if parser.parse_args().quick else (7, 800)
    port = free_port()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    with (
        tempfile.TemporaryDirectory() as scratch,
        served(Path(scratch) / "home", 1000, 0.0, max_running=64) as house,
        beside(relay, port, house.engine_url) as bare,
        beside(litellm_router, theirs, house.engine_url) as router,
    ):
        theirs.close()  # so that a router that died is the end, and not waited for
        found = asyncio.run(
            measured(house, f"http://127.0.0.1:{port}", bare.pid or 0, ours, router.pid or 0, rounds, count)
        )
    request = {name: statistics.median(kinds[None]) for name, kinds in found.items()}
    token = {
        name: statistics.median(
            (long - short) / (LONG - SHORT) for long, short in zip(kinds[LONG], kinds[SHORT], strict=True)
        )
        for name, kinds in found.items()
    }
    report(
        "processor time of a request in the gateway, without retrieval",
        request["gateway"] / request["litellm"],
        "times litellm's",
        f"<= {TARGET}",
        "litellm's Router.acompletion with the same engine",
        rounds * count,
        token_share=round(token["gateway"] / token["litellm"], 4),
        token_target=f"<= {TOKEN_TARGET}",
        against_bare_relay={
            "request": round(request["gateway"] / request["relay"], 2),
            "token": round(token["gateway"] / token["relay"], 2),
        },
        request_ms={name: round(value, 3) for name, value in request.items()},
        token_us={name: round(1000 * value, 1) for name, value in token.items()},
    )


if __name__ == "__main__":
    main()
