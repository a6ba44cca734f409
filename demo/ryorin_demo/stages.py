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

from ryorin.child_server import STOP_TIMEOUT_S, ryorin_command
from ryorin.errors import RyorinError


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
            # A shell starts what is to run in the background with SIGINT ignored, and the command has that from here.
            deaf = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            process.send_signal(signal.SIGTERM if deaf else signal.SIGINT)
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
