"""What a site allows a crawler: robots.txt (RFC 9309), robots meta tags and X-Robots-Tag."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from protego import Protego

from ryorin.errors import InvalidInput, Unavailable
from ryorin_index.sources.web.fetch import Answer

AGENT = "ryorin"
MAX_BYTES = 500 << 10  # RFC 9309, 2.5
MAX_DELAY_S = 60.0
_WITH_VALUES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


class Robots:
    """The robots.txt of one host. Raises Unavailable for an answer that does not say what is allowed."""

    def __init__(self, address: str, answer: Answer) -> None:
        if answer.status == 429 or answer.status >= 500 or answer.status < 200:
            raise Unavailable(f"{address} answers {answer.status}; until it says what is allowed, nothing is read")
        text = answer.body[:MAX_BYTES].decode("utf-8-sig", errors="replace") if answer.status == 200 else ""
        self._address, self._rules = address, Protego.parse(text)
        self.sitemaps = tuple(self._rules.sitemaps)

    def allows(self, address: str) -> bool:
        """Whether this crawler may ask for an address of the host."""
        return self._rules.can_fetch(address, AGENT)

    @property
    def delay_s(self) -> float:
        """Between two requests. Raises InvalidInput where that is more than MAX_DELAY_S."""
        rate = self._rules.request_rate(AGENT)
        delay_s = max(self._rules.crawl_delay(AGENT) or 0.0, rate.seconds / rate.requests if rate else 0.0)
        if delay_s > MAX_DELAY_S:
            raise InvalidInput(
                f"{self._address} asks for {delay_s:,.0f} s between requests, the limit is {MAX_DELAY_S:.0f}: "
                "ask the site's owner for other rules, or for its files",
                param="uri",
            )
        return delay_s


class Directives(NamedTuple):
    """What is said of one page."""

    noindex: bool
    nofollow: bool


def directives(header: str, tags: Iterable[tuple[str, str]]) -> Directives:
    """
    What a page's X-Robots-Tag headers (one a line) and its meta tags (agent, rules) say to this crawler.

    https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag
    """
    said: set[str] = {rule.strip() for agent, rules in tags if agent in ("robots", AGENT) for rule in rules.split(",")}
    for line in header.lower().splitlines():
        agent = AGENT
        for part in line.split(","):
            name, colon, rest = part.partition(":")
            if colon and name.strip() in _WITH_VALUES:
                continue
            if colon:
                agent, part = name.strip(), rest
            if agent == AGENT:
                said.add(part.strip())
    return Directives(bool(said & {"noindex", "none"}), bool(said & {"nofollow", "none"}))
