"""
Training on a CPU gives way to answers: its process stands still (SIGSTOP) while somebody waits for one to begin.

Idle priority alone is not enough: the engine computes each step with all cores at once and waits for the last, and
training takes memory bandwidth and caches from it. Yet training is let run for at least `LEAST_SHARE` of the time, in
pieces long enough for its caches to be worth filling.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from subprocess import Popen

from ryorin.foreground import Foreground

LOOK_S = 0.01  # a tenth of the quickest first token that a CPU gives
LEAST_SHARE = 0.2  # of the time, for training
MOST_OWED_S = 2.0  # that it may be behind its share, and then runs without a break


class Share:
    """Whether training is to run, so that it gives way and yet gets its share."""

    def __init__(self) -> None:
        self._owed_s = 0.0
        self._catches_up = False

    def runs(self, waited_for: bool, *, ran: bool, elapsed_s: float) -> bool:
        """
        Whether it runs from now on.

        waited_for: somebody waits for an answer. ran: it ran for the last `elapsed_s` seconds, rather than stood still.
        """
        self._owed_s = max(0.0, self._owed_s + min(elapsed_s, MOST_OWED_S) * (LEAST_SHARE - ran))
        self._catches_up = self._owed_s > (0.0 if self._catches_up else MOST_OWED_S)
        return self._catches_up or not waited_for


class GivingWay:
    """
    Stops and continues a process and those of its group.

    foreground: who waits. may_stop: set while it may be stopped: it holds no lock then that others need, as of the
    database.
    """

    def __init__(self, process: Popen[str], foreground: Foreground) -> None:
        self.may_stop = threading.Event()
        self._process = process
        self.foreground = foreground
        self._ended = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside the block the process stands still when somebody waits; it runs when the block is left."""
        watch = threading.Thread(target=self._watch, name="giving way", daemon=True)
        watch.start()
        try:
            yield
        finally:
            self._ended.set()
            watch.join()

    def _watch(self) -> None:
        share, running, looked = Share(), True, time.monotonic()
        try:
            while not self._ended.wait(LOOK_S):
                now = time.monotonic()
                waited_for = self.foreground.waiting > 0 and self.may_stop.is_set()
                runs = share.runs(waited_for, ran=running, elapsed_s=now - looked)
                looked = now
                if runs != running:
                    running = runs
                    self._send(signal.SIGCONT if runs else signal.SIGSTOP)
        finally:
            self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        if number == signal.SIGCONT or self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
