"""
Who is waited for on this machine: a mark that the gateway sets and that training looks at, to stand still meanwhile.

The mark is a lock on `<home>/answering.lock`, held shared by every gateway in which somebody waits, so the kernel takes
it away with the process that held it, however that ends.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

FOREGROUND_FILE = "answering.lock"


class Foreground:
    """
    The mark of one process. home: of the gateway and of those that are to see it.

    To enter and to leave costs microseconds; of several who wait only the first and the last reach the kernel.
    """

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._file = (home / FOREGROUND_FILE).open("w")
        self._waiting = 0

    def enter(self) -> Callable[[], None]:
        """Somebody waits, until what is returned is called; to call it again does nothing."""
        self._waiting += 1
        if self._waiting == 1:
            fcntl.flock(self._file, fcntl.LOCK_SH)  # waits for another's `is_waited_for`, for microseconds
        left = False

        def leave() -> None:
            nonlocal left
            if left:
                return
            left = True
            self._waiting -= 1
            if not self._waiting:
                fcntl.flock(self._file, fcntl.LOCK_UN)

        return leave

    def is_waited_for(self) -> bool:
        """Whether anybody waits in another process, or by another mark of this one."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        """Take the mark away for good."""
        self._file.close()
