"""
What lies within ZIP archives and e-mails. Nothing is unpacked to disk: a member is its name and its bytes.

Runs in the child. What cannot be a document (a link, a name that points elsewhere, a locked member) is refused by
name and the others go on; what is too much is refused as a whole, since it is a bomb or was packed by mistake.
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ryorin.errors import InvalidInput
from ryorin_index.parse import encoding, mail
from ryorin_index.parse.document import CONTAINERS, MEDIA_TYPES, clean, invalid

MAX_MEMBERS = 5_000
MAX_BYTES = 200 << 20
MAX_RATIO = 200
RATIO_FREE_BYTES = 4 << 20  # members up to this size may pack as well as they like
MAX_NAME_CHARACTERS = 240
MAX_DEPTH = 1  # containers within a container
_LOCKED, _UTF8 = 0x1, 0x800
_BLOCK = 1 << 20


def prepare(name: str) -> None:
    """Import what expanding needs."""
    mail.prepare()


def expand(name: str, data: bytes) -> Iterator[dict[str, Any] | bytes]:
    """What `ryorin_index.parse.expand` passes on: the list, then the members' bytes in its order."""
    found = _Found(Path(name))
    found.look_into(Path(name), data, "", 0)
    yield {"members": list(found.members), "refused": found.refused, "skipped": found.skipped}
    yield from found.members.values()


class _Found:
    def __init__(self, whole: Path) -> None:
        self._whole = whole
        self._count = self._bytes = 0
        self.members: dict[str, bytes] = {}
        self.refused: list[tuple[str, str]] = []
        self.skipped: list[str] = []

    def look_into(self, path: Path, data: bytes, prefix: str, depth: int) -> None:
        """Take in the members of a container; `prefix` stands before their names."""
        reader = self._of_zip if path.suffix.lower() == ".zip" else self._of_mail
        for name, content in reader(path, data, prefix):
            shown = prefix + name
            suffix = PurePosixPath(name).suffix.lower()
            if shown in self.members:
                self.refused.append((shown, "is there twice; rename one"))
                continue
            if suffix != ".zip":
                self.members[shown] = content
            if suffix not in CONTAINERS:
                continue
            if depth >= MAX_DEPTH:
                if suffix == ".zip":
                    self.refused.append((shown, f"is an archive more than {MAX_DEPTH} deep; unpack it"))
                continue
            try:
                self.look_into(Path(PurePosixPath(name).name), content, f"{shown}!/", depth + 1)
            except _TooMuch:
                raise
            except Exception as error:
                self.refused.append((shown, f"cannot be opened ({str(error)[:200]})"))

    def _of_mail(self, path: Path, data: bytes, prefix: str) -> Iterator[tuple[str, bytes]]:
        for name, content in mail.attachments(path, mail.parse(path, data)):
            safe = _checked(PurePosixPath(name.replace("\\", "/")).name or name)
            self._take(content)
            if safe is None:
                self.refused.append((prefix + _shown(name), "has a name that no file can have"))
            elif PurePosixPath(safe).suffix.lower() not in MEDIA_TYPES:
                self.skipped.append(prefix + safe)
            else:
                yield safe, content

    def _of_zip(self, path: Path, data: bytes, prefix: str) -> Iterator[tuple[str, bytes]]:
        try:
            archive = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
            raise invalid(path, f"cannot be read as a ZIP archive ({str(error)[:200]}); pack it anew") from error
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            name = _name(entry)
            shown = prefix + _shown(name)
            if _passed_over(name):
                self.skipped.append(shown)
            elif _checked(name) is None:
                self.refused.append((shown, "has a name that points out of the archive or that no file can have"))
            elif stat.S_ISLNK(entry.external_attr >> 16):
                self.refused.append((shown, "is a link; links in archives are not followed"))
            elif entry.flag_bits & _LOCKED:
                self.refused.append((shown, "is encrypted; pack it without a password"))
            else:
                content = self._unpacked(archive, entry, shown)
                if content is not None:
                    yield name, content

    def _unpacked(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, shown: str) -> bytes | None:
        """A member's bytes, as many as there are, whatever the archive says; None where it is damaged."""
        self._take(b"")
        parts = []
        size = 0
        limit = max(RATIO_FREE_BYTES, MAX_RATIO * entry.compress_size)
        try:
            with archive.open(entry) as member:
                while block := member.read(_BLOCK):
                    size += len(block)
                    if size > limit:
                        raise _TooMuch(self._whole, f"packs {shown} more than {MAX_RATIO} : 1; that is a bomb")
                    self._take(block, count=0)
                    parts.append(block)
        except (
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            RuntimeError,
            EOFError,
            OSError,
            ValueError,
        ) as error:
            if isinstance(error, _TooMuch):
                raise
            self.refused.append((shown, f"cannot be unpacked ({str(error)[:200]})"))
            return None
        return b"".join(parts)

    def _take(self, content: bytes, count: int = 1) -> None:
        self._count += count
        self._bytes += len(content)
        if self._count > MAX_MEMBERS:
            raise _TooMuch(self._whole, f"holds more than {MAX_MEMBERS:,} files; pack them as several")
        if self._bytes > MAX_BYTES:
            raise _TooMuch(self._whole, f"unpacks to more than {MAX_BYTES >> 20:,} MB; pack it as several")


class _TooMuch(InvalidInput):
    """The whole is refused, not one member."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name} {reason}", code="invalid_file")


def _name(entry: zipfile.ZipInfo) -> str:
    """A member's name. Without the flag of UTF-8 it is in the encoding of the machine that packed it."""
    name = entry.orig_filename
    if not entry.flag_bits & _UTF8:
        raw = name.encode("cp437", "replace")
        if not raw.isascii() and b"\0" not in raw:
            name = encoding.decode(Path("name"), raw)
    return name.replace("\\", "/")


def _checked(name: str) -> str | None:
    """The name if it is that of a file below the archive; it never becomes a path, but is shown and may be copied."""
    parts = name.split("/")
    if not name or len(name) > MAX_NAME_CHARACTERS or ".." in parts or name.startswith("/") or ":" in parts[0]:
        return None
    return name if all(parts) and clean(name) == name and name.isprintable() else None


def _shown(name: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in clean(name))[:MAX_NAME_CHARACTERS]


def _passed_over(name: str) -> bool:
    """Hidden files, what macOS adds, and formats that are not read."""
    parts = PurePosixPath(name).parts
    hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
    return hidden or PurePosixPath(name).suffix.lower() not in MEDIA_TYPES
