"""The supervisor, with a small program in vLLM's place."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_house import eventually

from ryorin_serve.engine import Engine, EngineFailed, Policy

FAKE = Path(__file__).with_name("fake_engine.py")
QUICK = Policy(
    start_timeout_s=60,
    first_delay_s=0.1,
    longest_delay_s=0.4,
    stable_s=60,
    start_poll_s=0.02,
    progress_every_s=0.1,
    health_interval_s=0.05,
    health_patience_s=10,
    stop_grace_s=0.5,
)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Stage:
    """A folder for the fake engine, and what the supervisor said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.starts: list[float] = []
        self.plan()

    def plan(self, **plan: object) -> None:
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def pids(self) -> list[list[int]]:
        path = self.folder / "pids"
        return [[int(pid) for pid in line.split()] for line in path.read_text().splitlines()] if path.exists() else []

    def none_left(self) -> bool:
        return not any(alive(pid) for pids in self.pids() for pid in pids)

    def engine(self, policy: Policy = QUICK) -> Engine:
        return Engine(
            self._command,
            {"PATH": os.environ["PATH"]},
            self.folder / "logs" / "engine.log",
            policy=policy,
            on_event=self.said.append,
        )

    def _command(self, port: int) -> list[str]:
        self.starts.append(time.monotonic())
        return [sys.executable, str(FAKE), str(port), str(self.folder)]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def until(look: Callable[[], object], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not look():
            await asyncio.sleep(0.01)


def test_it_starts_says_how_far_it_is_and_stops_without_a_trace(stage: Stage):
    async def run() -> None:
        stage.plan(delay_s=0.5)
        engine = stage.engine()
        assert engine.state == "down"
        engine.start()
        await until(lambda: engine.state == "starting")
        await engine.first_ready()
        assert (engine.state, engine.generation) == ("ready", 1)
        assert stage.pids()[0][0] == engine.pid
        assert os.getpgid(engine.pid) == engine.pid != os.getpgid(0)
        await engine.stop()
        await engine.stop()
        assert (engine.state, engine.pid) == ("down", None)

    asyncio.run(run())
    eventually(stage.none_left)
    assert any(re.match(r"starting vLLM, \d+ s…", line) for line in stage.said)
    assert "is ready after" in stage.said[-1]


def test_a_killed_engine_comes_back_with_its_worker_cleared(stage: Stage):
    async def run() -> None:
        engine = stage.engine()
        engine.start()
        await engine.first_ready()
        first = engine.url
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: engine.state == "down")
        assert engine.retry_after_s >= 1
        await until(lambda: engine.state == "ready")
        assert engine.generation == 2
        assert engine.url != first
        assert not any(map(alive, stage.pids()[0])), "the first engine's worker lives on"
        await engine.stop()

    asyncio.run(run())
    eventually(stage.none_left)
    assert any("vLLM was killed by SIGKILL; starting it again in 0 s" in line for line in stage.said)


def test_the_delay_doubles_up_to_a_limit_while_it_keeps_dying(stage: Stage):
    async def run() -> None:
        engine = stage.engine()
        engine.start()
        await engine.first_ready()
        stage.plan(exit=3)
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: engine.generation == 5)
        stage.plan()
        await until(lambda: engine.state == "ready")
        await engine.stop()

    asyncio.run(run())
    gaps = [later - earlier for earlier, later in itertools.pairwise(stage.starts[1:])]
    assert gaps[0] >= 0.2
    assert gaps[1] >= 0.4
    assert gaps[2] >= 0.4
    eventually(stage.none_left)


def test_an_engine_that_never_came_up_is_an_error_with_the_end_of_its_log(stage: Stage):
    async def run() -> None:
        stage.plan(exit=3)
        engine = stage.engine()
        engine.start()
        with pytest.raises(EngineFailed, match="vLLM ended with exit code 3 before it was ready") as caught:
            await engine.first_ready()
        assert "ValueError: the flags are wrong" in caught.value.message
        assert str(engine.log_path) in caught.value.message
        await asyncio.sleep(0.5)
        assert engine.generation == 1, "it was tried again"
        await engine.stop()

    asyncio.run(run())
    eventually(stage.none_left)


def test_a_start_that_takes_too_long_is_an_error(stage: Stage):
    async def run() -> None:
        stage.plan(delay_s=60)
        engine = stage.engine(Policy(start_timeout_s=0.4, start_poll_s=0.02, stop_grace_s=0.5))
        engine.start()
        with pytest.raises(EngineFailed, match="did not answer within 0 s"):
            await engine.first_ready()
        await engine.stop()

    asyncio.run(run())
    eventually(stage.none_left)


def test_a_program_that_does_not_exist_is_an_error(stage: Stage):
    async def run() -> None:
        engine = Engine(lambda _: ["/no/such/program"], {}, stage.folder / "engine.log", policy=QUICK)
        engine.start()
        with pytest.raises(EngineFailed, match="could not be started"):
            await engine.first_ready()
        await engine.stop()

    asyncio.run(run())


def test_one_that_no_longer_answers_is_killed_and_one_deaf_to_sigterm_too(stage: Stage):
    async def run() -> None:
        stage.plan(sick=True, deaf=True)
        engine = stage.engine(replace(QUICK, health_patience_s=0.4))
        engine.start()
        await engine.first_ready()
        stage.plan(deaf=True)
        await until(lambda: engine.generation == 2 and engine.state == "ready")
        began = time.monotonic()
        await engine.stop()
        assert time.monotonic() - began >= 0.5

    asyncio.run(run())
    eventually(stage.none_left)
    assert any("did not answer for 0 s and was killed" in line for line in stage.said)


def test_the_log_is_rotated(stage: Stage):
    log = stage.folder / "logs" / "engine.log"
    log.parent.mkdir()
    for number in (1, 2, 3, 4):
        log.with_suffix(f".log.{number}").write_text(f"older {number}")
    log.write_text("old")

    async def run() -> None:
        engine = stage.engine()
        engine.start()
        await engine.first_ready()
        assert "something to say" in engine.log_tail()
        await engine.stop()

    asyncio.run(run())
    assert log.with_suffix(".log.1").read_text() == "old"
    assert [log.with_suffix(f".log.{n}").read_text() for n in (2, 3, 4)] == ["older 1", "older 2", "older 3"]


def test_a_log_that_cannot_be_kept_ends_no_engine(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def run() -> None:
        engine = stage.engine(replace(QUICK, log_limit_bytes=10))
        engine.start()
        monkeypatch.setattr("ryorin_serve.engine.shutil.copyfile", full)
        await engine.first_ready()
        await until(lambda: engine.log_path.stat().st_size == 0)
        assert (engine.state, engine.generation) == ("ready", 1)
        await engine.stop()

    asyncio.run(run())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_supervisor_however_it_dies(stage: Stage, how: signal.Signals):
    program = f"""
        import asyncio, sys, uvloop
        sys.path.insert(0, {str(FAKE.parent)!r})
        from pathlib import Path
        from test_engine import Stage

        async def run():
            engine = Stage(Path({str(stage.folder)!r})).engine()
            engine.start()
            await engine.first_ready()
            print("ready", flush=True)
            await asyncio.sleep(600)

        uvloop.run(run())
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent, parent.stdout:
        assert parent.stdout.readline() == b"ready\n"
        assert all(map(alive, stage.pids()[0]))
        parent.send_signal(how)
        parent.wait()
    eventually(stage.none_left)
