"""Syncing from a real web server on this machine: what is asked for, what is not, and what may not be reached."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from word_embedder import WordEmbedder, fake_embedder

from ryorin.catalog import Catalog, open_catalog
from ryorin.catalog.tables import Document, Passage, Source, VectorStore
from ryorin.catalog.tenants import create_tenant
from ryorin.digests import sha256_bytes
from ryorin.settings import load_settings
from ryorin_index.ingest import remove_documents
from ryorin_index.source_rows import add_source, find_sources
from ryorin_index.sources.web import addresses, door, fetch
from ryorin_index.store import create_store
from ryorin_index.sync import Report, dry_run, sync_store
from ryorin_index.texts import read_text

HTML = "text/html; charset=utf-8"


@dataclass
class Page:
    """What the server answers. etag: one is made from the body, and honoured."""

    body: bytes = b""
    kind: str = HTML
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    etag: bool = True
    drip_s: float = 0.0  # before each byte


@dataclass
class Site:
    """A server whose pages are set by the test, and what it was asked: (path, status, bytes sent)."""

    address: str
    pages: dict[str, Page] = field(default_factory=dict)
    log: list[tuple[str, int, int]] = field(default_factory=list)
    heard: list[dict[str, str]] = field(default_factory=list)
    other: Callable[[str], Page | None] = lambda path: None

    def page(self, path: str, title: str, *links: str, words: str = "", **more: Any) -> None:
        """A page with a title, words of its own, and links."""
        anchors = "".join(f'<p><a href="{link}">{link}</a></p>' for link in links)
        text = f"<title>{title}</title><main><h1>{title}</h1><p>Words of {title}. {words}</p>{anchors}</main>"
        self.pages[path] = Page(text.encode(), **more)

    def sitemap(self, path: str, *paths: str, index: bool = False) -> None:
        outer, inner = ("sitemapindex", "sitemap") if index else ("urlset", "url")
        entries = "".join(f"<{inner}><loc>{self.address}{entry}</loc></{inner}>" for entry in paths)
        text = f'<?xml version="1.0"?><{outer} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</{outer}>'
        self.pages[path] = Page(text.encode(), "application/xml")

    def asked(self, path: str) -> int:
        return sum(entry[0] == path for entry in self.log)

    def forget(self) -> None:
        self.log.clear()
        self.heard.clear()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(fetch, "BACK_OFF_S", 0.01)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            page = made.pages.get(self.path) or made.other(self.path) or Page(b"no such page", status=404, etag=False)
            tag = f'"{sha256_bytes(page.body)[:16]}"' if page.etag and page.status == 200 else ""
            status = 304 if tag and self.headers["If-None-Match"] == tag else page.status
            body = b"" if status == 304 else page.body
            made.log.append((self.path, status, len(body)))
            made.heard.append(dict(self.headers.items()))
            self.send_response(status)
            headers = {"Content-Type": page.kind, "Content-Length": str(len(body)), "ETag": tag, **page.headers}
            for name, value in headers.items():
                if value and not (status == 304 and name == "Content-Length"):
                    self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                for at in range(0, len(body), 1 if page.drip_s else 1 << 20):
                    self.wfile.write(body[at : at + (1 if page.drip_s else 1 << 20)])
                    if page.drip_s:
                        time.sleep(page.drip_s)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Store:
    """A store that is synced from the site."""

    catalog: Catalog
    store: VectorStore
    embedder: WordEmbedder

    def add(self, uri: str, **options: Any) -> Source:
        with self.catalog.session() as session:
            return add_source(session, self.store, uri, {"allow_private": True, "delay_s": 0, **options})

    def sync(self, **more: Any) -> Report:
        self.embedder.embedded.clear()
        with self.catalog.session() as session:
            sources = find_sources(session, self.store)
        return sync_store(self.catalog, self.store, sources, lambda: self.embedder, **more)

    def documents(self) -> dict[str, Document]:
        with self.catalog.session() as session:
            return {row.source: row for row in session.scalars(select(Document))}

    def text(self, address: str) -> str:
        with self.catalog.session() as session:
            return read_text(session, self.store.tenant_id, self.documents()[address].id)

    def paths(self) -> set[str]:
        return {source.split("/", 3)[3] for source in self.documents()}


@pytest.fixture
def both(catalog: Catalog, store: VectorStore, embedder: WordEmbedder) -> Store:
    """On SQLite and on PostgreSQL."""
    return Store(catalog, store, embedder)


@pytest.fixture
def kept(sqlite_store: tuple[Catalog, VectorStore], embedder: WordEmbedder) -> Store:
    return Store(*sqlite_store, embedder)


def test_what_changed_is_read_and_nothing_else(both: Store, site: Site, make_pdf: Any, home: Path) -> None:
    site.page("/", "Home", "/guide/?b=1&a=2#part", "/price.pdf", "notes", "/old", "mailto:a@b", "logo.png", "//x.org/")
    site.page("/guide/?b=1&a=2", "Guide", "/", etag=False)
    site.pages["/price.pdf"] = Page(make_pdf(["Prices rise."], "Prices"), "application/pdf")
    site.pages["/notes"] = Page(b"# Notes\n\nMarkdown words.", "text/markdown")
    site.page("/old", "Old")
    site.pages["/robots.txt"] = Page(b"", "text/plain")
    source = both.add(site.address)
    first = both.sync()
    assert sorted(first.added) == [
        f"{site.address[7:]}.html", "guide?b=1&a=2.html", "notes.md", "old.html", "price.pdf",
    ]  # fmt: skip
    assert (first.failed, first.skipped, site.asked("/logo.png")) == ([], [".png"], 0)
    documents = both.documents()
    assert documents[f"{site.address}/guide/?b=1&a=2"].title == "Guide"
    assert all(heard["User-Agent"].startswith("ryorin/") and "Cookie" not in heard for heard in site.heard)
    assert max(site.asked(path) for path in site.pages) == 1 and not (home / "sources" / source.id).exists()

    site.forget()
    second = both.sync()
    assert (len(second.unchanged), second.embedded, both.embedder.embedded) == (5, 0, [])
    asked = [entry for entry in site.log if entry[0] not in ("/robots.txt", "/sitemap.xml")]
    assert sorted(asked) == [
        ("/", 304, 0), ("/guide/?b=1&a=2", 200, len(site.pages["/guide/?b=1&a=2"].body)),
        ("/notes", 304, 0), ("/old", 304, 0), ("/price.pdf", 304, 0),
    ]  # fmt: skip

    site.pages["/notes"].body = b"# Notes\n\nOther words."
    site.pages["/old"] = Page(status=410)
    site.page("/", "Home", "/guide/?b=1&a=2", "/price.pdf", "notes", "/old", "/new")
    site.page("/new", "New")
    third = both.sync()
    assert (third.added, third.deleted, len(third.unchanged)) == (["new.html"], [f"{site.address}/old"], 2)
    assert sorted(third.changed) == [f"{site.address[7:]}.html", "notes.md"]
    assert all("Home" in text or "Notes" in text or "New" in text for text in both.embedder.embedded)


def test_a_page_that_fails_keeps_its_passages_and_hides_nothing(both: Store, site: Site) -> None:
    site.page("/", "Home", "/a")
    site.page("/a", "A", "/a/below")
    site.page("/a/below", "Below")
    both.add(site.address)
    both.sync()
    good, site.pages["/a"] = site.pages["/a"], Page(b"oops", status=500)
    with both.catalog.session() as session:
        before = set(session.scalars(select(Passage.id)))
    report = both.sync()
    assert [(source, "answers 500" in why) for source, why in report.failed] == [(f"{site.address}/a", True)]
    assert (report.deleted, len(report.unchanged)) == ([], 2)
    with both.catalog.session() as session:
        assert set(session.scalars(select(Passage.id))) == before
    assert both.documents()[f"{site.address}/a"].status == "failed"
    site.pages["/a"] = good
    assert both.sync().failed == [] and both.documents()[f"{site.address}/a"].status == "completed"
    site.page("/", "Home")  # nothing leads there any more
    assert sorted(both.sync().deleted) == [f"{site.address}/a", f"{site.address}/a/below"]


def test_a_site_that_does_not_answer_loses_nothing(kept: Store, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [f"/{number}" for number in range(8)]
    for path in pages:
        site.page(path, f"Page {path}")
    site.page("/", "Home", *pages)
    kept.add(site.address)
    kept.sync()
    everything = kept.paths()
    for path in ("/robots.txt", "/"):
        site.pages[path], before = Page(status=503), site.pages.get(path)
        report = kept.sync()
        assert "answers 503" in report.errors[0][1] and site.asked(path) >= 3 and kept.paths() == everything
        if before is None:
            del site.pages[path]
        else:
            site.pages[path] = before
    for path in pages:
        site.pages[path] = Page(status=429, headers={"Retry-After": "0"})
    site.forget()
    report = kept.sync()
    assert "5 pages in a row" in report.errors[0][1] and kept.paths() == everything
    assert [site.asked(path) for path in pages] == [3] * 5 + [0] * 3
    monkeypatch.setattr(door, "resolve", lambda host, port: ["127.0.0.1"])
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    site.pages.clear()
    report = kept.sync()
    assert "no such page" in report.errors[0][1] and kept.paths() == everything


def test_retry_after_is_waited_for(kept: Store, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    answers = iter([Page(status=503, headers={"Retry-After": "7"}), Page(status=429, headers={"Retry-After": "x"})])
    site.other = lambda path: next(answers, None) if path == "/" else None

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            site.page("/", "Home")

    monkeypatch.setattr(fetch.time, "sleep", sleep)
    kept.add(site.address)
    assert len(kept.sync().added) == 1 and waited == [7.0, 0.02]


def test_sitemaps(kept: Store, site: Site) -> None:
    site.pages["/robots.txt"] = Page(f"Sitemap: {site.address}/maps.xml".encode(), "text/plain")
    site.sitemap("/maps.xml", "/one.xml", "/two.xml.gz", index=True)
    site.sitemap("/one.xml", "/lonely", "/dir/")
    site.sitemap("/two.xml", "/packed")
    site.pages["/two.xml.gz"] = Page(gzip.compress(site.pages.pop("/two.xml").body), "application/gzip")
    for path in ("/", "/lonely", "/dir/", "/packed", "/unlisted"):
        site.page(path, f"Page {path}")
    site.page("/lonely", "Lonely", "/unlisted")  # of a page that only a sitemap names, links are not followed
    kept.add(site.address)
    kept.sync()
    assert kept.paths() == {"", "lonely", "dir/", "packed"}
    site.pages["/one.xml"] = Page(status=500)
    report = kept.sync()
    assert kept.paths() == {"", "lonely", "dir/", "packed"} and "one.xml could not be read" in report.notes[0][1]
    site.sitemap("/one.xml", "/dir/")
    assert kept.sync().deleted == [f"{site.address}/lonely"]


def test_a_sitemap_that_nobody_names_fails(kept: Store, site: Site) -> None:
    site.page("/", "Home")
    site.page("/lonely", "Lonely")
    site.sitemap("/sitemap.xml", "/lonely")
    kept.add(site.address)
    kept.sync()
    site.pages["/sitemap.xml"] = Page(status=500)
    for _ in range(2):
        assert "could not be read" in kept.sync().notes[0][1] and kept.paths() == {"", "lonely"}
    del site.pages["/sitemap.xml"]
    assert kept.sync().deleted == [f"{site.address}/lonely"]


def test_a_sitemap_as_the_address(kept: Store, site: Site) -> None:
    site.sitemap("/docs/sitemap.xml", "/docs/a", "/docs/b", "/elsewhere")
    for path in ("/docs/a", "/docs/b", "/docs/c", "/elsewhere", "/"):
        site.page(path, f"Page {path}", "/docs/c")
    kept.add(f"{site.address}/docs/sitemap.xml")
    kept.sync()
    assert kept.paths() == {"docs/a", "docs/b"} and not site.asked("/")


BOMB = b'<!DOCTYPE l [<!ENTITY a "x"><!ENTITY b "&a;&a;&a;&a;">]><urlset><url><loc>&b;</loc></url></urlset>'
XXE = b'<!DOCTYPE l [<!ENTITY a SYSTEM "file:/etc/passwd">]><urlset><url><loc>&a;</loc></url></urlset>'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (BOMB, "document type or entities"),
        (XXE, "document type or entities"),
        (gzip.compress(b" " * (60 << 20)), "unpacks to more than"),
        (b"<html></html>", "is no sitemap"),
        (b"\xff\xfe\x00", "is no XML"),
    ],
)
def test_sitemaps_that_are_refused(kept: Store, site: Site, body: bytes, message: str) -> None:
    site.pages["/sitemap.xml"] = Page(body, "application/xml")
    kept.add(f"{site.address}/sitemap.xml")
    assert message in kept.sync().errors[0][1]


def test_depth_paths_and_globs(kept: Store, site: Site) -> None:
    site.page("/docs/", "Docs", "one", "old/a", "/blog", "/docs/%6fne", "/docs/../blog")
    site.page("/docs/one", "One", "two")
    site.page("/docs/two", "Two", "three")
    site.page("/docs/three", "Three")
    site.page("/docs/old/a", "Old")
    site.page("/blog", "Blog")
    kept.add(f"{site.address}/docs/", depth=2, exclude=["/docs/old/*"])
    kept.sync()
    assert kept.paths() == {"docs/", "docs/one", "docs/two"}
    assert site.asked("/docs/one") == 1 and not site.asked("/docs/old/a") and not site.asked("/sitemap.xml")


def test_no_links_below_the_path_are_told(kept: Store, site: Site) -> None:
    site.page("/wiki/Main", "Main", "/wiki/Other", "/wiki/Third")
    kept.add(f"{site.address}/wiki/Main")
    assert "2 pages of the host, none of them below /wiki/Main/" in kept.sync().notes[0][1]


def test_endless_links_end_and_nothing_beyond_the_limit_is_lost(kept: Store, site: Site) -> None:
    def calendar(path: str) -> Page | None:
        if not path.startswith("/day"):
            return None
        day = int(path.removeprefix("/day"))
        return Page(f"<main><p>Day {day}</p><a href='/day{day + 1}'>next</a></main>".encode())

    site.other = calendar
    site.page("/", "Home", "/day1")
    kept.add(site.address, depth=20, max_pages=10)
    told: list[tuple[str, int]] = []
    report = kept.sync(on_listed=lambda source, count: told.append((source, count)))
    assert told[-1] == (f"{site.address}/", 10) and len(told) == 10
    assert len(report.added) == 10 and len([entry for entry in site.log if entry[0] != "/robots.txt"]) == 10
    assert "stopped at 10 pages" in report.notes[0][1] and "1 more addresses" in report.notes[0][1]
    site.page("/", "Home", *(f"/new{number}" for number in range(9)), "/day1")  # the days lie beyond the limit now
    for number in range(9):
        site.page(f"/new{number}", f"New {number}")
    report = kept.sync()
    assert (len(report.added), report.deleted, report.kept) == (9, [], [])
    site.page("/", "Home", "/day1")
    site.other = lambda path: None
    site.pages["/day1"] = Page(status=404)
    assert len(kept.sync().kept) == 18 and len(kept.sync(allow_deletions=True).deleted) == 18


def test_robots_and_what_pages_say_of_themselves(kept: Store, site: Site) -> None:
    rules = "User-agent: *\nDisallow: /\n\nUser-agent: ryorin\nDisallow: /private\nCrawl-delay: 0.01\n"
    site.pages["/robots.txt"] = Page(rules.encode(), "text/plain")
    site.page("/", "Home", "/private/a", "/noindex", "/nofollow", "/header", "/other", "/copy?id=1", "/lost")
    meta = b'<meta name="robots" content="%s"><p>Words</p><a href="/behind-%s">x</a>'
    site.pages["/noindex"] = Page(meta % (b"NoIndex", b"noindex"))
    site.pages["/nofollow"] = Page(meta % (b"nofollow", b"nofollow"))
    site.page("/header", "Header", headers={"X-Robots-Tag": "noindex"})
    site.page("/other", "Other", headers={"X-Robots-Tag": "somebot: noindex"})
    site.page("/behind-noindex", "Behind")
    site.page("/behind-nofollow", "Behind")
    site.pages["/copy?id=1"] = Page(b'<link rel="canonical" href="/original"><p>Original words</p>')
    site.page("/original", "Original")
    site.pages["/lost"] = Page(b'<link rel="canonical" href="/nowhere"><p>Lost words</p>')
    kept.add(site.address)
    report = kept.sync()
    assert kept.paths() == {"", "nofollow", "other", "behind-noindex", "original", "lost"}
    assert not site.asked("/private/a") and not site.asked("/behind-nofollow")
    assert report.notes == [(f"{site.address}/", "robots.txt bars 1 of its addresses")]
    assert len(kept.sync().unchanged) == 6
    site.pages["/robots.txt"].body = b"User-agent: *\nDisallow: /\n"
    assert "does not let ryorin read it" in kept.sync().errors[0][1]


def test_redirects(kept: Store, site: Site) -> None:
    def to(where: str, status: int = 301) -> Page:
        return Page(status=status, headers={"Location": where}, etag=False)

    site.page("/", "Home", "/from", "/loop", "/out", "/aside", "/moved")
    site.pages |= {
        "/from": to("戻る".encode().decode("latin-1")),
        "/loop": to("/loop2"),
        "/loop2": to("/loop"),
        "/out": to("http://10.0.0.1/x"),
    }
    site.page("/%E6%88%BB%E3%82%8B", "To")
    site.page("/aside", "Aside")
    site.page("/moved", "Moved")
    kept.add(site.address)
    report = kept.sync()
    assert kept.paths() == {"", "%E6%88%BB%E3%82%8B", "aside", "moved"}
    assert [source for source, _ in report.failed] == [f"{site.address}/loop2"] and "circle" in report.failed[0][1]
    site.pages |= {"/aside": to("https://login.example.org/", 302), "/moved": to("https://new.example.org/")}
    report = kept.sync()
    assert report.deleted == [f"{site.address}/moved"]
    assert "for now" in dict(report.failed)[f"{site.address}/aside"]
    site.pages["/"] = to("https://www.example.org/")
    assert "add its address instead" in kept.sync().errors[0][1] and kept.paths() == {"", "%E6%88%BB%E3%82%8B", "aside"}


JAPANESE = "お米は毎月届きます。髙島屋の①番。"


@pytest.mark.parametrize(
    ("encoding", "label", "in_page"),
    [("cp932", "Shift_JIS", True), ("cp932", "Shift_JIS", False), ("cp932", "", False), ("cp932", "utf-8", True),
     ("euc_jp", "EUC-JP", True), ("euc_jp", "EUC-JP", False), ("euc_jp", "iso-8859-1", False)],
)  # fmt: skip
def test_japanese_pages(kept: Store, site: Site, encoding: str, label: str, in_page: bool) -> None:
    words = JAPANESE if encoding == "cp932" else "お米は毎月届きます。高島屋の一番。"
    meta = f'<meta charset="{"Shift_JIS" if encoding == "cp932" else "EUC-JP"}">' if in_page else ""
    body = f"<html><head>{meta}<title>定期便</title></head><body><p>{words}</p><a href='/次'>次へ</a></body>"
    site.pages["/"] = Page(body.encode(encoding), f"text/html; charset={label}" if label else "text/html")
    site.page("/%E6%AC%A1", "次")
    kept.add(site.address)
    kept.sync()
    documents = kept.documents()
    home = f"{site.address}/"
    assert words in kept.text(home) and documents[home].title == "定期便"
    assert documents[f"{site.address}/%E6%AC%A1"].filename == "次.html"


def test_an_encoding_that_only_the_header_names(kept: Store, site: Site) -> None:
    words = "Возврат товара в течение 30 дней"  # too short to be told from its bytes
    site.pages["/"] = Page(f"<p>{words}</p>".encode("koi8_r"), "text/html; charset=KOI8-R")
    kept.add(site.address)
    kept.sync()
    assert kept.text(f"{site.address}/") == words


def test_bodies_are_bounded(kept: Store, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_PAGE_BYTES", 1 << 20)
    packed = {"Content-Encoding": "gzip"}
    site.page("/", "Home", "/bomb", "/plain", "/brotli", "/broken", "/good")
    site.pages["/bomb"] = Page(gzip.compress(b"a" * (40 << 20)), headers=packed)
    site.pages["/plain"] = Page(b"a" * (2 << 20))
    site.pages["/brotli"] = Page(b"abc", headers={"Content-Encoding": "br"})
    site.pages["/broken"] = Page(gzip.compress(b"<p>words</p>" * 99)[:-9], headers=packed)
    site.pages["/good"] = Page(gzip.compress(b"<p>Packed words.</p>"), headers=packed)
    kept.add(site.address)
    why = {source.rpartition("/")[2]: reason for source, reason in kept.sync().failed}
    assert "more than 1,048,576 bytes" in why["bomb"] and "more than 1,048,576 bytes" in why["plain"]
    assert "'br'" in why["brotli"] and "middle" in why["broken"] and kept.paths() == {"", "good"}


def test_a_page_that_drips_is_ended(kept: Store, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAGE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    site.page("/", "Home", "/slow")
    site.pages["/slow"] = Page(b"<p>words</p>" * 20, drip_s=0.01)
    kept.add(site.address)
    assert "does not answer" in kept.sync().failed[0][1]


def test_what_is_listed_but_not_kept_is_read_again(kept: Store, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.page("/", "Home", "/a")
    site.page("/a", "A")
    source = kept.add(site.address)
    kept.sync()
    remove_documents(kept.catalog, kept.store, [f"{site.address}/a"])  # as if its turn had not come in a run
    site.forget()
    assert kept.sync().added == ["a.html"]
    assert [entry[1] for entry in site.log if entry[0] == "/a"] == [304, 200]
    with kept.catalog.session() as session:  # or before its state was kept
        session.get_one(Source, source.id).state = {}
    assert (len(kept.sync().unchanged), kept.embedder.embedded) == (2, [])


def test_a_dry_run_asks_and_keeps_nothing(kept: Store, site: Site) -> None:
    site.page("/", "Home")
    kept.add(site.address)
    with kept.catalog.session() as session:
        sources = find_sources(session, kept.store)
    report, _ = dry_run(kept.catalog, kept.store, sources)
    assert len(report.added) == 1 and kept.documents() == {}
    assert len(kept.sync().added) == 1


@pytest.mark.parametrize("private", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:127.0.0.1"]])
def test_private_addresses_are_refused(
    kept: Store, site: Site, monkeypatch: pytest.MonkeyPatch, private: list[str]
) -> None:
    monkeypatch.setattr(door, "resolve", lambda host, port: private)
    kept.add("http://inside.example.org/", allow_private=False)
    report = kept.sync()
    assert "not an address of the public internet" in report.errors[0][1] and not site.log


def test_a_name_that_changes_its_address_is_not_followed(
    kept: Store, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the connection goes to the address that was checked, and each new one is checked."""
    port = int(site.address.rpartition(":")[2])
    answers = iter([["192.0.2.7"], ["127.0.0.1"], ["127.0.0.1"], ["127.0.0.1"]])
    monkeypatch.setattr(door, "resolve", lambda host, given: next(answers))
    monkeypatch.setattr(door, "is_public", lambda address: address == "192.0.2.7")
    reached: list[str] = []

    def connect(self: object, host: str, given: int, *_: object) -> object:
        reached.append(host)
        return real(self, "127.0.0.1", port)

    real = door.httpcore.SyncBackend.connect_tcp
    monkeypatch.setattr(door.httpcore.SyncBackend, "connect_tcp", connect)
    site.pages["/robots.txt"] = Page(b"", "text/plain", headers={"Connection": "close"})
    site.page("/", "Home")
    kept.add("http://rebind.example.org/", allow_private=False)
    report = kept.sync()
    assert "127.0.0.1, which is not" in report.errors[0][1]
    assert reached == ["192.0.2.7"] and [heard["Host"] for heard in site.heard] == ["rebind.example.org"]


