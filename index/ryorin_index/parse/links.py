"""
What an HTML page tells a crawler: its links, its canonical address, what robots may do with it.

Runs in the child, as everything that reads a stranger's bytes. One pass over the tags, no tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from ryorin_index.parse import encoding, html

MAX_LINKS = 2_000  # different ones of a page
MAX_LINK_CHARACTERS = 2_000
_MAX_RULES = 20
_LINKING = {"a": "href", "area": "href", "frame": "src", "iframe": "src"}


def prepare(name: str) -> None:
    """Import what the reader needs."""
    encoding.prepare()


def find(name: str, data: bytes) -> Iterator[dict[str, Any]]:
    """
    {links, base, canonical, robots, cut} of a page, the addresses as they stand in it.

    links: those whose rel does not say nofollow. robots: (agent, rules) of each such meta tag, in lower case.
    cut: whether there are more than MAX_LINKS.
    """
    page = _Page()
    page.feed(encoding.decode(Path(name), data, html.declared(data)))
    page.close()
    yield {
        "links": list(page.links)[:MAX_LINKS],
        "base": page.base,
        "canonical": page.canonical,
        "robots": page.robots,
        "cut": len(page.links) > MAX_LINKS,
    }


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.links: dict[str, None] = {}
        self.base = self.canonical = ""
        self.robots: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take in a tag that says where something lies."""
        values = {name: value or "" for name, value in reversed(attrs)}  # of two of a name, the first counts
        relations = values.get("rel", "").lower().split()
        if tag in _LINKING:
            address = _address(values.get(_LINKING[tag], ""))
            if address and "nofollow" not in relations and len(self.links) <= MAX_LINKS:
                self.links[address] = None
        elif tag == "base" and not self.base:
            self.base = _address(values.get("href", ""))
        elif tag == "link" and "canonical" in relations and not self.canonical:
            self.canonical = _address(values.get("href", ""))
        elif tag == "meta" and len(self.robots) < _MAX_RULES:
            agent = values.get("name", "").strip().lower()
            if agent in ("robots", "ryorin"):
                self.robots.append((agent, values.get("content", "").lower()[:MAX_LINK_CHARACTERS]))


def _address(value: str) -> str:
    """Without what browsers drop: spaces around it, line ends and tabs in it."""
    address = value.strip().translate({9: None, 10: None, 13: None})
    return "" if len(address) > MAX_LINK_CHARACTERS or address.startswith("#") else address
