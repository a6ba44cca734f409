"""
Training on a CPU gives way to answers: its processes stand still (SIGSTOP) while somebody waits for a first token.

Idle priority alone is not enough: the engine computes each step with all cores at once and waits for the last, and
training takes memory bandwidth and caches from it. Yet training goes on under any load: it always gets `LEAST_SHARE` of
the time, in pieces long enough for its caches to be worth filling.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
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
        self._owed_s = max(0.0, self._owed_s + elapsed_s * (LEAST_SHARE - ran))
        self._catches_up = self._owed_s > (0.0 if self._catches_up else MOST_OWED_S)
        return self._catches_up or not waited_for


@contextlib.contextmanager
def giving_way(process: Popen[str], home: Path) -> Iterator[None]:
    """Inside the block `process` and its descendants, a group of their own, stand still while somebody waits."""
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(process, home, ended), name="giving way", daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _watch(process: Popen[str], home: Path, ended: threading.Event) -> None:
    share, running, looked = Share(), True, time.monotonic()
    with contextlib.closing(Foreground(home)) as foreground:
        while not ended.wait(LOOK_S):
            now = time.monotonic()
            runs = share.runs(foreground.is_waited_for(), ran=running, elapsed_s=now - looked)
            looked = now
            if runs != running:
                running = runs
                _send(process, signal.SIGCONT if runs else signal.SIGSTOP)
    if not running:
        _send(process, signal.SIGCONT)


def _send(process: Popen[str], number: signal.Signals) -> None:
    if process.poll() is None:  # its number is not yet another's
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
