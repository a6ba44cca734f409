"""
Running a reader on a stranger's file where it can do no harm.

A server process, started with the first file and ended with its parent, has the readers imported; every file gets a
fork of it, which ends with that file. What such a child may not do is in `ryorin_index.sandbox.confinement`. Data goes
in through a file in memory and comes back through a pipe, both without names; a child that needs too much time or
memory, or crashes, is an InvalidInput of its file and nothing else.

`call` may be used from several threads, and in a process that forked.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from ryorin.errors import InvalidInput, RyorinError

FRAME = struct.Struct("<cQ")  # kind and length of what follows: J JSON, B bytes, E the end
KINDS = (b"J", b"B", b"E")
REPORT_WAIT_S = 10.0
MAX_NAME_CHARACTERS = 255


@dataclass(frozen=True)
class Limits:
    """
    What one file may cost.

    memory_bytes: private memory of the child. cpu_s: its computing time; wall_s: until it is killed.
    result_bytes: text and members that come back.
    """

    memory_bytes: int = 1 << 30
    cpu_s: int = 60
    wall_s: float = 120.0
    result_bytes: int = 256 << 20


LIMITS = Limits()


class Beyond(InvalidInput):
    """A child went beyond a limit or crashed. limit: 'wall', 'cpu', 'memory', 'result', or '' for a crash."""

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message, code="invalid_file")
        self.limit = limit


class Server:
    """The process that forks a child for every file; this is its parent's end."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ryorin_index.sandbox.server", str(there.fileno()), str(self.owner)],
                env=_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
                start_new_session=True,  # Ctrl-C is for the command, which then ends its server in order
            )
        self._control = here

    def send(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """Ask for a child. Raises OSError when the server is gone."""
        with self._lock:
            socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)

    def close(self) -> None:
        """End the server and every child of it."""
        self._control.close()
        if self.owner == os.getpid():
            try:
                self._process.wait(REPORT_WAIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def forget(self) -> None:
        """After a fork: let go of the parent's server."""
        self._control.close()
        self._process.returncode = 0  # not this process's child: nothing to wait for


_state = threading.Lock()
_places = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))  # children at once
_server: Server | None = None


def call(function: str, name: str, data: bytes, limits: Limits | None = None) -> list[Any]:
    """
    Run `function` ('module:name', called with the file's name and bytes) in a child and return what it yields.

    The function yields bytes, or values that JSON can hold. Raises the InvalidInput that the function raised, or Beyond
    when the child went beyond a limit or crashed.
    """
    name, limits = name[-MAX_NAME_CHARACTERS:], limits or LIMITS
    request = {"function": function, "name": name, "size": len(data), "limits": asdict(limits)}
    with _places, _in_memory(data) as source:
        for attempt in range(2):
            result, result_there = os.pipe()
            lease, lease_there = socket.socketpair()
            try:
                try:
                    server = _running()
                    server.send(request, [source.fileno(), result_there, lease_there.fileno()])
                finally:
                    os.close(result_there)
                    lease_there.close()
                frames = _Frames(name, limits)
                frames.read(result, lease)
                report = _report(lease)
            except OSError:
                report = None
            finally:
                os.close(result)
                lease.close()
            if report is not None:
                return frames.values(report)
            _drop(server)
            if attempt:
                break
    raise RyorinError("the process that reads documents ended twice; is the machine short of memory?")


def shut_down() -> None:
    """End the server, if one runs; the next `call` starts another."""
    global _server
    with _state:
        server, _server = _server, None
    if server is not None:
        server.close()


