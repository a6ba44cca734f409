"""HTML: a page's content in Markdown form, without what stands on every page of its site."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from ryorin_index.parse import encoding
from ryorin_index.parse.document import ParsedDocument, as_attributes, clean, invalid

_NOT_CONTENT = re.compile("script|style|nav|footer|aside|form|noscript|template|iframe|rt|rp")  # rt: furigana
_BLOCKS = re.compile(
    "address|article|blockquote|caption|dd|details|div|dl|dt|fieldset|figcaption|figure|header|hr|li|main|ol|p|"
    "section|summary|table|tbody|thead|tr|ul"
)
_BOILERPLATE_ROLES = frozenset(
    ["navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar", "alertdialog"]
)
_BOILERPLATE_NAMES = re.compile(
    r"(?:^|[-_ ])(?:nav|navbar|navigation|menu|breadcrumbs?|sidebar|side-?nav|cookies?|cookie-?\w*|consent|gdpr|"
    r"share|sharing|social|sns|advert\w*|ads?|promo|banner|popup|modal|newsletter|subscribe|pagination|pager|"
    r"related|skip-?link|site-?header|site-?footer|page-?footer|global-?header|comments?-?form)(?:$|[-_ ])",
    re.IGNORECASE,
)
_NAMED = frozenset(
    ["div", "section", "ul", "ol", "p", "span", "header", "table", "dialog"]
)  # what a class or id can make boilerplate
_MENU_LINKS = 4  # a list of so many links and nothing else is a menu
_LINK_SHARE = 0.85
_DECLARED = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{2,40})|<\?xml[^>]{0,200}?encoding=["']([\w.:-]{2,40})""", re.I
)


def prepare() -> None:
    """Import what the reader needs."""
    import bs4  # noqa: F401

    encoding.prepare()


def read(path: Path, data: bytes) -> ParsedDocument:
    """A page's content and its title; navigation, banners, scripts and forms are left out."""
    text, title, attributes = from_text(path, encoding.decode(path, data, declared(data)))
    return ParsedDocument(text, title, "text/html", (), as_attributes(attributes))


def declared(data: bytes) -> str | None:
    """The encoding that a page claims at its beginning."""
    match = _DECLARED.search(data[:4096])
    return (match[1] or match[2]).decode("ascii") if match else None


def from_text(path: Path, page: str) -> tuple[str, str, dict[str, Any]]:
    """(text, title, attributes) of a page; raises InvalidInput for one that is no HTML at all."""
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    try:
        with warnings.catch_warnings(action="ignore"):  # XHTML, a page of one word: read all the same
            soup = BeautifulSoup(page, "html.parser")
    except ParserRejectedMarkup as error:
        raise invalid(path, "cannot be read as HTML; open it in a browser and save it anew") from error
    named = soup.find("h1") or soup.find("title")
    root = soup.find("main") or soup.find("article") or soup.find("body") or soup
    text = _text(root, root.name == "body" or root is soup)
    if not text:  # all of it looked like boilerplate: then it is the content
        text = _text(root, False)
    author = soup.find("meta", attrs={"name": "author"})
    attributes = {"author": author.get("content")} if author else {}
    return clean(text), named.get_text(" ", strip=True) if named else "", attributes


def _text(root: Any, whole_page: bool) -> str:
    lines = (line.strip().removesuffix("|").rstrip() for line in _markdown(root, whole_page).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _markdown(root: Any, whole_page: bool) -> str:
    """
    The text below an element in Markdown form. One walk with a stack of its own: pages nest as deep as they like.

    whole_page: nothing marks the content, so what a name or its links give away as boilerplate is left out too.
    """
    from bs4.element import CData, NavigableString, Tag

    menus = _menus(root) if whole_page else frozenset()
    parts: list[str] = []
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if type(node) is str:  # what ends an element
            parts.append(node)
        elif isinstance(node, NavigableString):
            if type(node) in (NavigableString, CData):  # not a comment, a doctype, a script
                parts.append(re.sub(r"\s+", " ", node))
        elif isinstance(node, Tag) and not _left_out(node, root, menus, whole_page):
            if re.fullmatch("h[1-6]", node.name):
                parts.append(f"\n\n{'#' * int(node.name[1])} {' '.join(node.get_text(' ').split())}\n\n")
            elif node.name == "pre":
                parts.append(f"\n\n```\n{node.get_text().strip(chr(10))}\n```\n\n")
            elif node.name == "br":
                parts.append("\n")
            else:
                line_end = "\n\n" if _BLOCKS.fullmatch(node.name) else ""
                if node.name in ("li", "tr", "dd", "dt"):
                    line_end = "\n"
                parts.append(line_end + "- " if node.name == "li" else line_end)
                stack.append(" | " if node.name in ("td", "th") else line_end)
                stack.extend(reversed(node.contents))
    return "".join(parts)


def _left_out(node: Any, root: Any, menus: frozenset[int], whole_page: bool) -> bool:
    if _NOT_CONTENT.fullmatch(node.name) is not None:
        return True
    if node is root or (not node.attrs and id(node) not in menus):
        return False
    if str(node.get("role", "")).lower() in _BOILERPLATE_ROLES or node.get("aria-hidden") == "true":
        return True
    if "hidden" in node.attrs or re.search(r"display\s*:\s*none", str(node.get("style", "")), re.IGNORECASE):
        return True
    if not whole_page:
        return False
    if id(node) in menus:
        return True
    names = node.get("class") or []
    names = [*(names if isinstance(names, list) else [names]), str(node.get("id", ""))]
    return node.name in _NAMED and any(_BOILERPLATE_NAMES.search(str(name)) for name in names)


def _menus(root: Any) -> frozenset[int]:
    """The lists below `root` that are links and little else, by id()."""
    found = []
    for element in root.find_all(["ul", "ol"]):
        links = element.find_all("a", limit=_MENU_LINKS)
        if len(links) < _MENU_LINKS or element.find_parent(["ul", "ol"]) is not None:
            continue
        whole = len("".join(element.get_text().split()))
        linked = sum(len("".join(link.get_text().split())) for link in element.find_all("a"))
        if linked >= _LINK_SHARE * whole:
            found.append(id(element))
    return frozenset(found)
