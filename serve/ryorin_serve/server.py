"""
Running the gateway and its engine together: start both, say when they are ready, end both.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from sqlalchemy import or_, select

from ryorin.catalog import Catalog, fine_tuning
from ryorin.catalog.tables import Release, Tenant
from ryorin.errors import Conflict, InvalidInput
from ryorin.models.registry import BaseModel, get_base
from ryorin.prompt_tokens import TokenCounter
from ryorin.worker import Worker, installed_kinds
from ryorin_index.search import Searcher
from ryorin_serve.app import Gateway
from ryorin_serve.engine import Engine, Policy
from ryorin_serve.options import ServeOptions
from ryorin_serve.presence import warm_stores
from ryorin_serve.vllm import on_cpu, vllm_command, vllm_environment

SERVED_AS = "ryorin-base"


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    url: str
    port: int
    pid: int
    engine_pid: int | None


HEADERS_S = 15.0  # that a connection may take to send a request's headers; longer than one is kept alive unused
TICKS_A_LOOK = 10  # of uvicorn's, a tenth of a second each


class QuietServer(uvicorn.Server):
    """
    uvicorn without signal handlers of its own: who runs it decides what a signal means; and with a deadline for the
    headers of a request, which uvicorn has not: connections that only drip would be held for good.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._waiting: dict[Any, tuple[Any, float]] = {}  # connections without a request: after which one, since when

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn does ten times a second, and now and then a look at slow connections."""
        if counter % TICKS_A_LOOK == 0:
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


def serve(
    catalog: Catalog,
    options: ServeOptions,
    *,
    say: Callable[[str], None],
    on_ready: Callable[[Running], None],
) -> int:
    """
    Serve until SIGTERM (returns 0) or Ctrl-C (returns 130); a second signal ends at once.

    Raises NotFound for an unknown base model, Conflict for a taken port, EngineFailed when vLLM cannot be started.
    """
    base = get_base(catalog.settings, options.base)
    listener = bind(options.host, options.port)
    with contextlib.closing(listener), tempfile.TemporaryDirectory(prefix="ryorin-") as sockets:
        if options.metrics_port is not None:
            bind(options.metrics_host, options.metrics_port).close()  # a taken one is told before the engine starts
        return asyncio.run(_serve(catalog, options, base, listener, sockets, say, on_ready))


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
    counter = TokenCounter(base.path)  # before the engine: it refuses a model that has no chat template
    engine_key = secrets.token_urlsafe(32)
    engine = Engine(
        vllm_command(options, base.path, SERVED_AS),
        vllm_environment(options, engine_key, sockets),
        catalog.settings.logs_dir / f"engine-{port}.log",
        policy=Policy(start_timeout_s=options.start_timeout_s),
        on_event=say,
    )
    stopped: asyncio.Future[Any] = _on_signals(engine, say)
    engine.start()
    searcher = Searcher(catalog)
    searcher.maintain()
    gateway = Gateway(
        catalog,
        searcher,
        engine,
        base,
        base_served_as=SERVED_AS,
        engine_key=engine_key,
        counter=counter,
        options=options,
        workers=_workers(catalog, train=options.train),
        shadows_beside=not on_cpu(),
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
    ready: asyncio.Future[None] = asyncio.create_task(engine.first_ready())
    warming = asyncio.create_task(asyncio.to_thread(_warm, catalog, searcher, say))
    try:
        await asyncio.wait([serving, ready, stopped], return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and not stopped.done():
            await ready  # raises EngineFailed
            say(f"serving {base.name} on {url} (engine log: {engine.log_path}); Ctrl-C ends it")
            on_ready(Running(url=url, port=port, pid=os.getpid(), engine_pid=engine.pid))
            await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        ready.cancel()
        server.should_exit = True
        if not serving.done():
            say("finishing requests in flight…")
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        await engine.stop()
        await asyncio.to_thread(searcher.close)
        await asyncio.gather(ready, warming, return_exceptions=True)
    return int(stopped.result()) if stopped.done() else 1


def _warm(catalog: Catalog, searcher: Searcher, say: Callable[[str], None]) -> None:
    """Load the embedder and the stores with traffic while vLLM starts, so that the first question does not wait."""
    pointed = or_(
        Tenant.live_release_id == Release.id,
        Tenant.canary_release_id == Release.id,
        Tenant.shadow_release_id == Release.id,
    )
    with catalog.session() as session:
        releases = session.scalars(select(Release).join(Tenant, pointed)).all()
    for release in releases:
        try:
            warm_stores(catalog, searcher, release)
        except Exception as error:  # whoever asks will be told; the others are served
            say(f"warning: the stores of release {release.id} cannot be searched: {error}")


def _workers(catalog: Catalog, *, train: bool) -> list[Worker]:
    """One for quick jobs, and one for training, so that files are indexed while an adapter is trained."""
    kinds = installed_kinds()
    quick = [kind for kind in kinds if kind != fine_tuning.KIND]
    slow = [kind for kind in kinds if kind == fine_tuning.KIND and train]
    return [Worker(catalog, kinds=some) for some in (quick, slow) if some]


def _on_signals(engine: Engine, say: Callable[[str], None]) -> asyncio.Future[int]:
    """A future that holds the exit code once SIGTERM or SIGINT came; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    def received(code: int) -> None:
        if stopped.done():
            engine.kill()
            logging.shutdown()
            os._exit(code)
        say("stopping (once more to stop at once)…")
        stopped.set_result(code)

    loop.add_signal_handler(signal.SIGTERM, received, 0)
    loop.add_signal_handler(signal.SIGINT, received, 130)
    return stopped
