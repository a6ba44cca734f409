"""
Running the gateway and its engines together: start them, say when they are ready, end them.

The port is bound before anything slow begins, so that a taken one is an error at once. The gateway answers from the
first moment: 503 with Retry-After while the engine starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
import uvloop
from sqlalchemy import func, select

from ryorin.catalog import Catalog, fine_tuning
from ryorin.catalog.tables import Adapter, Release, Tenant
from ryorin.errors import Conflict, InvalidInput
from ryorin.foreground import Foreground
from ryorin.models.registry import BaseModel, get_base
from ryorin.prompt_tokens import TokenCounter
from ryorin.settings import Settings
from ryorin.traffic import has_traffic
from ryorin.worker import Worker, installed_kinds
from ryorin_index.search import Searcher
from ryorin_serve.app import Gateway
from ryorin_serve.engine import Engine, EngineFailed, Policy
from ryorin_serve.engine_handle import EngineLife
from ryorin_serve.external import ExternalEngine
from ryorin_serve.options import DEFAULTS, LORA_RANKS, MOST_LORAS, ServeOptions
from ryorin_serve.presence import warm_stores
from ryorin_serve.providers import Providers
from ryorin_serve.vllm import SERVED_AS, on_cpu, vllm_command, vllm_environment

ENGINE_KEY = "RYORIN_ENGINE_KEY"  # the environment's: of engines that run elsewhere
SHORTEST_KEY = 16


@dataclass(frozen=True)
class Running:
    """A server that is ready. engine_pids: of the engines that it started."""

    url: str
    port: int
    pid: int
    engine_pids: list[int]


HEADERS_S = 15.0  # that a connection may take to send a request's headers; longer than one is kept alive unused
TICK_S = 0.5  # between two looks at the clock and the connections; uvicorn's own are ten a second
TICKS_A_S = 10  # as uvicorn counts


class QuietServer(uvicorn.Server):
    """
    uvicorn without signal handlers of its own: who runs it decides what a signal means; and with a deadline for the
    headers of a request, which uvicorn has not: connections that only drip would be held for good.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ending = asyncio.Event()
        self._waiting: dict[Any, tuple[Any, float]] = {}  # connections without a request: after which one, since when

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def main_loop(self) -> None:
        """As uvicorn's: a process that has nothing to do should wake rarely, the engine needs the cores."""
        counter = 0
        while not await self.on_tick(counter):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), TICK_S)
            counter = (counter + int(TICKS_A_S * TICK_S)) % (86400 * TICKS_A_S)

    def end(self) -> None:
        """Close the port, finish what is in flight."""
        self.should_exit = True
        self._ending.set()

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn does now and then, and each second a look at slow connections."""
        if counter % TICKS_A_S == 0:
            self._close_slow()
        return await super().on_tick(counter)

    def _close_slow(self) -> None:
        now = time.monotonic()
        waiting = {}
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)  # uvicorn's, of the latest request; each has one of its own
            if cycle is not None and not cycle.response_complete:
                continue
            last, since = self._waiting.get(connection, (cycle, now))
            waiting[connection] = (cycle, since if last is cycle else now)  # one between two looks counts too
        self._waiting = waiting
        for connection, (_, since) in waiting.items():
            if now - since > HEADERS_S:
                connection.transport.close()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises Conflict when the port is taken, InvalidInput when the address is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} on {host} is in use; stop what listens there, or choose another with --port", param="port"
            ) from None
        raise InvalidInput(f"cannot listen on {host}:{port}: {error.strerror or error}", param="host") from None
    return listener


def lora_room(catalog: Catalog, base_name: str) -> tuple[int, int]:
    """
    How many adapters may share a batch and of which rank at most, for the adapters of this base model that there are.

    Raises NotFound for an unknown base model.
    """
    base = get_base(catalog.settings, base_name)
    mine = (Adapter.base_digest == base.digest, Adapter.deleted_at.is_(None))
    with catalog.session() as session:
        having = (
            select(func.count(Adapter.id.distinct()))
            .join(Release, Release.adapter_id == Adapter.id)
            .join(Tenant, has_traffic())
        )
        count = session.scalar(having.where(*mine)) or 0
        rank = session.scalar(select(func.max(Adapter.rank)).where(*mine)) or 0
    loras = min(max(count, DEFAULTS.max_loras), MOST_LORAS)
    rank = max(rank, DEFAULTS.max_lora_rank)
    return loras, next((each for each in LORA_RANKS if each >= rank), LORA_RANKS[-1])


def serve(
    catalog: Catalog,
    options: ServeOptions,
    *,
    say: Callable[[str], None],
    on_ready: Callable[[Running], None],
) -> int:
    """
    Serve until SIGTERM (returns 0) or Ctrl-C (returns 130); a second signal ends at once.

    Raises NotFound for an unknown base model, Conflict for a taken port, InvalidInput for options that cannot be
    together, EngineFailed when no engine can be started, or used as it is.
    """
    if options.engine_urls:
        engine_key()
        for each in options.engine_urls:
            if not each.startswith(("http://", "https://")):
                raise InvalidInput(f"--engine-url is {each!r}; write it as http://HOST:PORT", param="engine_url")
        if options.replicas > 1:
            raise InvalidInput("--replicas starts engines and --engine-url names others; say one", param="replicas")
    elif options.engine_adapters is not None:
        raise InvalidInput(
            "--engine-adapters is of engines elsewhere; name them with --engine-url", param="engine_adapters"
        )
    base = get_base(catalog.settings, options.base)
    listener = bind(options.host, options.port)
    with contextlib.closing(listener), tempfile.TemporaryDirectory(prefix="ryorin-") as sockets:
        if options.metrics_port is not None:
            bind(options.metrics_host, options.metrics_port).close()  # a taken one is told before the engine starts
        return uvloop.run(_serve(catalog, options, base, listener, sockets, say, on_ready))


def serve_engine(
    settings: Settings, options: ServeOptions, *, say: Callable[[str], None], on_ready: Callable[[Running], None]
) -> int:
    """
    Run one engine for gateways elsewhere; returns and raises as `serve`, and InvalidInput without a key.

    It is watched, and started again when it dies, as a gateway's own is.
    """
    key = engine_key()
    base = get_base(settings, options.base)
    bind(options.host, options.port).close()  # a taken one is told before anything slow
    with tempfile.TemporaryDirectory(prefix="ryorin-") as sockets:
        engine = Engine(
            vllm_command(options, base.path, options.host),
            vllm_environment(options, key, sockets, settings.numba_dir),
            settings.logs_dir / f"engine-{options.port}.log",
            policy=Policy(start_timeout_s=options.start_timeout_s),
            on_event=say,
            host=options.host,
            port=options.port,
        )
        return uvloop.run(_serve_engine(engine, options, say, on_ready))


async def _serve_engine(
    engine: Engine, options: ServeOptions, say: Callable[[str], None], on_ready: Callable[[Running], None]
) -> int:
    stopped: asyncio.Future[Any] = _on_signals([engine], say)
    engine.start()
    ready: asyncio.Future[None] = asyncio.create_task(engine.first_ready())
    try:
        await asyncio.wait([ready, stopped], return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and not stopped.done():
            await ready  # raises EngineFailed
            assert engine.pid is not None
            say(f"engine of {options.base} on {engine.url} (log: {engine.log_path}); Ctrl-C ends it")
            on_ready(Running(url=engine.url, port=options.port, pid=os.getpid(), engine_pids=[engine.pid]))
            await stopped
    finally:
        ready.cancel()
        await engine.stop()
        await asyncio.gather(ready, return_exceptions=True)
    return int(stopped.result()) if stopped.done() else 1


async def _serve(
    catalog: Catalog,
    options: ServeOptions,
    base: BaseModel,
    listener: socket.socket,
    sockets: str,
    say: Callable[[str], None],
    on_ready: Callable[[Running], None],
) -> int:
    port: int = listener.getsockname()[1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{port}"
    providers = Providers.read(options.providers) if options.providers else Providers()
    counter = TokenCounter(base.path)  # before the engine: it refuses a model that has no chat template
    key = engine_key() if options.engine_urls else secrets.token_urlsafe(32)
    engines = _engines(catalog, options, base, port, key, sockets, say, providers.variables)
    stopped: asyncio.Future[Any] = _on_signals(engines, say)
    for engine in engines:
        engine.start()
    searcher = Searcher(catalog)
    searcher.maintain()
    foreground = Foreground()
    gateway = Gateway(
        catalog,
        searcher,
        engines,
        base,
        engine_key=key,
        counter=counter,
        options=options,
        providers=providers,
        workers=_workers(catalog, options, foreground),
        shadows_beside=not on_cpu(),
        foreground=foreground,
    )
    server = QuietServer(
        uvicorn.Config(
            gateway.app(),
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=int(options.shutdown_grace_s),
        )
    )
    serving: asyncio.Future[None] = asyncio.create_task(server.serve(sockets=[listener]))
    ready: asyncio.Future[None] = asyncio.create_task(_first_ready(engines, say))
    warming = asyncio.create_task(asyncio.to_thread(_warm, catalog, searcher, say))
    try:
        await asyncio.wait([serving, ready, stopped], return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and not stopped.done():
            await ready  # raises EngineFailed
            own = [engine for engine in engines if isinstance(engine, Engine)]
            logs = ", ".join(str(engine.log_path) for engine in own)
            say(f"serving {base.name} on {url}{f' (engine log: {logs})' if logs else ''}; Ctrl-C ends it")
            pids = [engine.pid for engine in own if engine.pid is not None]
            on_ready(Running(url=url, port=port, pid=os.getpid(), engine_pids=pids))
            await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        ready.cancel()
        server.end()
        if not serving.done():
            say("finishing requests in flight…")
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        await asyncio.gather(*(engine.stop() for engine in engines))
        await asyncio.to_thread(searcher.close)
        await asyncio.gather(ready, warming, return_exceptions=True)
    return int(stopped.result()) if stopped.done() else 1


def engine_key() -> str:
    """The key of engines that run elsewhere, by RYORIN_ENGINE_KEY. Raises InvalidInput when there is none."""
    key = os.environ.get(ENGINE_KEY, "")
    if len(key) < SHORTEST_KEY:
        raise InvalidInput(
            f"{ENGINE_KEY} has {len(key)} characters; set it to a secret of {SHORTEST_KEY} or more that the engines "
            "and their gateways share, for example of 'openssl rand -hex 24'",
            param=ENGINE_KEY,
        )
    return key


def _engines(
    catalog: Catalog,
    options: ServeOptions,
    base: BaseModel,
    port: int,
    key: str,
    sockets: str,
    say: Callable[[str], None],
    private: Collection[str],
) -> Sequence[EngineLife]:
    if options.engine_urls:
        room = f"--max-loras {options.max_loras} --max-lora-rank {options.max_lora_rank}"
        say(f"engines elsewhere have to be started with {room}, or more")
        return [ExternalEngine(url, key, SERVED_AS, options.max_model_len, on_event=say) for url in options.engine_urls]
    several = options.replicas > 1
    return [
        Engine(
            vllm_command(options, base.path),
            vllm_environment(options, key, sockets, catalog.settings.numba_dir, number, private),
            catalog.settings.logs_dir / f"engine-{port}{f'-{number + 1}' if several else ''}.log",
            policy=Policy(start_timeout_s=options.start_timeout_s),
            on_event=say,
            name=f"vLLM {number + 1}" if several else "vLLM",
        )
        for number in range(options.replicas)
    ]


async def _first_ready(engines: Sequence[EngineLife], say: Callable[[str], None]) -> None:
    """Wait until one of the engines is ready. Raises EngineFailed when none ever is; tells of single ones."""
    waiting = [asyncio.ensure_future(engine.first_ready()) for engine in engines]

    def tell(task: asyncio.Future[None]) -> None:
        if len(engines) > 1 and not task.cancelled() and task.exception() is not None:
            say(f"warning: goes on without it: {task.exception()}")

    for task in waiting:
        task.add_done_callback(tell)
    failed: BaseException | None = None
    for first in asyncio.as_completed(waiting):
        try:
            return await first
        except EngineFailed as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _warm(catalog: Catalog, searcher: Searcher, say: Callable[[str], None]) -> None:
    """Load the embedder and the stores with traffic while vLLM starts, so that the first question does not wait."""
    with catalog.session() as session:
        releases = session.scalars(select(Release).join(Tenant, has_traffic())).all()
    for release in releases:
        try:
            warm_stores(catalog, searcher, release)
        except Exception as error:  # whoever asks will be told; the others are served
            say(f"warning: the stores of release {release.id} cannot be searched: {error}")


def _workers(catalog: Catalog, options: ServeOptions, foreground: Foreground) -> list[Worker]:
    """
    One for quick jobs, and one for training, so that files are indexed while an adapter is trained. Where the engine
    computes with this machine's cores, training gives way to `foreground`.
    """
    kinds = installed_kinds()
    quick = [kind for kind in kinds if kind != fine_tuning.KIND]
    slow = [kind for kind in kinds if kind == fine_tuning.KIND and options.train]
    shares_cores = on_cpu() and not options.engine_urls
    waiting = foreground if shares_cores else None
    return [Worker(catalog, kinds=some, foreground=waiting) for some in (quick, slow) if some]


def _on_signals(engines: Sequence[EngineLife], say: Callable[[str], None]) -> asyncio.Future[int]:
    """A future that holds the exit code once SIGTERM or SIGINT came; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    def received(code: int) -> None:
        if stopped.done():
            for engine in engines:
                engine.kill()
            logging.shutdown()
            os._exit(code)
        say("stopping (once more to stop at once)…")
        stopped.set_result(code)

    loop.add_signal_handler(signal.SIGTERM, received, 0)
    loop.add_signal_handler(signal.SIGINT, received, 130)
    return stopped
