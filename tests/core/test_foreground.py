"""The mark that somebody waits for an answer on this machine."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

from ryorin.foreground import Foreground


def test_it_is_seen_until_the_last_who_waits_has_left_and_leaving_twice_counts_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with contextlib.closing(Foreground(home)) as gateway, contextlib.closing(Foreground(home)) as training:
        assert not training.is_waited_for()
        first, second = gateway.enter(), gateway.enter()
        assert training.is_waited_for()
        first()
        first()
        assert training.is_waited_for()
        second()
        assert not training.is_waited_for()
        third = gateway.enter()
        second()
        assert training.is_waited_for()
        third()
        assert not training.is_waited_for()


def test_each_of_several_gateways_marks_for_itself_and_one_that_is_killed_no_longer(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from ryorin.foreground import Foreground\n"
        "mark = Foreground(Path(sys.argv[1]))\n"
        "mark.enter()\n"
        "print('entered', flush=True)\n"
        "time.sleep(60)\n"
    )
    with (
        contextlib.closing(Foreground(tmp_path)) as gateway,
        contextlib.closing(Foreground(tmp_path)) as training,
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other,
    ):
        assert other.stdout is not None
        leave = gateway.enter()
        assert other.stdout.readline() == "entered\n"
        leave()
        assert training.is_waited_for()
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert not training.is_waited_for()
