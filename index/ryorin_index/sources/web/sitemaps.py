"""The pages that a site's sitemaps list."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from ryorin.errors import InvalidInput, Unavailable
from ryorin_index.sandbox import call
from ryorin_index.sources.web.access import Access
from ryorin_index.sources.web.fetch import refusal

MAX_SITEMAPS = 500


@dataclass
class Listing:
    """
    What sitemaps list. pages: placed addresses in their order, each once. read: the sitemaps that could be read.

    unread: those that could not, with the reason. cut: whether there are more than MAX_SITEMAPS.
    """

    pages: dict[str, None] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    unread: dict[str, InvalidInput | Unavailable] = field(default_factory=dict)
    cut: bool = False


def read_sitemaps(access: Access, addresses: Iterable[str]) -> Listing:
    """Read sitemaps and those that they list; what is of another site is passed over."""
    listing = Listing()
    waiting = deque(filter(None, map(access.place, addresses)))
    seen: set[str] = set()
    while waiting:
        address = waiting.popleft()
        if address in seen:
            continue
        if len(seen) >= MAX_SITEMAPS:
            listing.cut = True
            break
        seen.add(address)
        try:
            answer = access.fetch(address)
            if answer.status != 200:
                raise refusal(address, answer.status)
            found = call("ryorin_index.parse.sitemap:read", address.rpartition("/")[2], answer.body)[0]
        except (InvalidInput, Unavailable) as error:
            listing.unread[address] = error
            continue
        listing.read.append(address)
        waiting += filter(None, (access.place(str(link), address) for link in found["sitemaps"]))
        listing.pages |= dict.fromkeys(filter(None, (access.place(str(link), address) for link in found["pages"])))
    return listing
