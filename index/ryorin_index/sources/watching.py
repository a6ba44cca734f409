"""
Telling when something changes below a folder, as long as a process runs.

The operating system says so (inotify); where it cannot, the folder is looked through every few seconds. What changed is
not said: a sync finds that by itself, and cheaply. So a change that was missed costs time and nothing else, and every
doubt (the watch stands anew, a new folder came, names that cannot be read) is told as a change.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import PurePath

from watchfiles import Change, watch

from ryorin_index.parse import MEDIA_TYPES

QUIET_MS = 100  # a change is told when nothing changed for so long: an editor's save is several changes
BUSY_MS = 2_000  # or after so long, if changes do not end
LOOK_MS = 200  # how often it is seen whether the folder is still the one that is watched
POLL_MS = 2_000
MISSING_S = 1.0
STAND_WAIT_S = 60.0


class FolderWatch:
    """
    Watches a folder in a thread of its own until it is closed.

    changed: called from that thread after each change, and whenever the watch stands anew or the folder went; what
    happens before such a call is not lost. told: gets a line for the operator.
    """

    def __init__(self, root: str, changed: Callable[[], None], told: Callable[[str], None]) -> None:
        self.root = root
        self._changed = changed
        self._told = told
        self._polling = False
        self._ended = threading.Event()
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {root}", daemon=True)

    def start(self) -> None:
        """Begin; returns when the watch stands or the folder is seen to be missing."""
        self._thread.start()
        self._looked.wait(STAND_WAIT_S)

    def close(self) -> None:
        """End the watch."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        missing = False
        while not self._ended.is_set():
            place = _identity(self.root)
            if place is None:
                if not missing:
                    self._say()
                missing = True
                self._ended.wait(MISSING_S)
                continue
            missing = False
            try:
                self._watch(place)
            except FileNotFoundError:
                continue  # it went in this moment
            except OSError as error:
                if self._polling:
                    self._told(f"{self.root} cannot be watched ({_reason(error)}); it is tried again")
                    self._ended.wait(POLL_MS / 1000)
                else:
                    self._polling = True
                    self._told(_advice(self.root, error))
            except RuntimeError as error:  # of watchfiles: too many watchers, or a name it cannot tell, not being UTF-8
                if "Too many open files" in str(error) and not self._polling:
                    self._polling = True
                    self._told(_advice(self.root, error))
                self._ended.wait(MISSING_S)

    def _watch(self, place: tuple[int, int]) -> None:
        """Until the folder at the path is another one, or a new folder in it wants to be watched too."""
        stands = False
        for changes in watch(
            self.root,
            watch_filter=self._matters,
            debounce=BUSY_MS,
            step=QUIET_MS,
            stop_event=self._ended,
            rust_timeout=LOOK_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            force_polling=self._polling,
            poll_delay_ms=POLL_MS,
            # It would hide that the limit is reached, too; polling has no limit.
            ignore_permission_denied=self._polling,
        ):
            if changes or not stands:
                stands = True
                self._say()
            if _identity(self.root) != place:
                return
            if not self._polling and any(change is Change.added and os.path.isdir(path) for change, path in changes):
                return  # watched by a new watch, which says when there are too many: this one would pass them over

    def _matters(self, change: Change, path: str) -> bool:
        """Whether a sync could see it. Hidden files and other formats are what editors and programs leave behind."""
        parts = PurePath(os.path.relpath(path, self.root)).parts
        if any(part.startswith(".") for part in parts):
            return False
        suffix = PurePath(path).suffix.lower()
        # Of what is gone it cannot be told whether it was a folder.
        return not suffix or suffix in MEDIA_TYPES or change is Change.deleted or os.path.isdir(path)

    def _say(self) -> None:
        self._changed()
        self._looked.set()


def _identity(root: str) -> tuple[int, int] | None:
    """Which folder is at the path: another one after a disk was mounted or the folder was replaced; None: none."""
    try:
        info = os.stat(root)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _advice(root: str, error: Exception) -> str:
    reason = _reason(error)
    if "limit" in reason or "open files" in reason:
        step = "raise fs.inotify.max_user_watches or max_user_instances (sysctl) and start again"
    else:
        step = "when that is mended, start again"
    return (
        f"{root}: the system cannot tell of changes ({reason}); it is looked through every {POLL_MS // 1000} s. {step}"
    )


def _reason(error: Exception) -> str:
    """The first words of the library's message; what follows is written for its developers."""
    return str(error).partition(" about [")[0].rstrip(".")
