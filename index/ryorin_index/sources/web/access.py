"""What of a site may be asked for, and asking for it: the source's scope, robots.txt and requests together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from urllib.parse import urlsplit

from ryorin.errors import InvalidInput
from ryorin_index.sources.web.addresses import Scope, normalised
from ryorin_index.sources.web.fetch import Answer, Fetcher
from ryorin_index.sources.web.robots import Robots

MAX_REDIRECTS = 5


class Access:
    """A site as the source `root` sees it: one scheme, host and port, and so one robots.txt."""

    def __init__(self, root: str, scope: Scope, fetcher: Fetcher) -> None:
        self._root, self._scope, self._fetcher = root, scope, fetcher
        parts = urlsplit(root)
        self._origin = f"{parts.scheme}://{parts.netloc}"

    def place(self, link: str, base: str | None = None) -> str | None:
        """The address that a link in `base` leads to; None where that is another site."""
        address = normalised(link, base or self._root)
        return self._scope.placed(address) if address is not None else None

    def allows(self, address: str) -> bool:
        """Whether robots.txt lets a placed address be asked for. The first call asks for it; raises as `robots`."""
        return self.robots.allows(address)

    @cached_property
    def robots(self) -> Robots:
        """The site's robots.txt; its pace holds from then on. Raises as `fetch` and `Robots`."""
        address = f"{self._origin}/robots.txt"
        robots = Robots(address, self.fetch(address))
        self._fetcher.delay_s = max(self._fetcher.delay_s, robots.delay_s)
        return robots

    @property
    def sitemaps(self) -> tuple[str, ...]:
        """The site's sitemaps: those that robots.txt names, else the usual address."""
        return self.robots.sitemaps or (f"{self._origin}/sitemap.xml",)

    def get(self, address: str, conditions: Mapping[str, str], wanted: Callable[[Mapping[str, str]], bool]) -> Answer:
        """Ask for a page, once; see `Fetcher.get`."""
        return self._fetcher.get(address, conditions, wanted)

    def fetch(self, address: str) -> Answer:
        """
        Ask for what is no page: robots.txt, a sitemap. Redirects are followed on the site.

        Raises InvalidInput where they lead to another, or in a circle; and as `Fetcher.get`.
        """
        asked = address
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._fetcher.get(asked)
            if not answer.leads_to:
                return answer
            to = self.place(answer.leads_to, asked)
            if to is None:
                raise InvalidInput(
                    f"{asked} redirects to {answer.leads_to}, another site; if that is the one that is meant, add its "
                    "address instead",
                    param="uri",
                )
            asked = to
        raise InvalidInput(f"{address} redirects more than {MAX_REDIRECTS} times, or in a circle", param="uri")

    def close(self) -> None:
        """End the connections."""
        self._fetcher.close()
