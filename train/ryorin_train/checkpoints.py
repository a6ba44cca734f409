"""
What an interrupted training run continues from.

A run is known by its digest (tenant, base, prompt, data, recipe): the same command again finds what it left. Its folder
`<home>/checkpoints/<digest>/` holds the loss curve and the trainer's `checkpoint-<step>` folders; one counts only when
it is marked, after everything in it, and the curve up to it, is on the disk. The run that ends well takes the folder
away.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ryorin.blobs import sync_path
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

    @contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """
        Inside, the trainer's folder of this step and the curve up to it are written. Then they are on the disk, the
        folder is marked, and earlier ones are taken away; whatever stops that takes the half folder away instead.
        """
        folder = self.folder / f"{PREFIX}{step}"
        try:
            yield
            for path in (*folder.iterdir(), folder, self.curve, self.folder):
                sync_path(path)
            (folder / MARK).touch()
            sync_path(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
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
def checkpoints_of(settings: Settings, run_digest: str, say: Callable[[str], None]) -> Iterator[Checkpoints]:
    """
    The checkpoints of a run, for this process alone: it waits while another trains the same run, which may be finished
    afterwards. What is half is taken away. They are gone when the block ends without an error.
    """
    _forget_old(settings)
    folder = checkpoint_folder(settings, run_digest)
    with _lock_of(folder, say):
        for path in folder.glob(f"{PREFIX}*"):
            if not (path / MARK).exists():
                shutil.rmtree(path, ignore_errors=True)
        yield Checkpoints(folder)
        shutil.rmtree(folder, ignore_errors=True)


def checkpoint_folder(settings: Settings, run_digest: str) -> Path:
    """Where the checkpoints of a run lie."""
    return settings.checkpoints_dir / run_digest[:NAME_LENGTH]


@contextmanager
def _lock_of(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock in a folder, which is made; who held it before may have taken the folder away."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = (folder / LOCK).open("w")
        except FileNotFoundError:  # the folder has just been taken away
            continue
        with lock:
            if not _locked(lock.fileno()):
                say("the same run is being trained by another process; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(lock.fileno(), folder / LOCK):
                yield
                return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


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
