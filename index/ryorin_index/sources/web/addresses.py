"""Web addresses: one way to write each, and which of them belong to a source."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

import httpx

from ryorin_index.sources.folder import path_filter

MAX_CHARACTERS = 2_000
DEFAULT_PORTS = {"http": 80, "https": 443}
_ESCAPED = re.compile("%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")
_SITEMAP = re.compile(r"\.xml(\.gz)?$|sitemap[^/]*\.(txt|gz)$", re.IGNORECASE)


def normalised(address: str, base: str | None = None) -> str | None:
    """
    An address as RFC 3986, 6.2 writes it, without its fragment; None for what is no address of a web page.

    base: the address of the page it stands in. None too for other schemes, for one with a name or a password in it,
    and for one that is longer than MAX_CHARACTERS.
    """
    try:
        joined = str(httpx.URL(base).join(address) if base else httpx.URL(address))
        url = httpx.URL(_ESCAPED.sub(_least_escaped, joined))
    except (httpx.InvalidURL, ValueError):
        return None
    if url.scheme not in DEFAULT_PORTS or not url.host or url.userinfo or not 0 < (url.port or 80) < 1 << 16:
        return None
    # '!/' marks what lies within an archive (`ryorin_index.members`)
    path = url.raw_path.decode("ascii").replace("!/", "%21/")
    written = f"{url.scheme}://{url.netloc.decode('ascii')}{path}"
    return written if len(written) <= MAX_CHARACTERS else None


def _least_escaped(escape: re.Match[str]) -> str:
    """A %-escape in capitals, or the character itself where it needs none."""
    letter = chr(int(escape[1], 16))
    return letter if letter in _UNRESERVED else escape[0].upper()


def port_of(address: str) -> int:
    """The port that an address leads to."""
    parts = urlsplit(address)
    return parts.port or DEFAULT_PORTS[parts.scheme]


def is_sitemap(address: str) -> bool:
    """Whether an address is a sitemap's by its name."""
    return _SITEMAP.search(urlsplit(address).path) is not None


def filename_of(address: str, suffixes: Sequence[str]) -> str:
    """A file name for a page, from its address: readable, with one of the suffixes (the first if it has none)."""
    parts = urlsplit(address)
    name = unquote(parts.path.rstrip("/").rpartition("/")[2], errors="replace") or parts.netloc
    if parts.query:
        name += "?" + unquote(parts.query, errors="replace")
    name = "".join(letter if letter.isprintable() and letter not in "/\\" else "_" for letter in name)[:150]
    return name if name.lower().endswith(tuple(suffixes)) else name + suffixes[0]


class Scope:
    """
    What belongs to a source: its host, what lies below its path, what the globs let through.

    root: the source's normalised address. whole_site: any path. include, exclude: globs of path and query, '/' first;
    '*' matches '/' too.
    """

    def __init__(
        self, root: str, whole_site: bool = False, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self._root, self._parts = root, urlsplit(root)
        path = self._parts.path
        last = path.rpartition("/")[2]
        # '/docs' is a folder, as servers take it; '/docs/index.html' and '/docs/sitemap.xml' lie in one.
        folder = path.removesuffix(last) if "." in last or not last else f"{path}/"
        self.below = "/" if whole_site else folder
        self._globs = path_filter(include, exclude)

    def placed(self, address: str) -> str | None:
        """
        The address to ask for instead of a normalised one; None where that is of another site.

        A site of https has old links of http: they are asked for by https. The other way round it is another site.
        """
        parts = urlsplit(address)
        if parts.netloc != self._parts.netloc:
            return None
        if parts.scheme == self._parts.scheme:
            return address
        return f"https{address[4:]}" if self._parts.scheme == "https" and not parts.port else None

    def reaches(self, address: str) -> bool:
        """Whether a placed address lies below the source's path."""
        path = urlsplit(address).path
        return path.startswith(self.below) or path == self.below.rstrip("/") or address == self._root

    def wants(self, address: str) -> bool:
        """Whether a placed address is asked for: it lies below the path, and the globs let it through."""
        if address == self._root:
            return True
        parts = urlsplit(address)
        return self.reaches(address) and (
            self._globs is None or self._globs(f"{parts.path}?{parts.query}" if parts.query else parts.path)
        )
