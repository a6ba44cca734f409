"""`ryorin index source` and `ryorin index sync`: where documents come from, and making a store equal to it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ryorin.catalog.tenants import get_tenant
from ryorin.commands.common import (
    catalog_session,
    json_option,
    opened_catalog,
    print_json,
    print_rows,
    printable,
    say,
    stopping_in_order,
    tenant_option,
)
from ryorin.errors import InvalidInput
from ryorin_index.commands.progress import files_line, listing_line, show_report
from ryorin_index.sources.kinds import DEFAULT_DELAY_S, DEFAULT_DEPTH, DEFAULT_MAX_PAGES
from ryorin_index.store import get_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ryorin.catalog import Catalog
    from ryorin.catalog.tables import VectorStore
    from ryorin_index.embed import Embed
    from ryorin_index.sync import Report


@click.group()
def source() -> None:
    """
    Where a store's documents come from: folders, git repositories, buckets, web sites.

    \b
    Example:
        ryorin index source add handbook ./documents --tenant support
        ryorin index sync handbook --tenant support
    """


@source.command("add")
@click.argument("store")
@click.argument("uri")
@tenant_option
@click.option("--kind", type=click.Choice(["folder", "git", "s3", "web"]), help="By default told from the address.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only paths like this; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="No paths like this; may be repeated.")
@click.option("--attribute", "attributes", multiple=True, metavar="KEY=VALUE", help="Given to each of its documents.")
@click.option("--branch", metavar="NAME", help="git: a branch or tag (the default branch).")
@click.option("--subfolder", metavar="PATH", help="git: only what is below it.")
@click.option("--endpoint-url", metavar="URL", help="s3: another server than Amazon's.")
@click.option("--key-env", metavar="VARIABLE", help="s3: the environment variable that holds the access key.")
@click.option("--secret-env", metavar="VARIABLE", help="s3: the one that holds the secret key.")
@click.option("--anonymous", is_flag=True, help="s3: without keys.")
@click.option(
    "--depth",
    type=click.IntRange(0, 20),
    help=f"web: links to follow, and no sitemaps ({DEFAULT_DEPTH}, and sitemaps).",
)
@click.option(
    "--max-pages", type=click.IntRange(1, 100_000), help=f"web: pages asked for in a run ({DEFAULT_MAX_PAGES:,})."
)
@click.option("--whole-site", is_flag=True, help="web: also pages that are not below the path of URI.")
@click.option(
    "--delay",
    "delay_s",
    type=click.FloatRange(0, 60),
    metavar="SECONDS",
    help=f"web: between two requests ({DEFAULT_DELAY_S}).",
)
@click.option("--allow-private", is_flag=True, help="web: reach addresses and ports that are not the public web's.")
@json_option
def add_source(
    store: str, uri: str, tenant_name: str, kind: str | None, attributes: tuple[str, ...], as_json: bool, **given: Any
) -> None:
    """
    Add a source to STORE; 'ryorin index sync' brings its documents in.

    URI is a folder, an address of a git repository (git+https://…, or ending in .git), s3://BUCKET/PREFIX, or the
    address of a web page or sitemap. Keys and passwords are never kept: they stay in the environment.

    Of a web site, the pages below the address's path are taken: those its sitemaps list, and those that links lead to;
    of an address of a sitemap, those it lists. robots.txt is honoured. Globs are of path and query: '/docs/*'.

    \b
    Example:
        ryorin index source add handbook ./documents --tenant support --attribute department=sales
        ryorin index source add handbook git+https://example.org/guide.git --branch main --subfolder docs
        ryorin index source add handbook s3://manuals/2026 --key-env S3_KEY --secret-env S3_SECRET
        ryorin index source add handbook https://example.org/docs/ --exclude '/docs/old/*' --max-pages 300
    """
    from ryorin_index.source_rows import add_source as add_row

    said = {name: value for name, value in given.items() if value or (value == 0 and value is not False)}
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}
    if attributes:
        options["attributes"] = _attributes(attributes)
    with catalog_session() as (_, session):
        added = add_row(session, get_store(session, get_tenant(session, tenant_name), store), uri, options, kind)
        row = {"id": added.id, "kind": added.kind, "uri": added.uri, "options": added.options}
    if as_json:
        print_json(row)
    else:
        say(printable(f"{row['kind']} source {row['uri']}; 'ryorin index sync {store}' brings its documents in"))


@source.command("list")
@click.argument("store")
@tenant_option
@json_option
def list_sources_command(store: str, tenant_name: str, as_json: bool) -> None:
    """
    List a store's sources.

    Example: ryorin index source list handbook --tenant support
    """
    from ryorin_index.source_rows import list_sources

    with catalog_session() as (_, session):
        rows = list_sources(session, get_store(session, get_tenant(session, tenant_name), store))
    columns = ("kind", "uri", "documents", "failed", "synced_at", "id")
    print_rows(rows, columns, as_json=as_json, empty=f"no sources yet; 'ryorin index source add {store} URI' adds one")


@source.command("remove")
@click.argument("store")
@click.argument("uri")
@tenant_option
@click.option(
    "--keep-documents/--delete-documents", default=None, help="What becomes of its documents; asked if not said."
)
@json_option
def remove_source_command(store: str, uri: str, tenant_name: str, keep_documents: bool | None, as_json: bool) -> None:
    """
    Remove a source, named by its address or id, with its documents or without.

    Example: ryorin index source remove handbook ./documents --tenant support --keep-documents
    """
    from ryorin_index.source_rows import count_documents, find_sources, remove_source

    with opened_catalog() as catalog:
        with catalog.session() as session:
            chosen = get_store(session, get_tenant(session, tenant_name), store)
            row = find_sources(session, chosen, [uri])[0]
            count = count_documents(session, row)
        if keep_documents is None:
            if not count:
                keep_documents = True
            elif not sys.stdin.isatty():
                raise InvalidInput(f"the source has {count} documents: say --keep-documents or --delete-documents")
            else:
                keep_documents = not click.confirm(f"delete its {count} documents from the store too?", err=True)
        remove_source(catalog, chosen, row, keep_documents=keep_documents)
    if as_json:
        print_json({"removed": row.uri, "documents": count, "kept": keep_documents})
    else:
        say(printable(f"source {row.uri} removed; {count} documents {'kept' if keep_documents else 'deleted'}"))


@click.command()
@click.argument("store")
@tenant_option
@click.option("--source", "only", multiple=True, metavar="URI|ID", help="Only this source; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Show what would be done and do nothing.")
@click.option("--allow-deletions", is_flag=True, help="Do not ask when a source lost most of its documents.")
@json_option
def sync(
    store: str, tenant_name: str, only: tuple[str, ...], dry_run: bool, allow_deletions: bool, as_json: bool
) -> None:
    """
    Make STORE equal to its sources: what is new, changed, renamed or deleted there is so here.

    Files that did not change are not read; renamed ones cost nothing. A file that cannot be read is named, keeps the
    passages it had, is tried again the next time, and makes the exit code 2. When a source lost more than half of its
    documents, and at least 10, they are deleted only if you say so.

    \b
    Example:
        ryorin index sync handbook --tenant support --dry-run
        ryorin index sync handbook --tenant support
    """
    from ryorin_index.source_rows import find_sources
    from ryorin_index.sync import dry_run as plan_only
    from ryorin_index.sync import sync_store

    with opened_catalog() as catalog, stopping_in_order():
        with catalog.session() as session:
            chosen = get_store(session, get_tenant(session, tenant_name), store)
            sources = find_sources(session, chosen, only)
        if dry_run:
            report, questions = plan_only(catalog, chosen, sources, listing_line())
            _show_plan(report, questions, as_json=as_json)
        else:
            opener = _opener(catalog, chosen)
            report = sync_store(
                *(catalog, chosen, sources, opener, files_line(), _ask),
                allow_deletions=allow_deletions,
                on_listed=listing_line(),
            )
            if as_json:
                print_json(asdict(report) | {"unchanged": len(report.unchanged)})
            else:
                show_report(report)
    if report.failed or report.errors or report.kept:
        sys.exit(2)


def _opener(catalog: Catalog, store: VectorStore) -> Callable[[], Embed]:
    """Opens the store's embedder, whose model is read only then."""

    def opened() -> Embed:
        from ryorin_index.embed import open_embedder
        from ryorin_index.store import embedder_of

        return open_embedder(embedder_of(catalog.settings, store))

    return opened


def _ask(question: str) -> bool:
    """Ask on a terminal; where nobody can answer, no."""
    if not sys.stdin.isatty():
        say(printable(question) + " not a terminal, so: no")
        return False
    return click.confirm(printable(question), default=False, err=True)


def _show_plan(report: Report, questions: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(report) | {"unchanged": len(report.unchanged), "asks": list(questions)})
        return
    for what, names in (("add", report.added), ("change", report.changed), ("delete", report.deleted)):
        for name in names:
            click.echo(printable(f"{what:<8}{name}"))
    for old, new in report.renamed:
        click.echo(printable(f"{'rename':<8}{old} -> {new}"))
    for question in questions:
        say(printable(f"will ask: {question}"))
    show_report(report)
    say("nothing was done: --dry-run")


def _attributes(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words; true, false and numbers become what they look like, as the API's attributes are typed."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{word!r} is not KEY=VALUE", param_hint="--attribute")
        found[key] = {"true": True, "false": False}.get(value, value)
        if isinstance(found[key], str):
            try:
                found[key] = float(value)
            except ValueError:
                continue
    return found
