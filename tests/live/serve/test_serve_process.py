"""`ryorin serve` as a process with a small program in vLLM's place: what it says, how it ends, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest
import serve_with_fake_engine
from scripted_house import eventually
from test_engine import Stage

SCRIPT = Path(serve_with_fake_engine.__file__)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def serving(stage: Stage, *options: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return running(stage, "serve", "--port", "0", *options)


@contextmanager
def running(stage: Stage, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(stage.folder), *words],
        env=os.environ | {"RYORIN_HOME": str(stage.folder / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_ready_then_ended(stage: Stage, how: signal.Signals, code: int):
    with serving(stage, "--json") as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert set(ready) == {"url", "port", "pid", "engine_pids"}
        assert (ready["pid"], ready["engine_pids"]) == (process.pid, [stage.pids()[0][0]])
        assert httpx.get(f"{ready['url']}/health").json() == {"status": "ok", "engine": "ready"}
        assert httpx.get(f"{ready['url']}/v1/models").status_code == 401
        process.send_signal(how)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert f"on {ready['url']} (engine log: " in err
    assert "Traceback" not in err
    eventually(stage.none_left)


def test_two_engines_and_one_of_them_dies(stage: Stage):
    with serving(stage, "--json", "--replicas", "2") as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        eventually(lambda: len(stage.pids()) == 2)
        first, second = (pids[0] for pids in stage.pids())
        eventually(lambda: httpx.get(f"{ready['url']}/health").status_code == 200)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: len(stage.pids()) == 3)
        assert httpx.get(f"{ready['url']}/health").json()["engine"] == "ready"
        os.kill(second, 0)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "vLLM 1 is ready" in err and "vLLM 2 is ready" in err and "-1.log" in err
    eventually(stage.none_left)


def test_an_engine_alone_and_a_gateway_that_asks_it(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RYORIN_ENGINE_KEY", "k" * 20)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with running(stage, "engine", "--port", str(port), "--json") as engine:
        assert engine.stdout is not None
        ready = json.loads(engine.stdout.readline())
        assert (ready["url"], ready["engine_pids"]) == (f"http://127.0.0.1:{port}", [stage.pids()[0][0]])
        os.kill(ready["engine_pids"][0], signal.SIGKILL)
        eventually(lambda: len(stage.pids()) == 2)  # it comes back at the same place
        with serving(stage, "--engine-url", ready["url"]) as gateway:
            _, err = gateway.communicate(timeout=60)
        assert gateway.returncode == 2
        assert f"error: what answers at {ready['url']}/v1/models is not vLLM; start it with 'ryorin engine'" in err
        engine.send_signal(signal.SIGTERM)
        engine.communicate(timeout=60)
    assert engine.returncode == 0
    eventually(stage.none_left)


def test_interrupted_while_the_engine_starts(stage: Stage):
    stage.plan(delay_s=60)
    with serving(stage) as process:
        eventually(stage.pids)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    eventually(stage.none_left)


def test_a_second_signal_ends_it_at_once(stage: Stage):
    stage.plan(deaf=True)
    with serving(stage, "--json") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while "once more" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    eventually(stage.none_left)
