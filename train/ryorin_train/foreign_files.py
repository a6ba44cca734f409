"""
Taking two files out of a folder or a ZIP that somebody else made.

Nothing is read in place: a file is opened once, without following links, copied up to a limit, and whoever needs its
content reads the copy. So it does not matter what becomes of the original meanwhile. Other files are not touched; what
cannot be meant well (a link, a device, a pickle, a name that leads out of the archive) is refused as a whole.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from ryorin.adapter_files import CODE_BEARING, CONFIG_FILE, WEIGHTS_FILE
from ryorin.errors import InvalidInput, NotFound, RyorinError

MAX_ENTRIES = 1000
MAX_ARCHIVE_BYTES = 8 * 2**30
MAX_DIRECTORY_BYTES = 2**20  # of a ZIP's central directory, and of any single read while it is opened
_CHUNK_BYTES = 2**20
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED = 0x1


class Source(Protocol):
    """An adapter from elsewhere. ignored: names of the files beside the two that are taken."""

    ignored: list[str]

    def copy(self, name: str, target: Path, limit: int) -> None:
        """Copy one of the two files, of `limit` bytes at most. Raises InvalidInput."""


@contextmanager
def opened_source(path: Path, scratch: Path) -> Iterator[Source]:
    """
    A folder or a ZIP file. scratch: an empty folder for the copy of the ZIP.

    Raises NotFound when there is none, InvalidInput when it cannot be one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe does not make it wait
    except FileNotFoundError as missing:
        raise NotFound(f"there is no {path}", param="source") from missing
    except OSError as error:
        raise InvalidInput(f"{path} cannot be opened: {error.strerror}", param="source") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            yield _Folder(path.name, descriptor)
        elif stat.S_ISREG(mode):
            archive = scratch / "archive"
            _copy_descriptor(path.name, descriptor, archive, MAX_ARCHIVE_BYTES)
            with archive.open("rb") as handle, _opened_zip(path.name, handle) as opened:
                yield _Archive(path.name, opened)
        else:
            raise InvalidInput(f"{path} is neither a folder nor a file", param="source")
    finally:
        os.close(descriptor)


class _Folder:
    def __init__(self, name: str, descriptor: int) -> None:
        self._name, self._descriptor = name, descriptor
        self.ignored: list[str] = []
        with os.scandir(descriptor) as entries:
            for number, entry in enumerate(entries, start=1):
                if number > MAX_ENTRIES:
                    raise InvalidInput(f"{name} holds more than {MAX_ENTRIES} files; an adapter is two")
                if entry.is_symlink():
                    raise InvalidInput(
                        f"{name} holds the symbolic link {_short(entry.name)}; copy the folder with its content "
                        "(cp -rL) and import the copy"
                    )
                if not entry.is_file() and not entry.is_dir():
                    raise InvalidInput(f"{name} holds {_short(entry.name)}, which is no file (a device or a pipe)")
                _refuse_code(entry.name)
                if entry.name not in (CONFIG_FILE, WEIGHTS_FILE):
                    self.ignored.append(plain(entry.name))
        self.ignored.sort()

    def copy(self, name: str, target: Path, limit: int) -> None:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except FileNotFoundError as missing:
            raise InvalidInput(f"{self._name} has no {name}") from missing
        except OSError as error:
            raise InvalidInput(f"{name} in {self._name} cannot be opened: {error.strerror}") from error
        try:
            _copy_descriptor(name, descriptor, target, limit)
        finally:
            os.close(descriptor)


class _Archive:
    def __init__(self, name: str, opened: zipfile.ZipFile) -> None:
        self._name, self._opened = name, opened
        entries = opened.infolist()
        if len(entries) > MAX_ENTRIES:
            raise InvalidInput(f"{name} holds {len(entries)} entries; {MAX_ENTRIES} at most are looked at")
        for entry in entries:
            _check_entry(name, entry)
        names = [entry.filename for entry in entries]
        if len(set(names)) != len(names):
            twice = next(one for one in names if names.count(one) > 1)
            raise InvalidInput(f"{name} holds {_short(twice)} twice")
        configs = [one for one in names if one.count("/") <= 1 and PurePosixPath(one).name == CONFIG_FILE]
        if len(configs) != 1:
            raise InvalidInput(
                f"{name} has {len(configs) or 'no'} {CONFIG_FILE}; it must lie once, at the top or in one folder"
            )
        self._at = configs[0][: -len(CONFIG_FILE)]
        self._entries = {entry.filename: entry for entry in entries}
        wanted = {self._at + CONFIG_FILE, self._at + WEIGHTS_FILE}
        self.ignored = sorted(one for one in names if one not in wanted and not one.endswith("/"))

    def copy(self, name: str, target: Path, limit: int) -> None:
        entry = self._entries.get(self._at + name)
        if entry is None:
            raise InvalidInput(f"{self._name} has no {name}")
        if entry.file_size > limit:
            raise _too_large(name, entry.file_size, limit)
        with _explained(self._name), self._opened.open(entry) as packed, target.open("xb") as copy:
            written = _copy(packed.read, copy, name, limit)
        if written != entry.file_size:
            raise InvalidInput(f"{name} in {self._name} has {written:,} bytes, its directory says {entry.file_size:,}")


