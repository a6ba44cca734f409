"""
Sitemaps: XML lists of pages or of other sitemaps, and plain lists of addresses; gzip too (https://www.sitemaps.org/protocol.html).

Runs in the child. Document types, and with them entities, are refused by defusedxml.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ryorin_index.parse.document import invalid

MAX_BYTES = 50 << 20  # unpacked, and
MAX_ENTRIES = 50_000  # in one file: the protocol's own limits
_GZIP_MAGIC = b"\x1f\x8b"
_ENTRIES = {"urlset": ("url", "pages"), "sitemapindex": ("sitemap", "sitemaps")}


def prepare(name: str) -> None:
    """Import what the reader needs."""
    import defusedxml.ElementTree  # noqa: F401


def read(name: str, data: bytes) -> Iterator[dict[str, list[str]]]:
    """{pages, sitemaps}: the addresses as they stand in it. Raises InvalidInput for what is no sitemap."""
    path = Path(name)
    data = _unpacked(path, data)
    found: dict[str, list[str]] = {"pages": [], "sitemaps": []}
    if data.lstrip()[:4].lower() == b"http":
        found["pages"] = data.decode("utf-8", errors="replace").split()
    else:
        root = _root(path, data)
        entry, kind = _ENTRIES.get(_local(root), ("", ""))
        if not entry:
            raise invalid(path, f"is no sitemap: its root is <{_local(root)[:40]}>, not <urlset> or <sitemapindex>")
        for element in root:
            if _local(element) == entry:
                found[kind] += [(part.text or "").strip() for part in element if _local(part) == "loc"]
    count = len(found["pages"]) + len(found["sitemaps"])
    if count > MAX_ENTRIES:
        raise invalid(path, f"lists {count:,} addresses, the protocol's limit is {MAX_ENTRIES:,}")
    yield found


def _unpacked(path: Path, data: bytes) -> bytes:
    if data.startswith(_GZIP_MAGIC):
        unpacker = zlib.decompressobj(wbits=31)
        try:
            data = unpacker.decompress(data, MAX_BYTES + 1)
        except zlib.error as error:
            raise invalid(path, f"is damaged gzip: {error}") from error
    if len(data) > MAX_BYTES:
        raise invalid(path, f"unpacks to more than {MAX_BYTES:,} bytes, the protocol's limit")
    return data


def _root(path: Path, data: bytes) -> Any:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        return fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        raise invalid(path, "has a document type or entities, which no sitemap needs: refused") from error
    except (ParseError, ValueError, LookupError) as error:
        raise invalid(path, f"is no XML: {error}") from error


def _local(element: Any) -> str:
    """A tag without its namespace, which sites write in many ways."""
    return str(element.tag).rpartition("}")[2].lower()
