"""
What an interrupted training run continues from.

A run is known by its digest (tenant, base, prompt, data, recipe): the same command again finds what it left. Its folder
`<home>/checkpoints/<digest>/` holds the loss curve and the trainer's `checkpoint-<step>` folders; one counts only when
it is marked, after everything in it is on the disk. The run that ends well takes the folder away.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ryorin.errors import Conflict
from ryorin.settings import Settings

EVERY_S = 60.0
KEPT_DAYS = 14
PREFIX, MARK, LOCK = "checkpoint-", "complete", "lock"
CURVE_FILE = "loss.jsonl"
NAME_LENGTH = 32


class Checkpoints:
    """The checkpoints of one run, whose lock this process holds; see `checkpoints_of`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.every_s = EVERY_S

    @property
    def curve(self) -> Path:
        """The loss curve, which goes on after an interruption."""
        return self.folder / CURVE_FILE

    def latest(self) -> tuple[int, Path] | None:
        """The last step that can be continued from, and its folder."""
        found = [
            (int(path.name.removeprefix(PREFIX)), path)
            for path in self.folder.glob(f"{PREFIX}*")
            if path.name.removeprefix(PREFIX).isdigit() and (path / MARK).exists()
        ]
        return max(found, default=None)

    def confirm(self, step: int) -> None:
        """Mark the trainer's folder of this step as complete; earlier ones are taken away."""
        folder = self.folder / f"{PREFIX}{step}"
        for path in (*folder.iterdir(), folder):
            _sync(path)
        (folder / MARK).touch()
        _sync(folder)
        for path in self.folder.glob(f"{PREFIX}*"):
            if path != folder:
                shutil.rmtree(path, ignore_errors=True)

    def forget(self) -> None:
        """Begin anew: take away what an interrupted run left."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
        self.curve.unlink(missing_ok=True)


@contextmanager
def checkpoints_of(settings: Settings, run_digest: str) -> Iterator[Checkpoints]:
    """
    The checkpoints of a run, for this process alone. They are gone when the block ends without an error.

    Raises Conflict while another process trains the same run.
    """
    _forget_old(settings)
    folder = checkpoint_folder(settings, run_digest)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        if not _locked(lock.fileno()):
            raise Conflict("the same run is being trained by another process; wait for it, or end it and repeat this")
        yield Checkpoints(folder)
        shutil.rmtree(folder, ignore_errors=True)


def checkpoint_folder(settings: Settings, run_digest: str) -> Path:
    """Where the checkpoints of a run lie."""
    return settings.checkpoints_dir / run_digest[:NAME_LENGTH]


def _forget_old(settings: Settings) -> None:
    """Take away what nobody continued for a while."""
    for path in settings.checkpoints_dir.glob(f"*/{LOCK}"):
        try:
            if path.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
                with path.open() as lock:
                    if _locked(lock.fileno()):
                        shutil.rmtree(path.parent, ignore_errors=True)
        except FileNotFoundError:  # another process has just cleared it away
            continue


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
