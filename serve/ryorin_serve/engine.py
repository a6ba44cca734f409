"""
The supervisor of an engine process: starts it, watches it, starts it again when it dies, and leaves none behind.

It knows a command, a port and a health URL; that the command is vLLM is the business of `vllm_command`. The engine is
disposable: it holds no state that is not in the catalog, so the answer to any trouble is to kill it and start another.
`generation` counts the starts, and whoever loaded something into the engine loads it again when the number changed.

    down ──► starting ──► ready ──► down (it died or no longer answers; wait, then start again)

An engine that never became ready is not tried again: its settings are wrong, and the log's tail says how.

The engine runs in a process group of its own, so that its workers can be killed with it, and its life is tied to this
process in two ways: the kernel kills it when its parent dies (PR_SET_PDEATHSIG), and a shell of three lines, which
reads a pipe that only this process holds open, kills the whole group when the pipe ends, whatever ended it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from ryorin.errors import RyorinError
from ryorin_serve.engine_handle import State, Watched

# Kills the group named on the last line it read when its standard input ends; an empty line calls it off.
WATCHDOG = 'group=""; while read -r line; do group=$line; done; [ -z "$group" ] || kill -s KILL -- "-$group"'
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOG_TAIL_LINES = 25
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # where one that listens on all addresses is asked from here


class EngineFailed(RyorinError, RuntimeError):
    """The engine ended before it was ready for the first time; the message has the end of its log."""


@dataclass(frozen=True)
class Policy:
    """
    How patient the supervisor is; seconds.

    An engine may take `start_timeout_s` to become ready. After it died the next start waits `first_delay_s`, doubled
    for each further death up to `longest_delay_s`, and back to the first once it was ready for `stable_s`. A ready
    engine is asked for its health every `health_interval_s` and killed after `health_patience_s` without an answer.
    """

    start_timeout_s: float = 600.0
    first_delay_s: float = 1.0
    longest_delay_s: float = 60.0
    stable_s: float = 300.0
    start_poll_s: float = 0.25
    progress_every_s: float = 5.0
    health_interval_s: float = 5.0
    health_patience_s: float = 90.0
    stop_grace_s: float = 10.0
    log_limit_bytes: int = 20 * 2**20
    log_files: int = 5


class Engine(Watched):
    """
    Runs one engine process at a time.

    command: from the port to listen on to the command line. host, port: where it listens; without a port a free one is
    chosen anew for every start. on_event: gets one line of text for whoever watches.
    """

    def __init__(
        self,
        command: Callable[[int], list[str]],
        environment: Mapping[str, str],
        log_path: Path,
        *,
        policy: Policy | None = None,
        on_event: Callable[[str], None] = lambda _: None,
        name: str = "vLLM",
        host: str = "127.0.0.1",
        port: int | None = None,
    ) -> None:
        self._command = command
        self._host = EVERYWHERE.get(host, f"[{host}]" if ":" in host else host)
        self._fixed_port = port
        self._environment = dict(environment)
        self._policy = policy or Policy()
        self._on_event = on_event
        self._name = name
        self._process: asyncio.subprocess.Process | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._start_seconds = 40.0
        self._attempt_began = time.monotonic()
        self._next_attempt = 0.0
        self.log_path = log_path
        self.state: State = "down"
        self.generation = 0
        self.port = 0

    @property
    def url(self) -> str:
        """Where the present engine listens."""
        return f"http://{self._host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The engine's process id, which is also its group's."""
        return self._process.pid if self._process else None

    @property
    def retry_after_s(self) -> float:
        """A guess of when the engine is ready again: what the last start took, less the time this one has had."""
        now = time.monotonic()
        waiting = max(0.0, self._next_attempt - now)
        running = now - self._attempt_began if self.state == "starting" else 0.0
        return max(1.0, waiting + self._start_seconds - running)

    def start(self) -> None:
        """Begin to supervise, in the background."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG], stdin=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        self._watch(self._supervise(), "engine supervisor")

    async def stop(self) -> None:
        """End the engine and its workers: SIGTERM, then SIGKILL after the grace; safe to call twice."""
        await super().stop()
        if self._watchdog is not None and self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
            await asyncio.to_thread(self._watchdog.wait)
            self._watchdog = None

    def kill(self) -> None:
        """End the engine and its workers at once, from anywhere."""
        if self._process is not None:
            _kill_group(self._process.pid)

    def log_tail(self) -> str:
        """The last lines of the engine's log."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, self.log_path.stat().st_size - 64 * 1024))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-LOG_TAIL_LINES:])

    async def _supervise(self) -> None:
        policy, delay = self._policy, self._policy.first_delay_s
        assert self._first_ready is not None
        async with aiohttp.ClientSession() as http:
            while True:
                ready_at: float | None = None
                try:
                    await self._launch()
                    reason = await self._until_ready(http)
                    if reason is None:
                        ready_at = time.monotonic()
                        self._start_seconds = ready_at - self._attempt_began
                        self.state = "ready"
                        if not self._first_ready.done():
                            self._first_ready.set_result(None)
                        self._on_event(f"{self._name} is ready after {self._start_seconds:.0f} s (pid {self.pid})")
                        reason = await self._until_unhealthy(http)
                except OSError as error:
                    reason = f"could not be started: {error}"
                finally:
                    self.state = "down"
                    await self._end()
                if not self._first_ready.done():
                    self._first_ready.set_exception(
                        EngineFailed(
                            f"{self._name} {reason} before it was ready; the end of its log ({self.log_path}):\n"
                            f"{self.log_tail()}"
                        )
                    )
                    return
                if ready_at is not None and time.monotonic() - ready_at >= policy.stable_s:
                    delay = policy.first_delay_s
                self._on_event(f"{self._name} {reason}; starting it again in {delay:.0f} s (log: {self.log_path})")
                self._next_attempt = time.monotonic() + delay
                await asyncio.sleep(delay)
                delay = min(delay * 2, policy.longest_delay_s)

    async def _launch(self) -> None:
        self._rotate_log()
        self.port = self._fixed_port or free_port()
        self._attempt_began = time.monotonic()
        self.state = "starting"
        self.generation += 1
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(self.port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._tell_watchdog(str(self._process.pid))
        self._on_event(f"starting {self._name} (pid {self.pid}, log: {self.log_path})…")

    async def _until_ready(self, http: aiohttp.ClientSession) -> str | None:
        """None once the engine answers; else what went wrong."""
        policy, said = self._policy, time.monotonic()
        while True:
            if (code := await self._exit_code(policy.start_poll_s)) is not None:
                return _ended(code)
            if await self._healthy(http, timeout_s=2.0):
                return None
            now = time.monotonic()
            if now - self._attempt_began > policy.start_timeout_s:
                return f"did not answer within {policy.start_timeout_s:.0f} s"
            if now - said >= policy.progress_every_s:
                said = now
                self._on_event(f"starting {self._name}, {now - self._attempt_began:.0f} s…")

    async def _until_unhealthy(self, http: aiohttp.ClientSession) -> str:
        """What ended the engine's readiness."""
        policy, answered = self._policy, time.monotonic()
        while True:
            if (code := await self._exit_code(policy.health_interval_s)) is not None:
                return _ended(code)
            if await self._healthy(http, timeout_s=policy.health_patience_s / 3):
                answered = time.monotonic()
            elif time.monotonic() - answered >= policy.health_patience_s:
                return f"did not answer for {policy.health_patience_s:.0f} s and was killed"
            if self._log_size() > policy.log_limit_bytes:
                with contextlib.suppress(OSError):  # a full disk is no reason to end a healthy engine
                    self._rotate_log()

    async def _exit_code(self, timeout_s: float) -> int | None:
        assert self._process is not None
        try:
            return await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            return None

    async def _healthy(self, http: aiohttp.ClientSession, timeout_s: float) -> bool:
        try:
            async with http.get(f"{self.url}/health", timeout=aiohttp.ClientTimeout(total=timeout_s)) as response:
                return response.status == 200
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False

    async def _end(self) -> None:
        """Leave no process of the present engine; when cancelled in the middle it still kills."""
        process = self._process
        if process is None:
            return
        try:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await self._exit_code(self._policy.stop_grace_s)
        finally:
            _kill_group(process.pid)  # also when the leader is gone: its workers may not be
        await process.wait()
        self._tell_watchdog("")
        self._process = None

    def _tell_watchdog(self, group: str) -> None:
        if self._watchdog is not None and self._watchdog.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._watchdog.stdin.write(f"{group}\n".encode())

    def _log_size(self) -> int:
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def _rotate_log(self) -> None:
        """Keep the log as `.1` … and go on with an empty one; copied, not renamed, as the engine holds it open."""
        if not self._log_size():
            return
        files = [self.log_path, *(self.log_path.with_suffix(f".log.{n}") for n in range(1, self._policy.log_files))]
        for older, newer in zip(reversed(files[1:]), reversed(files[1:-1]), strict=False):
            if newer.exists():
                newer.replace(older)
        try:
            shutil.copyfile(self.log_path, files[1])
        finally:
            os.truncate(self.log_path, 0)  # the engine appends (O_APPEND): its next line lands at the start


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """In the child, before exec: SIGKILL when the parent dies (prctl(2)); nothing that imports or takes a lock."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
