"""What a response is as a document: its format, its name, its bytes, and what an HTML page says of itself."""

from __future__ import annotations

import mimetypes
from collections import defaultdict
from collections.abc import Mapping
from email.message import Message
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from ryorin.digests import sha256_bytes
from ryorin.errors import InvalidInput
from ryorin_index.parse import MEDIA_TYPES
from ryorin_index.parse.encoding import in_utf8
from ryorin_index.sandbox import call
from ryorin_index.sources.web.addresses import filename_of

_ALIASES = {
    "application/xhtml+xml": ".html",
    "text/x-markdown": ".md",
    "application/x-pdf": ".pdf",
    "application/csv": ".csv",
    "text/json": ".json",
    "application/x-ndjson": ".jsonl",
    "application/x-zip-compressed": ".zip",
}
_TEXT = (".html", ".htm", ".md", ".markdown", ".txt", ".csv", ".tsv")
_SHOWN_AS_TEXT = (".md", ".markdown", ".txt", ".csv", ".tsv", ".json", ".jsonl")
_UNKNOWN = ("application/octet-stream", "binary/octet-stream", "")
_MEDIA = ("image/", "video/", "audio/", "font/")


class Format(NamedTuple):
    """How a response is read. filename: with the suffix that gives the format. readable: whether there is a reader."""

    filename: str
    suffix: str
    charset: str
    readable: bool


class Links(NamedTuple):
    """What an HTML page says to a crawler, its addresses as they stand in it."""

    links: tuple[str, ...] = ()
    base: str = ""
    canonical: str = ""
    robots: tuple[tuple[str, str], ...] = ()
    cut: bool = False


def format_of(address: str, headers: Mapping[str, str]) -> Format:
    """
    The format of a response, from its Content-Type.

    Where that says nothing, or only that it is text, the suffix in the address says more.
    """
    header = Message()
    header["Content-Type"] = headers.get("content-type", "").splitlines()[0] if headers.get("content-type") else ""
    # get_content_type answers text/plain for what it cannot read
    given = header.get_content_type() if "/" in header["Content-Type"] else ""
    written = PurePosixPath(urlsplit(address).path).suffix.lower()
    suffixes = _by_media_type().get(given, ())
    if given == "text/plain" and written in _SHOWN_AS_TEXT:
        suffixes = (written,)
    elif given in _UNKNOWN:
        suffixes = (written,) if written in MEDIA_TYPES else () if given else (".html",)
    readable = bool(suffixes)
    if not suffixes:
        guess = mimetypes.guess_extension(given) or ".bin"
        suffixes = (guess if guess not in MEDIA_TYPES else ".bin",)
    name = filename_of(address, suffixes)
    charset = header.get_content_charset("") or ""
    return Format(name, PurePosixPath(name).suffix.lower(), charset, readable)


def expected_filename(address: str) -> str:
    """The file name of a page that did not come: of the format in its address, else HTML."""
    written = PurePosixPath(urlsplit(address).path).suffix.lower()
    return filename_of(address, [written if written in MEDIA_TYPES else ".html"])


def is_media(address: str) -> bool:
    """Whether an address is that of a picture, a sound or the like by its name: not worth a request."""
    guess, _ = mimetypes.guess_type(urlsplit(address).path)
    return guess is not None and guess.startswith(_MEDIA)


def media_filename(address: str) -> str:
    """The file name of such an address."""
    return filename_of(address, [PurePosixPath(urlsplit(address).path).suffix])


def is_readable(address: str, headers: Mapping[str, str]) -> bool:
    """Whether there is a reader for a response."""
    return format_of(address, headers).readable


def document_bytes(form: Format, body: bytes) -> bytes:
    """The body as the readers take it: a text in the encoding that its header named becomes UTF-8."""
    return in_utf8(body, form.charset) if form.suffix in _TEXT and form.charset else body


def fingerprint(form: Format, data: bytes) -> str:
    """Size, digest and format: what a server without ETag is told by, and one whose ETag changes without need."""
    return f"{len(data)}:{sha256_bytes(data)[:32]}{form.suffix}"


def links_of(form: Format, data: bytes) -> Links:
    """What a page says to a crawler; nothing for other formats, and for a page that cannot be read."""
    if form.suffix not in (".html", ".htm") or not data:
        return Links()
    try:
        found = call("ryorin_index.parse.links:find", form.filename, data)[0]
    except InvalidInput:
        return Links()  # told when it is read
    return Links(
        tuple(map(str, found["links"])),
        str(found["base"]),
        str(found["canonical"]),
        tuple((str(agent), str(rules)) for agent, rules in found["robots"]),
        bool(found["cut"]),
    )


def _by_media_type() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for suffix, media_type in MEDIA_TYPES.items():
        found[media_type] += (suffix,)
    return found | {alias: (suffix,) for alias, suffix in _ALIASES.items()}
