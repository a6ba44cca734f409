"""Who waits for an answer of this process, for work in the background to give way."""

from __future__ import annotations

from collections.abc import Callable


class Foreground:
    """
    Who waits. One thread enters and leaves; any may look.

    waiting: how many wait now.
    """

    def __init__(self) -> None:
        self.waiting = 0

    def enter(self) -> Callable[[], None]:
        """Somebody waits, until what is returned is called; to call it again does nothing."""
        self.waiting += 1
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self.waiting -= 1

        return leave
