"""Running the demo's stages: real commands in processes of their own, timed, shown as they would be typed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ryorin.errors import RyorinError, Unavailable

STOP_TIMEOUT_S = 60


class Stages:
    """Prints to standard error and keeps the seconds that each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.started = time.monotonic()

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Time a stage under `name`."""
        began = time.monotonic()
        say(f"\n== {title}   (at {began - self.started:.0f} s)")
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)
        say(f"   {title}: {self.seconds[name]:.1f} s")

    @property
    def total(self) -> float:
        """Seconds since the beginning."""
        return round(time.monotonic() - self.started, 1)


def say(text: str = "") -> None:
    """A line for the person who watches; standard output is kept for results."""
    print(text, file=sys.stderr, flush=True)


def ryorin_command() -> list[str]:
    """How this installation's command line is started."""
    return [sys.executable, "-m", "ryorin.cli"]


def run(*words: str | Path, quiet: bool = False) -> None:
    """Run a `ryorin` command and show what it says. Raises RyorinError when it fails."""
    if not quiet:
        say("$ ryorin " + shlex.join(shown(words)))
    _finish([*ryorin_command(), *map(str, words)], words, stdout=sys.stderr)


def ask(*words: str | Path, quiet: bool = True) -> Any:
    """Run a `ryorin … --json` command and return what it prints. Raises RyorinError when it fails."""
    if not quiet:
        say("$ ryorin " + shlex.join(shown(words)))
    return json.loads(_finish([*ryorin_command(), *map(str, words), "--json"], words, stdout=subprocess.PIPE))


def _finish(command: Sequence[str], words: Sequence[str | Path], stdout: Any) -> str:
    """
    Run a command to its end and return its standard output, when that is a pipe.

    The command has a group of its own, so Ctrl-C reaches the demo alone; the demo hands it on once and waits while the
    command cleans up. (`subprocess.run` would kill it after a quarter of a second.)
    """
    with subprocess.Popen(command, stdout=stdout, text=True, start_new_session=True) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_TIMEOUT_S)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            raise
    if process.returncode:
        raise RyorinError(f"'ryorin {shlex.join(shown(words))}' failed with exit code {process.returncode}; see above")
    return output or ""


def shown(words: Sequence[str | Path]) -> list[str]:
    """The words as a person would type them: paths below the present folder are relative."""
    here = Path.cwd()
    return [
        str(word.relative_to(here)) if isinstance(word, Path) and word.is_relative_to(here) else str(word)
        for word in words
    ]


class Server:
    """`ryorin serve` as a child of the demo; leaving the `with` block stops it and everything below it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """The base URL that OpenAI clients take."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Server:
        words = ["serve", "--port", str(self.port), "--json"]
        say("$ ryorin serve --port " + str(self.port))
        # A group of its own: Ctrl-C reaches the demo, and the demo stops the server in order.
        self.process = subprocess.Popen(
            [*ryorin_command(), *words], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        try:
            line = self.process.stdout.readline()  # one JSON line when it is ready, nothing when it could not start
        except BaseException:
            self.stop()
            raise
        if not line:
            code = self.process.wait()
            self.process.stdout.close()
            raise Unavailable(f"the server did not start (exit code {code}); see above")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and wait for it; a server that does not end in time is killed."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def wait(self) -> int:
        """Wait until the server ends by itself."""
        assert self.process is not None
        return self.process.wait()
