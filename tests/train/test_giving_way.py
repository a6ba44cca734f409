"""Training stands still while somebody waits for an answer, and gets its share of the time all the same."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ryorin.foreground import Foreground
from ryorin_train.giving_way import LEAST_SHARE, MOST_OWED_S, GivingWay, Share

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it looks into /proc")


def ran(waited_for: Callable[[float], bool], seconds: float) -> list[bool]:
    """Whether training runs, a hundred times a second."""
    share, running = Share(), True
    told = []
    for number in range(round(seconds * 100)):
        running = share.runs(waited_for(number / 100), ran=running, elapsed_s=0.01)
        told.append(running)
    return told


def test_training_stands_still_for_as_long_as_somebody_waits() -> None:
    told = ran(lambda now: 1 <= now < 2 or 5 <= now < 6, 10)
    assert told == [not (1 <= number / 100 < 2 or 5 <= number / 100 < 6) for number in range(1000)]


def test_where_somebody_always_waits_training_gets_its_share_in_long_pieces() -> None:
    told = ran(lambda now: True, 200)
    assert told[1000:].count(True) / len(told[1000:]) == pytest.approx(LEAST_SHARE, abs=0.03)
    changes = sum(one != other for one, other in itertools.pairwise(told))
    still_s = MOST_OWED_S / LEAST_SHARE
    assert changes <= 2 * (200 / still_s) + 2
    assert told[: int(still_s * 100) - 10].count(True) == 0


def test_who_comes_and_goes_does_not_keep_training_from_its_share() -> None:
    told = ran(lambda now: now % 10 < 9.9, 1000)
    assert told.count(True) / len(told) >= LEAST_SHARE - 0.01


def test_training_that_runs_half_of_the_time_owes_nothing() -> None:
    told = ran(lambda now: now % 1 < 0.5, 100)
    assert told == [number % 100 >= 50 for number in range(10_000)]


def state_of(pid: int) -> str:
    """'T' of a process that was stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def eventually(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def child() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process in a group of its own, and the number of its own child."""
    command = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def watched(child: tuple[subprocess.Popen[str], int]) -> GivingWay:
    """What stops the process, with nobody waiting yet."""
    return GivingWay(child[0], Foreground())


def test_the_processes_stop_and_go_on_with_who_waits_and_go_on_at_the_end(
    child: tuple[subprocess.Popen[str], int], watched: GivingWay
) -> None:
    process, grandchild = child
    watched.may_stop.set()
    with watched.watching():
        for _ in range(2):
            leave = watched.foreground.enter()
            eventually(lambda: state_of(process.pid) == state_of(grandchild) == "T")
            leave()
            eventually(lambda: "T" not in (state_of(process.pid), state_of(grandchild)))
        watched.foreground.enter()
        eventually(lambda: state_of(grandchild) == "T")
    assert "T" not in (state_of(process.pid), state_of(grandchild))


def test_a_process_that_may_hold_what_others_need_is_not_stopped(
    child: tuple[subprocess.Popen[str], int], watched: GivingWay
) -> None:
    process, _ = child
    watched.foreground.enter()
    with watched.watching():
        time.sleep(0.2)
        assert state_of(process.pid) != "T"
        watched.may_stop.set()
        eventually(lambda: state_of(process.pid) == "T")
        watched.may_stop.clear()
        eventually(lambda: state_of(process.pid) != "T")


def test_what_is_left_of_the_processes_goes_on_when_the_first_of_them_died(
    child: tuple[subprocess.Popen[str], int], watched: GivingWay
) -> None:
    process, grandchild = child
    watched.may_stop.set()
    watched.foreground.enter()
    with watched.watching():
        eventually(lambda: state_of(grandchild) == "T")
        process.kill()
        process.wait()
    assert state_of(grandchild) != "T"
