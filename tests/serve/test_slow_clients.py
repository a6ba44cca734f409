"""Clients that drip: headers, bodies."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from scripted_house import House, built

from ryorin_serve import requests, server
from ryorin_serve.options import ServeOptions


@pytest.fixture
def house(tmp_path: Path, empty_sqlite: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(server, "HEADERS_S", 0.4)
    monkeypatch.setattr(server, "TICK_S", 0.05)  # so short that each tick looks at the connections
    monkeypatch.setattr(requests, "BODY_S", 0.4)
    options = ServeOptions(max_model_len=400)
    with built(tmp_path / "home", empty_sqlite, options, server.QuietServer) as house:
        yield house


def connected(house: House) -> socket.socket:
    place = urlsplit(house.url)
    return socket.create_connection((place.hostname or "", place.port or 0), timeout=10)


def test_headers_that_do_not_end_are_not_waited_for(house: House) -> None:
    began = time.monotonic()
    with connected(house) as dripping, connected(house) as silent:
        dripping.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        assert dripping.recv(100) == b"" and silent.recv(100) == b""
    assert time.monotonic() - began < 8
    with connected(house) as again:  # a whole request, and then headers that drip on the connection that is kept
        again.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert again.recv(4096).startswith(b"HTTP/1.1 200")
        again.sendall(b"GET /health HTTP/1.1\r\n")
        assert again.recv(100) == b""


def test_a_body_that_does_not_end_is_answered_with_408(house: House) -> None:
    with connected(house) as dripping:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.keys['support']}\r\n"
        dripping.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        answer = dripping.recv(65536)
        while b"}}" not in answer:
            answer += dripping.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "request_timeout" and "within 0.4 s" in error["message"]
    assert not house.engine.requests


def test_an_answer_that_takes_long_is_not_a_slow_request(house: House) -> None:
    house.engine.gate.clear()
    with house.client().chat.completions.create(
        model="support", messages=[{"role": "user", "content": "How long?"}], stream=True
    ) as stream:
        time.sleep(1.2)
        house.engine.gate.set()
        assert len(list(stream)) > 2


def test_a_kept_connection_of_short_requests_is_kept(house: House) -> None:
    connection = http.client.HTTPConnection(urlsplit(house.url).netloc, timeout=10)
    connection.connect()
    kept, until = connection.sock, time.monotonic() + 1.5
    while time.monotonic() < until:
        connection.request("GET", "/v1/none")
        assert connection.getresponse().read() and connection.sock is kept
        time.sleep(0.02)
    connection.close()
