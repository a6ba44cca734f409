"""The demo's commands: what they print, how they fail, and that Ctrl-C lets them clean up."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from ryorin.commands.common import stopping_in_order
from ryorin.errors import RyorinError
from ryorin_demo import stages

CLEANS_UP = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    open(sys.argv[1] + ".begun", "w").close()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    open(sys.argv[1], "w").close()
    sys.exit(130)
"""


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` and `ask` start Python code instead of ryorin."""
    monkeypatch.setattr(stages, "ryorin_command", lambda: [sys.executable, "-c"])


def test_the_json_of_a_command_is_returned(commands: None) -> None:
    assert stages.ask("import sys; print('{\"words\": ' + str(len(sys.argv)) + '}')") == {"words": 2}


def test_a_failed_command_is_named(commands: None) -> None:
    with pytest.raises(RyorinError, match="failed with exit code 3"):
        stages.run("raise SystemExit(3)")


@pytest.mark.parametrize(("how", "background"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_the_end_reaches_the_command_once_and_waits_for_it(
    commands: None, tmp_path: Path, how: signal.Signals, background: bool
) -> None:
    mark = tmp_path / "cleaned"

    def interrupt() -> None:
        while not Path(f"{mark}.begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), how)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGINT)
    if background:  # as a shell starts what is to run in the background
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), stopping_in_order():
            stages.run(CLEANS_UP, str(mark))
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert mark.exists()