def _check_entry(archive: str, entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename
    parts = PurePosixPath(name).parts
    if "\0" in name or "\\" in name or not name.isprintable() or len(name.encode(errors="replace")) > 1024:
        raise InvalidInput(f"{archive} holds the name {_short(name)}, which is no plain path")
    if name.startswith("/") or ".." in parts or ":" in name:
        raise InvalidInput(f"{archive} holds the name {_short(name)}, which leads out of the archive")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise InvalidInput(f"{archive} holds the symbolic link {_short(name)}")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InvalidInput(f"{archive} holds {_short(name)}, which is no file (a device or a pipe)")
    if entry.flag_bits & _ENCRYPTED:
        raise InvalidInput(f"{_short(name)} in {archive} is encrypted; unpack it and import the folder")
    if entry.compress_type not in _METHODS:
        raise InvalidInput(
            f"{_short(name)} in {archive} is packed by method {entry.compress_type}; only deflate is read"
        )
    _refuse_code(name)


def _refuse_code(name: str) -> None:
    if PurePosixPath(name).suffix.lower() in CODE_BEARING:
        raise InvalidInput(
            f"{_short(name)} may be a pickle or code, which can run when it is read; remove it and import again. If "
            "the weights are in it and you trust it, load it with PEFT on a machine of no consequence and save it with "
            f"save_pretrained(FOLDER, safe_serialization=True), which writes {WEIGHTS_FILE}"
        )


def _opened_zip(name: str, handle: IO[bytes]) -> zipfile.ZipFile:
    with _explained(name):
        return zipfile.ZipFile(_Bounded(handle))


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What zipfile raises for a damaged or hostile archive, in words."""
    try:
        yield
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, NotImplementedError, UnicodeError) as error:
        raise InvalidInput(
            f"{name} is neither a folder nor a ZIP archive that can be read: {error or type(error).__name__}"
        ) from error
    except (ValueError, OverflowError, RuntimeError) as error:
        if isinstance(error, RyorinError):
            raise
        raise InvalidInput(f"{name} cannot be read as a ZIP archive: {error}") from error


class _Bounded(io.RawIOBase):
    """A file that gives no more than `MAX_DIRECTORY_BYTES` in one read: zipfile reads the whole directory in one."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle

    def read(self, size: int = -1) -> bytes:
        """As a file's, but refuses to give much at once."""
        if size > MAX_DIRECTORY_BYTES:
            raise InvalidInput(f"the ZIP's directory is said to have {size:,} bytes; {MAX_DIRECTORY_BYTES:,} at most")
        return self._handle.read(size if size >= 0 else MAX_DIRECTORY_BYTES)  # without a size it reads a comment

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file's."""
        if whence == os.SEEK_SET and offset < 0:
            raise zipfile.BadZipFile("an offset is negative")
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        """As a file's."""
        return self._handle.tell()

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readable(self) -> bool:
        """Yes."""
        return True


def _copy_descriptor(name: str, descriptor: int, target: Path, limit: int) -> None:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        raise InvalidInput(f"{name} is no file (a folder, a device or a pipe)")
    if before.st_size > limit:
        raise _too_large(name, before.st_size, limit)
    with target.open("xb") as copy:
        written = _copy(lambda size: os.read(descriptor, size), copy, name, limit)
    after = os.fstat(descriptor)
    if written != before.st_size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise InvalidInput(f"{name} was written to while it was copied; import it again when it is finished")


def _copy(read: Callable[[int], bytes], copy: IO[bytes], name: str, limit: int) -> int:
    """The bytes copied. Raises InvalidInput when there are more than `limit`."""
    written = 0
    while chunk := read(_CHUNK_BYTES):
        written += len(chunk)
        if written > limit:
            raise _too_large(name, written, limit)
        copy.write(chunk)
    return written


def _too_large(name: str, size: int, limit: int) -> InvalidInput:
    return InvalidInput(f"{name} has {size:,} bytes or more; for this base model and rank {limit:,} are possible")


def plain(name: str) -> str:
    """A name that is kept and shown: what a terminal would obey, or UTF-8 does not know, as an escape."""
    return name if name.isprintable() else repr(name)[1:-1]


def _short(name: str) -> str:
    text = repr(name)
    return text if len(text) <= 120 else f"{text[:117]}…"
