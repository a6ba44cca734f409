"""`ryorin serve` as a child of another command, which asks it and ends it: the demo, evaluation, diagnosis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from ryorin.errors import Unavailable

STOP_TIMEOUT_S = 60


def ryorin_command() -> list[str]:
    """How this installation's command line is started."""
    return [sys.executable, "-m", "ryorin.cli"]


class ChildServer:
    """
    `ryorin serve` with these options; leaving the `with` block stops it and everything below it.

    say: told the command as a person would type it. ready: what the server printed once it answered.
    Entering raises Unavailable when the server cannot start; its own words are on standard error.
    """

    def __init__(self, *options: str, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self._process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}

    @property
    def url(self) -> str:
        """The base URL that OpenAI clients take."""
        return f"{self.ready['url']}/v1"

    def __enter__(self) -> ChildServer:
        self._say(" ".join(["$ ryorin serve", *self._options]))
        # A group of its own: Ctrl-C reaches the parent, and the parent stops the server in order.
        self._process = subprocess.Popen(
            [*ryorin_command(), "serve", *self._options, "--json"],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()  # one JSON line when it is ready, nothing when it could not start
            self.ready = json.loads(line) if line else {}
        except BaseException:
            self.stop()
            raise
        if not line:
            code = self._process.wait()
            self._process.stdout.close()
            raise Unavailable(f"the server did not start (exit code {code}); see above")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and wait for it; a server that does not end in time is killed."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def wait(self) -> int:
        """Wait until the server ends by itself."""
        assert self._process is not None
        return self._process.wait()
