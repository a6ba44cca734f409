"""
A web site as a source: its pages, found through sitemaps and links, read politely and asked only whether they changed.

`site.py` is the connector: which pages there are, what became of each. `robots.py` says what the site allows, `page.py`
what a response is as a document, `memory.py` what is kept between runs, `addresses.py` which addresses belong to the
source. `fetch.py` asks for one, `door.py` connects, to where it may.
"""

from ryorin_index.sources.web.addresses import normalised
from ryorin_index.sources.web.site import WebSite, check_web

__all__ = ["WebSite", "check_web", "normalised"]
