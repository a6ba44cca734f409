"""Which connector a source has, and whether its address and options are in order."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ryorin.catalog.tables import Source
from ryorin.errors import InvalidInput
from ryorin.settings import Settings
from ryorin_index.sources.connector import Connector

# kind: the options it honours, besides `attributes`, which every kind does
KINDS: dict[str, frozenset[str]] = {
    "folder": frozenset({"include", "exclude"}),
    "git": frozenset({"include", "exclude", "branch", "subfolder"}),
    "s3": frozenset({"include", "exclude", "endpoint_url", "key_env", "secret_env", "anonymous"}),
    "web": frozenset({"include", "exclude", "depth", "max_pages", "whole_site", "allow_private", "delay_s"}),
}
DEFAULT_DEPTH, DEFAULT_MAX_PAGES, DEFAULT_DELAY_S = 3, 1_000, 0.5  # of web sources; here, for the help is light
_SCP = re.compile(r"[\w.-]+@[\w.-]+:(?!//).+")  # git's short form of an SSH address
_NAME = re.compile(r"[A-Z_][A-Z0-9_]*", re.IGNORECASE)


def check_source(uri: str, options: Mapping[str, Any], kind: str | None = None) -> tuple[str, str]:
    """
    The kind and the address of a source as they are kept.

    Raises InvalidInput for an address of no known kind, one with a password in it, and an option the kind has not.
    """
    chosen = kind or _guess(uri)
    if chosen not in KINDS:
        raise InvalidInput(f"source kind {chosen!r} is not one of {', '.join(KINDS)}", param="kind")
    for name in options:
        if name != "attributes" and name not in KINDS[chosen]:
            raise InvalidInput(f"a {chosen} source has no option {name!r}; it has {_list(chosen)}", param=name)
    for name in ("key_env", "secret_env"):
        if options.get(name) and not _NAME.fullmatch(str(options[name])):
            raise InvalidInput(f"{name} is the name of an environment variable, not the key itself", param=name)
    address = uri.removeprefix("git+") if chosen == "git" else uri
    if not uri.isprintable() or uri.startswith("-"):
        raise InvalidInput("the address of a source holds a character it must not", param="uri")
    for given in (address, str(options.get("endpoint_url") or "")):
        _refuse_secrets(chosen, given)
    if chosen == "folder" or (chosen == "git" and "://" not in address and not _SCP.fullmatch(address)):
        path = Path(address).expanduser().resolve()
        if not path.is_dir():
            raise InvalidInput(f"{uri}: no such folder", param="uri")
        return chosen, str(path)
    scheme = urlsplit(address).scheme
    schemes = {"git": ("https", "http", "ssh", "git", ""), "s3": ("s3",), "web": ("https", "http")}[chosen]
    if scheme not in schemes and not _SCP.fullmatch(address):
        raise InvalidInput(f"a {chosen} source has the scheme {' or '.join(filter(None, schemes))}", param="uri")
    if chosen == "web":
        from ryorin_index.sources.web import check_web

        address = check_web(address, options)
    return chosen, address


def open_connector(
    settings: Settings, source: Source, on_listed: Callable[[int], None] = lambda count: None
) -> Connector:
    """The connector of a source. on_listed: told how much it has seen, where that takes a while."""
    options = {name: value for name, value in source.options.items() if name != "attributes"}
    if source.kind == "folder":
        from ryorin_index.sources.folder import Folder

        return Folder(source.uri, **options)
    if source.kind == "git":
        from ryorin_index.sources.git import GitRepository

        return GitRepository(source.uri, settings.home / "sources" / source.id, **options)
    if source.kind == "web":
        from ryorin_index.sources.web import WebSite

        return WebSite(source.uri, settings.home / "sources" / source.id, source.state, on_listed, **options)
    from ryorin_index.sources.bucket import Bucket

    return Bucket(source.uri, **options)


def _guess(uri: str) -> str:
    if uri.startswith(("git+", "git://", "ssh://")) or uri.endswith(".git") or _SCP.fullmatch(uri):
        return "git"
    scheme, colon, _ = uri.partition("://")
    if not colon:
        return "folder"
    kinds = {"s3": "s3", "https": "web", "http": "web"}
    if scheme not in kinds:
        raise InvalidInput(
            f"{scheme}:// is no kind of source; give a folder's path, git+https://…, s3://BUCKET/PREFIX or "
            "https://SITE/",
            param="uri",
        )
    return kinds[scheme]


def _refuse_secrets(kind: str, address: str) -> None:
    if "://" not in address:
        return
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise InvalidInput(f"{address!r} is no address: {error}", param="uri") from error
    # Of SSH a user's name is part of the address; of HTTP it is a token more often than not.
    if parts.password is not None or (parts.username and parts.scheme != "ssh"):
        instead = {
            "git": "git's credential helper or an SSH key holds it",
            "s3": "name the variables that hold the keys with --key-env and --secret-env",
        }.get(kind, "sites that need one are not supported")
        raise InvalidInput(
            f"an address must not hold a user's name or password: it would be kept; {instead}", param="uri"
        )


def _list(kind: str) -> str:
    return ", ".join(sorted(KINDS[kind] | {"attributes"}))


def scratch_of(settings: Settings, source: Source) -> str:
    """The folder a source keeps copies in, which goes with the source."""
    return os.path.join(settings.home, "sources", source.id)
