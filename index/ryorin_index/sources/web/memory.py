"""What a web source keeps between two runs, in its row; and the bodies it keeps on disk during one."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1
MAX_VALIDATOR_CHARACTERS = 512
SPOOL_BYTES = 2 << 30


@dataclass(frozen=True)
class Remembered:
    """
    A page as it was last read.

    etag, modified: what the server gave to ask again with. links: the addresses of the source that it leads to, which
    a page that did not change, or does not answer, still leads to. canonical: the address it wants to be known by, if
    another. indexed: whether it may be a document.
    """

    etag: str = ""
    modified: str = ""
    fingerprint: str = ""
    filename: str = ""
    links: tuple[str, ...] = ()
    canonical: str = ""
    indexed: bool = True

    def conditions(self) -> dict[str, str]:
        """The headers of a request that is answered with 304 if nothing changed (RFC 9110, 13.1)."""
        given = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        return {name: value for name, value in given.items() if value}


@dataclass
class Memory:
    """The pages by address, and the sitemaps that could be read."""

    pages: dict[str, Remembered] = field(default_factory=dict)
    sitemaps: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Memory:
        """What `to_json` wrote; nothing of another version, which costs the pages once."""
        if state.get("version") != VERSION:
            return cls()
        table = state["addresses"]
        pages = {
            table[at]: Remembered(etag, modified, mark, name, tuple(table[link] for link in links), canonical, indexed)
            for at, etag, modified, mark, name, links, canonical, indexed in state["pages"]
        }
        return cls(pages, list(state["sitemaps"]))

    def to_json(self) -> dict[str, Any]:
        """As JSON; every address is written once, since most pages of a site lead to the same ones."""
        table: dict[str, int] = {}

        def numbers(addresses: Iterable[str]) -> list[int]:
            return [table.setdefault(address, len(table)) for address in addresses]

        rows = [
            [
                *numbers([address]),
                *(page.etag, page.modified, page.fingerprint, page.filename),
                numbers(page.links),
                *(page.canonical, page.indexed),
            ]
            for address, page in self.pages.items()
        ]
        return {"version": VERSION, "addresses": list(table), "pages": rows, "sitemaps": self.sitemaps}


def validator(value: str) -> str:
    """An ETag or date as it may be kept and sent back; nothing for one that is neither."""
    return value if value.isascii() and value.isprintable() and len(value) <= MAX_VALIDATOR_CHARACTERS else ""


class Spool:
    """Bodies on disk, from when a page is found until the run ends, within a bound. Any thread may read."""

    def __init__(self, folder: Path, limit: int = SPOOL_BYTES) -> None:
        self._folder, self._left = folder, limit
        self._lock = threading.Lock()
        self._paths: dict[str, Path] = {}

    def put(self, source: str, data: bytes) -> None:
        """Keep a body, if there is room."""
        with self._lock:
            if len(data) > self._left:
                return
            self._left -= len(data)
            if not self._paths:
                shutil.rmtree(self._folder, ignore_errors=True)  # of a run that was killed
                self._folder.mkdir(parents=True)
            path = self._folder / str(len(self._paths))
            path.write_bytes(data)
            self._paths[source] = path

    def get(self, source: str) -> bytes | None:
        """A body that was kept."""
        with self._lock:
            path = self._paths.get(source)
        return path.read_bytes() if path is not None else None

    def close(self) -> None:
        """Remove them all."""
        with self._lock:
            if self._paths:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._paths.clear()
