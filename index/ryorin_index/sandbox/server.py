"""
The process that forks a child for every file. Run by `ryorin_index.sandbox.Server`, never by hand.

It has one thread and no secret, imports the readers of a format when the first file of it comes, and ends when its
parent does. It is as confined as its children, but that it may fork and kill them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

import ryorin
from ryorin.errors import InvalidInput
from ryorin_index.sandbox import FRAME
from ryorin_index.sandbox.confinement import confine_child, confine_server, die_with_parent

NO_MEMORY = 77  # exit code of a child that was refused memory
MAX_REQUEST_BYTES = 1 << 16
MAX_REASON_CHARACTERS = 300
assert ryorin  # confinement asks where it lies


@dataclass
class Child:
    """A child at work. lease: the caller's end closes when it no longer wants the result."""

    pid: int
    lease: socket.socket
    deadline: float
    cpu_s: int
    late: bool = False


def main() -> None:
    """Serve until the parent is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    parent = int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch = -1
    with contextlib.suppress(AttributeError, OSError):
        watch = os.pidfd_open(parent)
    if os.getppid() != parent:
        return
    confine_server()
    serve(control, watch)


def serve(control: socket.socket, watch: int) -> None:
    """Fork a child for every request; tell each caller how its child ended."""
    children: dict[int, Child] = {}  # by their lease's descriptor
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    events = select.poll()
    for descriptor in (control.fileno(), watch, woken):
        if descriptor >= 0:
            events.register(descriptor, select.POLLIN)
    while True:
        next_deadline = min((child.deadline for child in children.values() if not child.late), default=None)
        wait_ms = None if next_deadline is None else max(0.0, 1000 * (next_deadline - time.monotonic()))
        for descriptor, _ in events.poll(wait_ms):
            if descriptor == woken:
                os.read(woken, 4096)
            elif descriptor == watch:
                return
            elif descriptor == control.fileno():
                request, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, 3)
                if not request:
                    return
                child = _fork(json.loads(request), descriptors)
                children[child.lease.fileno()] = child
                events.register(child.lease, select.POLLIN)
            elif descriptor in children:  # a caller that went away
                events.unregister(descriptor)
                os.kill(children[descriptor].pid, signal.SIGKILL)
        for child in children.values():
            if not child.late and time.monotonic() > child.deadline:
                child.late = True
                os.kill(child.pid, signal.SIGKILL)
        for descriptor, report in _ended(children):
            with contextlib.suppress(KeyError):
                events.unregister(descriptor)
            lease = children.pop(descriptor).lease
            with contextlib.suppress(OSError):
                lease.sendall(json.dumps(report).encode())
            lease.close()


def _ended(children: dict[int, Child]) -> list[tuple[int, dict[str, Any]]]:
    """The children that have ended since, and how."""
    by_pid = {child.pid: (descriptor, child) for descriptor, child in children.items()}
    found = []
    while children:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
        descriptor, child = by_pid[pid]
        code = os.waitstatus_to_exitcode(status)
        killed = code == -signal.SIGKILL
        reason = ""
        if child.late:
            reason = "wall"
        elif code == -signal.SIGXCPU or (killed and usage.ru_utime + usage.ru_stime >= child.cpu_s):
            reason = "cpu"
        elif code == NO_MEMORY or killed:
            reason = "memory"
        found.append((descriptor, {"signal": max(0, -code), "code": max(0, code), "reason": reason}))
    return found


def _fork(request: dict[str, Any], descriptors: list[int]) -> Child:
    """A child for one file. The readers are imported before, for all that follow."""
    source, result, lease = descriptors
    module, _, function = request["function"].partition(":")
    with contextlib.suppress(Exception):  # the child meets it again and says so
        prepare = getattr(importlib.import_module(module), "prepare", None)
        if prepare:
            prepare(request["name"])
    gc.freeze()
    limits = request["limits"]
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _child(request, module, function, source, result)
        finally:
            os._exit(code)
    os.close(source)
    os.close(result)
    return Child(pid, socket.socket(fileno=lease), time.monotonic() + limits["wall_s"], limits["cpu_s"])


def _child(request: dict[str, Any], module: str, function: str, source: int, result: int) -> int:
    """Read one file and write what comes of it. Returns the exit code."""
    die_with_parent()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(1, 2)  # what C libraries complain of
    first, last = sorted((source, result))
    os.closerange(3, first)
    os.closerange(first + 1, last)
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))
    limits = request["limits"]
    with open(source, "rb") as document:
        document.seek(0)
        data = document.read()
    confine_child(limits["memory_bytes"] + request["size"], limits["cpu_s"])
    try:
        for value in getattr(importlib.import_module(module), function)(request["name"], data):
            _send(result, value)
    except MemoryError:
        return NO_MEMORY
    except Exception as error:
        if _of_memory(error):
            return NO_MEMORY
        _send(result, _as_answer(request["name"], error))
    _write(result, FRAME.pack(b"E", 0))
    return 0


def _as_answer(name: str, error: Exception) -> dict[str, str]:
    if isinstance(error, InvalidInput):
        return {"error": error.message[: 10 * MAX_REASON_CHARACTERS], "code": error.code or "invalid_file"}
    if isinstance(error, RecursionError):
        return {"error": f"{name} is nested too deeply to be read", "code": "invalid_file"}
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON_CHARACTERS]
    return {"error": f"{name} cannot be read ({reason}); it is damaged, save it anew", "code": "invalid_file"}


def _of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _send(result: int, value: Any) -> None:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    _write(result, FRAME.pack(b"B" if isinstance(value, bytes) else b"J", len(content)))
    _write(result, content)


def _write(result: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(result, view) :]


if __name__ == "__main__":
    main()
