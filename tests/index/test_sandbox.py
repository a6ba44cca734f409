"""The children that read files: their limits, what they may not do, and that none outlives its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from ryorin.errors import InvalidInput
from ryorin_index import sandbox
from ryorin_index.sandbox import Limits, call

ME = "sandboxed_functions"


@pytest.fixture(scope="module", autouse=True)
def functions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Functions for the child; they lie where a child may read: among packages."""
    folder = tmp_path_factory.mktemp("code") / "site-packages"
    folder.mkdir()
    (folder / f"{ME}.py").write_text(
        "import ctypes, os, signal, socket, subprocess, time\n"
        "def tries(name, data):\n"
        "    for what in (lambda: socket.socket(), lambda: subprocess.run(['true']), lambda: os.fork(),\n"
        "                 lambda: open(name, 'w'), lambda: os.mkdir(name + '.d'), lambda: os.unlink('/etc/hostname'),\n"
        "                 lambda: os.kill(os.getppid(), 9), lambda: open('/etc/passwd').read()):\n"
        "        try:\n            what(); yield 'done'\n"
        "        except OSError as error: yield type(error).__name__\n"
        "    libc = ctypes.CDLL(None, use_errno=True)  # past Python's own hook\n"
        "    yield [libc.socket(2, 1, 0), libc.open((name + '.c').encode(), 65, 420), libc.fork()]\n"
        "def sees(name, data): yield [dict(os.environ), os.getcwd()]\n"
        "def sleeps(name, data): time.sleep(60); yield 1\n"
        "def spins(name, data):\n    while True: pass\n"
        "def eats(name, data): yield len(bytearray(1 << 40 if data else 1 << 29))\n"
        "def crashes(name, data): ctypes.string_at(0); yield 1\n"
        "def floods(name, data):\n    while True: yield bytes(1 << 20)\n"
        "def echoes(name, data): yield data; yield {'name': name}\n"
    )
    sandbox.shut_down()
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))
    sandbox.shut_down()


def ask(function: str, data: bytes = b"", **limits: Any) -> list[Any]:
    chosen = Limits(**{"memory_bytes": 256 << 20, "cpu_s": 5, "wall_s": 30.0, **limits})
    return call(f"{ME}:{function}", "a.md", data, chosen)


def test_a_child_reaches_nothing(tmp_path: Path) -> None:
    (layers,) = call("ryorin_index.sandbox.confinement:describe", "a", b"")
    assert {"resource limits", "audit hook"} <= set(layers)
    *tried, past = call(f"{ME}:tries", str(tmp_path / "a.md"), b"")
    assert tried[:7] == ["PermissionError"] * 7
    if "landlock" in layers:
        assert tried[7] == "PermissionError"
    if "seccomp" in layers:
        assert past == [-1, -1, -1]
    assert list(tmp_path.iterdir()) == []


def test_a_child_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.shut_down()
    monkeypatch.setenv("RYORIN_PEPPER", "secret")
    environment, folder = ask("sees")[0]
    assert "secret" not in str(environment) and folder == "/"


@pytest.mark.parametrize(
    ("function", "limits", "reason"),
    [
        ("sleeps", {"wall_s": 0.5}, r"a\.md took more than 0\.5 s to read"),
        ("spins", {"cpu_s": 1}, "took more than 1 s of computing"),
        ("eats", {"memory_bytes": 128 << 20}, r"needed more than 0\.125 GB of memory"),
        ("floods", {"result_bytes": 8 << 20}, "holds more than 8 MB of content"),
        ("crashes", {}, r"made its reader crash \(signal 11\)"),
    ],
)
def test_a_child_beyond_its_limits_is_an_error_of_its_file(function: str, limits: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as caught:
        ask(function, **limits)
    assert caught.value.code == "invalid_file"
    assert ask("echoes", b"x" * 3_000_000) == [b"x" * 3_000_000, {"name": "a.md"}]


def test_many_threads_at_once() -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda number: ask("echoes", b"%d" % number)[0], range(40))
    assert list(answers) == [b"%d" % number for number in range(40)]


def test_a_server_that_was_killed_is_replaced() -> None:
    ask("echoes")
    assert sandbox._server is not None
    sandbox._server._process.kill()
    assert ask("echoes", b"again")[0] == b"again"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_child_outlives_its_parent(how: signal.Signals) -> None:
    code = (
        f"import sys; sys.path = {sys.path!r}\nfrom ryorin_index.sandbox import call\n"
        f"call('{ME}:echoes', 'a', b''); print('ready', flush=True); call('{ME}:sleeps', 'a', b'')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 30
        family: list[psutil.Process] = []
        while len(family) < 2 and time.monotonic() < deadline:
            family = psutil.Process(parent.pid).children(recursive=True)
        assert len(family) == 2
        parent.send_signal(how)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_a_fork_of_this_process_has_a_server_of_its_own() -> None:
    ask("echoes")
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            there.send(ask("echoes", b"forked")[0])
            sandbox.shut_down()
        os._exit(0)
    os.waitpid(pid, 0)
    here.settimeout(1)
    assert here.recv(100) == b"forked"
    here.close()
    there.close()
    assert ask("echoes", b"still")[0] == b"still"