class _Frames:
    """What a child sent, and what to make of how it ended."""

    def __init__(self, name: str, limits: Limits) -> None:
        self._name, self._limits = name, limits
        self._received = bytearray()
        self._too_much = False

    def read(self, result: int, lease: socket.socket) -> None:
        """Take in all that the child sends until it closes the pipe."""
        deadline = time.monotonic() + self._limits.wall_s + REPORT_WAIT_S
        arrival = select.poll()
        arrival.register(result, select.POLLIN)
        while (left_s := deadline - time.monotonic()) > 0:
            if not arrival.poll(1000 * left_s):
                break
            piece = os.read(result, 1 << 20)
            if not piece:
                return
            self._received += piece
            if len(self._received) > self._limits.result_bytes:
                self._too_much = True
                break
        lease.shutdown(socket.SHUT_WR)  # tells the server to kill the child

    def values(self, report: dict[str, Any]) -> list[Any]:
        """The values, or the error that explains why there are none."""
        if self._too_much:
            raise self._beyond("result", f"holds more than {self._limits.result_bytes >> 20:,} MB of content; split it")
        values, ended = self._unpacked()
        if ended and report["signal"] == 0:
            if values and isinstance(values[-1], dict) and "error" in values[-1]:
                error = values[-1]
                raise InvalidInput(str(error["error"]), code=str(error["code"]))
            return values
        if report["reason"] == "wall":
            raise self._beyond("wall", f"took more than {self._limits.wall_s:g} s to read; split it or save it anew")
        if report["reason"] == "cpu":
            raise self._beyond(
                "cpu", f"took more than {self._limits.cpu_s} s of computing to read; split it or save it anew"
            )
        if report["reason"] == "memory":
            raise self._beyond(
                "memory", f"needed more than {self._limits.memory_bytes / (1 << 30):g} GB of memory; split it"
            )
        how = f"signal {report['signal']}" if report["signal"] else f"exit code {report['code']}"
        raise self._beyond("", f"made its reader crash ({how}); it is damaged, save it anew")

    def _unpacked(self) -> tuple[list[Any], bool]:
        values: list[Any] = []
        at = 0
        while len(self._received) - at >= FRAME.size:
            kind, length = FRAME.unpack_from(self._received, at)
            start, at = at + FRAME.size, at + FRAME.size + length
            if kind not in KINDS or at > len(self._received):
                return values, False
            if kind == b"E":
                return values, True
            content = bytes(self._received[start:at])
            if kind == b"B":
                values.append(content)
                continue
            try:
                values.append(json.loads(content))
            except ValueError:
                return values, False
        return values, False

    def _beyond(self, limit: str, reason: str) -> Beyond:
        return Beyond(f"{self._name} {reason}", limit)


def _report(lease: socket.socket) -> dict[str, Any] | None:
    """How the child ended, in the server's words; None when the server is gone."""
    lease.settimeout(REPORT_WAIT_S)
    received = b""
    while piece := lease.recv(4096):
        received += piece
    return json.loads(received) if received else None


def _in_memory(data: bytes) -> Any:
    """A file without a name that holds `data`."""
    if hasattr(os, "memfd_create"):
        file: Any = os.fdopen(os.memfd_create("document"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115  (the caller closes it)
    file.write(data)
    file.flush()
    return file


def _running() -> Server:
    global _server
    with _state:
        if _server is None or _server.owner != os.getpid():
            _server = Server()
        return _server


def _drop(server: Server) -> None:
    """Let a server go that does not answer, unless another thread has replaced it."""
    global _server
    with _state:
        if _server is server:
            _server = None
        else:
            return
    server.close()


def _environment() -> dict[str, str]:
    """All that the server learns of this process's environment: where modules lie. No key, no address, no home."""
    return {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONUTF8": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        **{name: os.environ[name] for name in ("TZ", "TMPDIR") if name in os.environ},
        "MALLOC_ARENA_MAX": "1",
    }


def _forked() -> None:
    global _server, _state, _places
    _state, _places = threading.Lock(), threading.BoundedSemaphore(max(2, os.cpu_count() or 1))
    if _server is not None:
        _server.forget()
        _server = None


os.register_at_fork(after_in_child=_forked)
atexit.register(shut_down)
