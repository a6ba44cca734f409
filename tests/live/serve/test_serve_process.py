"""`ryorin serve` as a process with a small program in vLLM's place: what it says, how it ends, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def serving(stage: Stage, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(stage.folder), "serve", "--port", "0", *options],
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
