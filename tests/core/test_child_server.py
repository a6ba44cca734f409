"""A server as a child: ready, ended in order, killed when it is deaf, and told when it cannot start."""

from __future__ import annotations

import sys

import pytest

from ryorin import child_server
from ryorin.child_server import ChildServer
from ryorin.errors import Unavailable

SERVES = """
import json, signal, sys, time
signal.signal(signal.SIGTERM, signal.{handler})
assert sys.argv[1:] == ["serve", "--port", "0", "--json"], sys.argv
print(json.dumps({{"url": "http://127.0.0.1:8123"}}), flush=True)
while True:
    time.sleep(0.05)
"""


def command(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(child_server, "ryorin_command", lambda: [sys.executable, "-c", code])


@pytest.mark.parametrize("handler", ["SIG_DFL", "SIG_IGN"])
def test_it_is_ended_with_the_block(monkeypatch: pytest.MonkeyPatch, handler: str) -> None:
    command(monkeypatch, SERVES.format(handler=handler))
    monkeypatch.setattr(child_server, "STOP_TIMEOUT_S", 0.5 if handler == "SIG_IGN" else 30)
    said: list[str] = []
    with ChildServer("--port", "0", say=said.append) as server:
        assert server.url == "http://127.0.0.1:8123/v1"
        process = server._process
        assert process is not None and process.poll() is None
    assert process.returncode == (-9 if handler == "SIG_IGN" else -15)
    assert said == ["$ ryorin serve --port 0"]


def test_one_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, "raise SystemExit(2)")
    with pytest.raises(Unavailable, match=r"did not start \(exit code 2\)"), ChildServer(say=lambda _: None):
        pytest.fail("it has not started")