def test_https_keeps_the_name(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is connected to, the name is what the certificate is checked for."""
    names: list[object] = []

    class Stream(door.httpcore.NetworkStream):
        def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: Any = None) -> Any:
            names.append((server_hostname, ssl_context.check_hostname))
            raise door.httpcore.ConnectError("ends here")

        def close(self) -> None:
            """Nothing is held."""

    monkeypatch.setattr(fetch, "BACK_OFF_S", 0.01)
    monkeypatch.setattr(door, "resolve", lambda host, port: ["93.184.216.34"])
    monkeypatch.setattr(door.httpcore.SyncBackend, "connect_tcp", lambda *_: Stream())
    kept.add("https://name.example.org/", allow_private=False)
    assert "ends here" in kept.sync().errors[0][1]
    assert names == [("name.example.org", True)] * fetch.ATTEMPTS


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("10.0.0.1", False), ("127.0.0.1", False), ("169.254.169.254", False), ("100.64.0.1", False),
     ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False), ("192.0.0.1", False), ("198.18.0.1", False),
     ("2606:4700::1", True), ("::1", False), ("::", False), ("fe80::1%eth0", False), ("fc00::1", False),
     ("fec0::1", False), ("ff02::1", False), ("::ffff:8.8.8.8", True), ("::ffff:10.0.0.1", False),
     ("::8.8.8.8", False), ("64:ff9b::808:808", True), ("64:ff9b::7f00:1", False), ("64:ff9b:1::808:808", False),
     ("2002:808:808::", True), ("2002:7f00:1::", False), ("2001:0:1::1", False), ("2001:db8::1", False),
     ("2400:cb00::5efe:7f00:1", False)],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert door.is_public(address) is public


def test_what_belongs_to_a_source() -> None:
    scope = addresses.Scope("https://example.org/docs", exclude=["*/old/*"])
    assert scope.placed("http://example.org/docs/a") == "https://example.org/docs/a"
    assert addresses.Scope("http://example.org/").placed("https://example.org/a") is None
    assert scope.placed("https://www.example.org/docs/a") is None is scope.placed("https://example.org:8443/docs/a")
    paths = ("docs", "docs/", "docs/a?b", "docs/old/a", "docsets", "")
    assert [scope.wants(f"https://example.org/{path}") for path in paths] == [True, True, True, False, False, False]
    inner = addresses.Scope("https://example.org/docs/index.html")
    assert inner.wants("https://example.org/docs/a") and not inner.wants("https://example.org/a")


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("HTTP://Example.ORG:80/a/../b/%7euser/%2e%2e/c?x=%e3%81%82#f", "http://example.org/b/c?x=%E3%81%82"),
        ("https://例え.jp/あ?q=お", "https://xn--r8jz45g.jp/%E3%81%82?q=%E3%81%8A"),
        ("c?d", "https://base.org/a/c?d"),
        ("/a!/b", "https://base.org/a%21/b"),
        ("javascript:alert(1)", None),
        ("http://user:word@example.org/", None),
        ("http://example.org:99999/", None),
        ("http://[::1", None),
        ("/" + "a" * 2000, None),
    ],
)
def test_addresses_are_written_in_one_way(given: str, written: str | None) -> None:
    assert addresses.normalised(given, "https://base.org/a/b") == written


def test_the_command_line(cli: Callable[..., Any], site: Site, home: Path, empty_sqlite: Path) -> None:
    shutil.copy(empty_sqlite, home / "catalog.db")
    catalog = open_catalog(load_settings())
    with catalog.session() as session:
        create_store(session, create_tenant(session, "support"), "handbook", fake_embedder())
    catalog.close()
    site.page("/", "Home", "/a")
    words = ("--tenant", "support", "--json")
    added = cli("index", "source", "add", "handbook", site.address, "--depth", 0, "--allow-private", *words)
    options = {"depth": 0, "allow_private": True}
    assert added.code == 0 and json.loads(added.out)["options"] == options, added.err
    again = cli("index", "source", "add", "handbook", f"{site.address}/#top", "--allow-private", *words)
    assert again.code == 2 and "has that source already" in again.err
    planned = cli("index", "sync", "handbook", "--source", site.address, "--dry-run", *words)
    assert planned.code == 0 and len(json.loads(planned.out)["added"]) == 1 and not site.asked("/a")
    listed = cli("index", "source", "list", "handbook", *words)
    assert [(row["kind"], row["uri"]) for row in json.loads(listed.out)] == [("web", f"{site.address}/")]
