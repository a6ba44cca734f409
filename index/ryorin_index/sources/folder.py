"""
A folder and what is below it; and single files, for `ryorin index add`.

Hidden files and folders, and links inside folders, are passed over. A fingerprint is size, time of change, time of the
inode's change and inode: whatever replaces a file, also one of equal size with its old time put back, differs in one.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from fnmatch import translate
from operator import attrgetter
from pathlib import Path
from typing import Any

from ryorin.errors import InvalidInput
from ryorin_index.sources.connector import Connector, Content, Item, check_size

CLOCK_TICK_NS = 50_000_000  # file systems' clocks step by some milliseconds: a younger file may change within its step


class Folder(Connector):
    """
    The files below a folder.

    include, exclude: globs of the path below the folder, '/' between its parts; '*' matches '/' too. No include means
    everything.
    """

    named_by_content = False

    def __init__(self, root: str, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self.root = root
        self.state: dict[str, Any] = {}
        self._wanted = path_filter(include, exclude)

    def items(self) -> Iterator[Item]:
        """The files by path. Raises InvalidInput when the folder is missing, OSError when a part may not be read."""
        if not os.path.isdir(self.root):
            raise InvalidInput(f"{self.root}: no such folder; is a disk not mounted?", param="uri")
        waiting = [self.root]
        while waiting:
            folders = []
            try:
                entries = sorted(os.scandir(waiting.pop()), key=attrgetter("name"))
            except (FileNotFoundError, NotADirectoryError):
                if not os.path.isdir(self.root):
                    raise
                continue  # it went while its parent was read
            for entry in entries:
                if entry.name[0] == ".":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    path = entry.path
                    if self._wanted is not None and not self._wanted(path[len(self.root) + 1 :]):
                        continue
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield Item(path, entry.name, fingerprint(info), info.st_size)
            waiting += reversed(folders)

    def read(self, item: Item) -> Content:
        """A file's bytes; never through a link."""
        return read_file(item)

    def close(self) -> None:
        """Nothing is held."""


class Files(Connector):
    """Files that were named one by one."""

    named_by_content = False

    def __init__(self, paths: Sequence[Path]) -> None:
        self.state: dict[str, Any] = {}
        self._paths = paths

    def items(self) -> Iterator[Item]:
        """The files in the order given."""
        for path in self._paths:
            try:
                info = path.stat()
            except OSError:  # told when it is read
                yield Item(str(path), path.name, "", -1)
            else:
                yield Item(str(path), path.name, fingerprint(info), info.st_size)

    def read(self, item: Item) -> Content:
        """A file's bytes."""
        return read_file(item)

    def close(self) -> None:
        """Nothing is held."""


def find_files(paths: Sequence[Path], suffixes: frozenset[str]) -> tuple[list[Path], list[Path]]:
    """
    The files that `paths` name, folders searched through: (those with one of the suffixes, the others in folders).

    Raises InvalidInput for a path that does not exist and OSError for a folder that may not be read; a file that is
    named itself is taken whatever its format, so that its error is reported.
    """
    files: dict[Path, None] = {}
    skipped: list[Path] = []
    for path in paths:
        if path.is_dir():
            for item in Folder(str(path.resolve())).items():
                found = Path(item.source)
                if found.suffix.lower() in suffixes:
                    files[found] = None
                else:
                    skipped.append(found)
        elif path.is_file():
            files[path.resolve()] = None
        else:
            raise InvalidInput(f"{path}: no such file or folder", param="path")
    return list(files), skipped


def read_file(item: Item) -> Content:
    """A file's bytes, and the fingerprint it had when they were read. Raises InvalidInput for what is no file."""
    # O_NONBLOCK: a pipe of that name would wait for a writer
    descriptor = os.open(item.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise InvalidInput(f"{item.filename} is not a regular file", code="invalid_file")
        check_size(item.filename, info.st_size)
        data = handle.read(info.st_size + 1)
    certain = len(data) == info.st_size and time.time_ns() - info.st_ctime_ns > CLOCK_TICK_NS
    return Content(data[: info.st_size], fingerprint(info) if certain else f"{info.st_size}:?")


def fingerprint(info: os.stat_result) -> str:
    """What changes when a file does."""
    return f"{info.st_size}:{info.st_mtime_ns:x}:{info.st_ctime_ns:x}:{info.st_ino:x}"


def path_filter(include: Sequence[str], exclude: Sequence[str]) -> Any:
    """A function that says whether a path below the source's root is wanted; None when all are."""
    if not include and not exclude:
        return None
    wanted = re.compile("|".join(map(translate, include)) or ".*", re.DOTALL)
    unwanted = re.compile("|".join(map(translate, exclude)) or r"(?!)")
    return lambda path: wanted.match(path) is not None and unwanted.match(path) is None
