"""
The connector of a web site: which pages it has, and what became of each of them.

Pages are those that its sitemaps list and those that are so many links away from the source's address. `items` asks for
each once, with the ETag or date it had the last time. A body that comes is kept on disk until it is read to be indexed;
the links of a page that sends none, because it did not change or does not answer, are those it had before. So a page
that fails hides nothing, and is gone only when the site says so or nothing leads to it any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ryorin.errors import InvalidInput, Unavailable
from ryorin_index.parse.links import MAX_LINKS
from ryorin_index.sources.connector import Connector, Content, Item
from ryorin_index.sources.kinds import DEFAULT_DELAY_S, DEFAULT_DEPTH, DEFAULT_MAX_PAGES
from ryorin_index.sources.web.access import MAX_REDIRECTS, Access
from ryorin_index.sources.web.addresses import DEFAULT_PORTS, Scope, is_sitemap, normalised, port_of
from ryorin_index.sources.web.door import is_address, is_public
from ryorin_index.sources.web.fetch import GONE, MOVED_FOR_GOOD, NOT_THERE, Answer, Fetcher, NoAnswer, refusal
from ryorin_index.sources.web.memory import Memory, Remembered, Spool, validator
from ryorin_index.sources.web.page import (
    document_bytes,
    expected_filename,
    fingerprint,
    format_of,
    is_media,
    is_readable,
    links_of,
    media_filename,
)
from ryorin_index.sources.web.robots import directives
from ryorin_index.sources.web.sitemaps import MAX_SITEMAPS, read_sitemaps

MAX_ADDRESSES = 100_000  # that a run takes note of
MAX_NOTES = 20
SILENT_PAGES = 5  # so many in a row that do not answer are a site that does not


def check_web(uri: str, options: Mapping[str, Any]) -> str:
    """A web source's address as it is kept. Raises InvalidInput for one that cannot be read, whatever the network."""
    address = normalised(uri)
    if address is None:
        raise InvalidInput(f"{uri!r} is no address of a web page: http:// or https://, a host, a path", param="uri")
    host = urlsplit(address).hostname or ""
    if options.get("allow_private"):
        return address
    if is_address(host) and not is_public(host):
        raise InvalidInput(
            f"{host} is not an address of the public internet; if the site is meant, add --allow-private", param="uri"
        )
    if port_of(address) not in DEFAULT_PORTS.values():
        raise InvalidInput(
            f"port {port_of(address)} is not one of the web's (80, 443); if the site is meant, add --allow-private",
            param="uri",
        )
    return address


