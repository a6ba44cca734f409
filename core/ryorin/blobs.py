"""
Blobs: bytes that lie under their own SHA-256 in a folder, `ab/abcdef…`, written whole or not at all.

A blob never changes. Who needs it and when it may go is written in the catalog, by whoever kept it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ryorin.errors import InvalidInput, NotFound

_DIGEST = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 1 << 20


def blob_path(blobs_dir: Path, sha256: str) -> Path:
    """Where the blob of that digest lies, whether it is there or not. Raises InvalidInput for what is no digest."""
    if not _DIGEST.fullmatch(sha256):
        raise InvalidInput(f"{sha256!r} is no SHA-256 in hex")
    return blobs_dir / sha256[:2] / sha256


def keep_blob(blobs_dir: Path, content: bytes) -> str:
    """Write bytes unless they are there; returns their SHA-256."""
    return keep_chunks(blobs_dir, [content])[0]


def keep_chunks(blobs_dir: Path, chunks: Iterable[bytes]) -> tuple[str, int]:
    """
    Write bytes that come in pieces, without holding them all; returns (SHA-256, length).

    They are on the disk, under their name, when this returns. A run that is broken off leaves no blob.
    """
    with BlobWriter(blobs_dir) as writer:
        for chunk in chunks:
            writer.write(chunk)
        return writer.keep(), writer.length


class BlobWriter:
    """A blob that is being written, piece by piece; a context manager that leaves nothing unless it was kept."""

    def __init__(self, blobs_dir: Path) -> None:
        blobs_dir.mkdir(parents=True, exist_ok=True)
        self.length = 0
        self._folder = blobs_dir
        self._fresh = blobs_dir / f"new.{os.getpid()}.{secrets.token_hex(4)}"
        self._digest = hashlib.sha256()
        self._handle = self._fresh.open("wb")

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        self._handle.close()
        self._fresh.unlink(missing_ok=True)

    def write(self, piece: bytes) -> None:
        """Append a piece."""
        self._digest.update(piece)
        self.length += len(piece)
        self._handle.write(piece)

    def lines(self) -> Iterator[bytes]:
        """What was written so far, line by line with their ends."""
        self._handle.flush()
        with self._fresh.open("rb") as handle:
            yield from handle

    def keep(self) -> str:
        """Give the blob its name; it is on the disk when this returns. Its SHA-256."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        path = blob_path(self._folder, self._digest.hexdigest())
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            os.replace(self._fresh, path)
            sync_path(path.parent)
        return path.name


@contextmanager
def keeping(blobs_dir: Path, *, alone: bool = False) -> Iterator[None]:
    """
    While a blob is kept and its row is written: nobody removes it in between, because who removes is `alone`.

    A lock on the folder, between processes and threads.
    """
    blobs_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(blobs_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def check_blob(blobs_dir: Path, sha256: str) -> Path:
    """The path of a blob whose bytes are what its name says. Raises NotFound when it is gone, InvalidInput when not."""
    path = blob_path(blobs_dir, sha256)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as handle:
            while chunk := handle.read(_READ_BYTES):
                digest.update(chunk)
    except FileNotFoundError as missing:
        raise NotFound(f"the blob {sha256[:12]} is not in {blobs_dir}; bring it back from a copy") from missing
    if digest.hexdigest() != sha256:
        raise InvalidInput(f"the blob {sha256[:12]} in {blobs_dir} is damaged; bring it back from a copy")
    return path


def sync_path(path: Path) -> None:
    """Make sure that a file's content, or what was renamed into a folder, is there after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
