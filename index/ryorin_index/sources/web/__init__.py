"""
A web site as a source: its pages, found through sitemaps and links, read politely and asked only whether they changed.

`site.py` is the connector: which pages there are, what became of each. `addresses.py` says which addresses belong to
the source, `robots.py` what the site allows, `sitemaps.py` what it lists, `page.py` what a response is as a document,
`memory.py` what is kept between runs. `access.py` asks the site, by way of `fetch.py`, one request, and `door.py`, the
connection: to where it may.
"""

from ryorin_index.sources.web.addresses import normalised
from ryorin_index.sources.web.site import WebSite, check_web

__all__ = ["WebSite", "check_web", "normalised"]