class WebSite(Connector):
    """
    The pages of a site.

    uri: a page or a sitemap, normalised. scratch: a folder for what is read. state: that of the last run.
    on_asked: told how many pages were asked for.
    depth: how many links to follow from it; None for DEFAULT_DEPTH and the site's sitemaps, or for a sitemap's pages.
    max_pages: how many are asked for in a run. whole_site: also those that do not lie below the path of `uri`.
    include, exclude: globs of path and query ('/docs/*'), of what is asked for. delay_s: between two requests; longer
    if robots.txt asks for it. allow_private: addresses and ports that are not the public web's may be reached.
    """

    named_by_content = True

    def __init__(
        self,
        uri: str,
        scratch: Path,
        state: Mapping[str, Any],
        on_asked: Callable[[int], None] = lambda count: None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        depth: int | None = None,
        max_pages: int = DEFAULT_MAX_PAGES,
        whole_site: bool = False,
        allow_private: bool = False,
        delay_s: float = DEFAULT_DELAY_S,
    ) -> None:
        self.state: dict[str, Any] = {}
        self.notes: list[str] = []
        self._root, self._on_asked = uri, on_asked
        self._scope = Scope(uri, whole_site, include, exclude)
        self._access = Access(uri, self._scope, Fetcher(allow_private, delay_s))
        self._of_sitemap = is_sitemap(uri)
        self._use_sitemaps = depth is None and not self._of_sitemap
        self._depth = (0 if self._of_sitemap else DEFAULT_DEPTH) if depth is None else depth
        self._max_pages = max_pages
        self._spool = Spool(scratch)
        self._before, self._now = Memory.from_json(state), Memory()
        self._waiting: deque[tuple[str, int]] = deque()
        self._offered: set[str] = set()
        self._asked: set[str] = set()
        self._listed: set[str] = set()
        self._uncertain: set[str] = set()  # asked for and neither read nor said to be gone
        self._failures: dict[str, InvalidInput | Unavailable] = {}
        self._aside: list[tuple[Item, str]] = []
        self._complete = True
        self._silent = self._barred = self._elsewhere = self._beyond = 0

    def items(self) -> Iterator[Item]:
        """
        The pages, as they are found.

        Raises InvalidInput when the address is wrong or robots.txt bars it, Unavailable when the site does not answer.
        """
        if not self._access.allows(self._root):
            raise InvalidInput(f"the robots.txt of {self._root} does not let ryorin read it", param="uri")
        if self._of_sitemap:
            self._offer(self._pages_of([self._root]), 0)
        else:
            self._offer([self._root], 0)
        yield from self._crawl()
        if self._use_sitemaps:
            # What only sitemaps name comes last: a page's distance from the start says whether its links are followed.
            self._offer(self._pages_of(self._access.sitemaps), self._depth)
            yield from self._crawl()
        for item, canonical in self._aside:
            if canonical not in self._listed:  # the page it points to is none: then it stands for itself
                yield self._list(item)
        self._note()
        if not self._complete:
            for address, page in self._before.pages.items():
                if address not in self._asked:
                    self._now.pages.setdefault(address, page)
        self.state = self._now.to_json()

    def read(self, item: Item) -> Content:
        """A page's bytes: those that came when it was listed, else it is asked for now."""
        failure = self._failures.get(item.source)
        if failure is not None:
            raise failure
        data = self._spool.get(item.source)
        if data is None:
            answer = self._access.get(item.source, {}, partial(is_readable, item.source))
            if answer.status != 200:
                raise refusal(item.source, answer.status)
            form = format_of(item.source, answer.headers)
            data = document_bytes(form, answer.body)
            return Content(data, fingerprint(form, data))
        return Content(data, item.fingerprint)

    def is_gone(self, source: str) -> bool:
        """Yes for what was asked for and is no page; for the rest only if nothing was left out."""
        return source not in self._uncertain and (self._complete or source in self._asked)

    def close(self) -> None:
        """End connections, remove what was kept on disk."""
        self._access.close()
        self._spool.close()

    def _crawl(self) -> Iterator[Item]:
        """Ask for what waits, nearest first, within the limit of pages."""
        while self._waiting:
            address, depth = self._waiting.popleft()
            if address in self._asked:
                continue
            if is_media(address):
                yield Item(address, media_filename(address), "", -1)
            elif len(self._asked) >= self._max_pages:
                self._beyond += 1
                self._complete = False
            elif not self._access.allows(address):
                self._barred += 1
            else:
                yield from self._visit(address, depth)
                self._on_asked(len(self._asked))

    def _visit(self, address: str, depth: int) -> Iterator[Item]:
        """Ask for a page and take note of what it leads to."""
        chain: list[str] = []
        try:
            answer = self._reach(address, chain)
            if answer is None or answer.status in GONE:
                if answer is not None and address == self._root:
                    raise InvalidInput(f"{address} answers {answer.status}: there is no such page", param="uri")
                return
            final = chain[-1]
            if answer.status == 304 and final in self._before.pages:
                page, size = self._before.pages[final], -1
            elif answer.status == 200:
                page, size = self._page(final, answer)
            else:
                raise refusal(final, answer.status)
        except (InvalidInput, Unavailable) as error:
            if address == self._root:
                raise
            yield from self._fail(chain or [address], depth, error)
            return
        self._silent = 0
        self._now.pages[final] = page
        self._follow(page, depth)
        if page.indexed:
            item = Item(final, page.filename, page.fingerprint, size)
            if page.canonical and self._scope.wants(page.canonical) and self._access.allows(page.canonical):
                self._aside.append((item, page.canonical))
                self._offer([page.canonical], depth)
            else:
                yield self._list(item)

    def _reach(self, address: str, chain: list[str]) -> Answer | None:
        """
        Ask for an address and go where it leads; `chain` becomes what was asked for.

        None where that is another site, or a page that was asked for already.
        """
        while True:
            chain.append(address)
            self._asked.add(address)
            before = self._before.pages.get(address)
            answer = self._access.get(
                address, before.conditions() if before else {}, wanted=partial(is_readable, address)
            )
            location = answer.leads_to
            if not location:
                return answer
            to = self._access.place(location, address)
            if to is None or not self._scope.wants(to) or not self._access.allows(to):
                if chain[0] == self._root:
                    raise InvalidInput(
                        f"{address} redirects to {location}, which the source does not reach; if that is the site that "
                        "is meant, add its address instead",
                        param="uri",
                    )
                if answer.status in MOVED_FOR_GOOD:
                    return None
                self._uncertain.update(chain)
                if not any(link in self._before.pages for link in chain):
                    return None
                raise InvalidInput(f"{address} redirects to {location} for now, which the source does not reach")
            if to in chain or len(chain) > MAX_REDIRECTS:
                raise InvalidInput(f"{chain[0]} redirects more than {MAX_REDIRECTS} times, or in a circle")
            if to in self._asked:
                return None
            address = to

    def _page(self, address: str, answer: Answer) -> tuple[Remembered, int]:
        """What is to be remembered of a response, and its size; its body goes to disk."""
        form = format_of(address, answer.headers)
        page = Remembered(
            etag=validator(answer.headers.get("etag", "")),
            modified=validator(answer.headers.get("last-modified", "")),
            filename=form.filename,
        )
        if not form.readable:
            return page, -1
        data = document_bytes(form, answer.body)
        found = links_of(form, data)
        said = directives(answer.headers.get("x-robots-tag", ""), found.robots)
        base = (normalised(found.base, address) if found.base else None) or address
        placed = dict.fromkeys(filter(None, (self._access.place(link, base) for link in found.links)))
        placed.pop(address, None)
        links = tuple(filter(self._scope.wants, placed)) if not said.nofollow else ()
        if address == self._root or address not in self._before.pages:
            self._elsewhere += sum(not self._scope.reaches(link) for link in placed)
        if found.cut:
            self._hides(f"{address} has more links than the {MAX_LINKS:,} that were followed")
        canonical = self._access.place(found.canonical, base) if found.canonical else None
        if not said.noindex:
            self._spool.put(address, data)
        page = replace(
            page,
            fingerprint=fingerprint(form, data),
            links=links,
            canonical=canonical if canonical and canonical != address else "",
            indexed=not said.noindex,
        )
        return page, len(data)

    def _fail(self, chain: Sequence[str], depth: int, error: InvalidInput | Unavailable) -> Iterator[Item]:
        """A page that could not be read stays what it was and leads where it led. Raises when the site is silent."""
        self._silent = self._silent + 1 if isinstance(error, NoAnswer) else 0
        if self._silent >= SILENT_PAGES:
            raise Unavailable(f"{SILENT_PAGES} pages in a row did not answer; the last: {error}") from error
        self._uncertain.update(chain)
        if not self._before.pages:  # nothing says what it led to
            self._complete = False
        remembered = [address for address in chain if address in self._before.pages]
        for address in remembered or chain[-1:]:
            self._failures[address] = error
            before = self._before.pages.get(address)
            if before is not None:
                self._now.pages[address] = before
                self._follow(before, depth)
                self._listed.add(address)
            yield Item(address, before.filename if before else expected_filename(address), "?", -1)

    def _pages_of(self, sitemaps: Sequence[str]) -> Iterator[str]:
        """The pages that sitemaps list. Raises InvalidInput or Unavailable when the source's own cannot be read."""
        listing = read_sitemaps(self._access, sitemaps)
        self._now.sitemaps = listing.read
        for address, error in listing.unread.items():
            if address == self._root:
                raise error
            # One that is not there lists nothing; the one that was guessed at may be anything.
            if error.code not in NOT_THERE and (self._access.robots.sitemaps or address in self._before.sitemaps):
                self._hides(f"the sitemap {address} could not be read: {error}")
                self._now.sitemaps.append(address)
        if listing.cut:
            self._hides(f"there are more sitemaps than the {MAX_SITEMAPS} that were read")
        return filter(self._scope.wants, listing.pages)

    def _follow(self, page: Remembered, depth: int) -> None:
        if depth < self._depth:
            self._offer(page.links, depth + 1)

    def _offer(self, addresses: Iterable[str], depth: int) -> None:
        """Have addresses asked for, `depth` links away from the start."""
        for address in addresses:
            if address in self._offered:
                continue
            if len(self._offered) >= MAX_ADDRESSES:
                self._beyond += 1
                self._complete = False
                continue
            self._offered.add(address)
            self._waiting.append((address, depth))

    def _list(self, item: Item) -> Item:
        self._listed.add(item.source)
        return item

    def _hides(self, note: str) -> None:
        """Note that not all of the site was seen: what was not is then not taken for gone."""
        self._complete = False
        if len(self.notes) < MAX_NOTES:
            self.notes.append(note)

    def _note(self) -> None:
        if self._beyond:
            self.notes.append(
                f"stopped at {self._max_pages:,} pages, its limit (--max-pages): {self._beyond:,} more addresses are "
                "known and were not asked for; what the store has of them stays"
            )
        if self._barred:
            self.notes.append(f"robots.txt bars {self._barred:,} of its addresses")
        if self._elsewhere and len(self._now.pages) == 1 and not self._of_sitemap:
            self.notes.append(
                f"its links lead to {self._elsewhere:,} pages of the host, none of them below {self._scope.below}; "
                "another address, or --whole-site, takes them"
            )
