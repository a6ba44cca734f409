"""
Every write of the store's files: whole or not at all, and safe on the disk when it returns.

Failpoints make a step fail on purpose, for the tests of crashes and full disks. RYORIN_FAILPOINTS holds
`PATTERN:ACTION[:N]`, comma-separated. PATTERN matches `<kind>.<step>`: ids, vectors, codes or manifest with write,
fsync, rename or sync, and file.remove. ACTION is kill (SIGKILL to this process), enospc or eio. N makes it the Nth
time, `/N` every Nth time, nothing every time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

TEMPORARY = ".writing-"
_times: Counter[str] = Counter()


def reach(name: str) -> None:
    """Fail here if RYORIN_FAILPOINTS says so."""
    for spec in filter(None, os.environ.get("RYORIN_FAILPOINTS", "").split(",")):
        pattern, action, *when = spec.split(":")
        if not fnmatchcase(name, pattern):
            continue
        _times[spec] += 1
        nth = when[0] if when else "/1"
        if _times[spec] % int(nth[1:]) if nth.startswith("/") else _times[spec] != int(nth):
            continue
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError({"enospc": errno.ENOSPC, "eio": errno.EIO}[action], f"failpoint {name}")


def write_file(path: Path, data: Any, kind: str) -> None:
    """
    Make `path` hold `data` (bytes or an array): temporary file, fsync, rename, fsync of the folder.

    Raises OSError, and nothing is left behind unless the process died; `clear_temporary` removes that.
    """
    fresh = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with fresh.open("wb") as handle:
            reach(f"{kind}.write")
            handle.write(data)
            handle.flush()
            reach(f"{kind}.fsync")
            os.fsync(handle.fileno())
        reach(f"{kind}.rename")
        fresh.rename(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    reach(f"{kind}.sync")
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_file(path: Path) -> None:
    """Remove a file if it is there."""
    reach("file.remove")
    path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the folder's lock, made with the folder; yields whether it is held, always True with `wait`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def clear_temporary(folder: Path) -> None:
    """Remove what writers that died left; only with the folder's lock held."""
    for path in folder.glob(f"{TEMPORARY}*"):
        remove_file(path)
