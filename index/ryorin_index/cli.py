"""The `ryorin index` commands."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from ryorin.catalog.tenants import get_tenant
from ryorin.commands.common import (
    catalog_session,
    json_option,
    print_json,
    print_rows,
    say,
    tenant_option,
)
from ryorin.models.registry import DEFAULT_EMBEDDER, get_embedder
from ryorin_index.chunking import DEFAULT_MAX_TOKENS, DEFAULT_OVERLAP_TOKENS, MAX_TOKENS, MIN_TOKENS, make_chunking
from ryorin_index.commands import store as store_commands
from ryorin_index.commands.common import opened_store
from ryorin_index.commands.evaluate import draft_cases, evaluate
from ryorin_index.commands.progress import files_line, show_report
from ryorin_index.commands.search import search
from ryorin_index.commands.snapshots import rollback, snapshot, snapshots
from ryorin_index.commands.sources import source, sync
from ryorin_index.commands.stores import delete, purge
from ryorin_index.commands.stores import embedder as embedder_command
from ryorin_index.commands.watch import watch
from ryorin_index.store import create_store, embedder_of, get_store, list_documents, list_stores, store_counts


@click.group()
def index() -> None:
    """
    Documents: create a store, add, remove, search.

    \b
        ryorin index create handbook --tenant support
        ryorin index add handbook ./documents --tenant support
        ryorin index search handbook "return unopened goods" --tenant support
    """


for command in (store_commands.verify, store_commands.rebuild, store_commands.merge, store_commands.stats):
    index.add_command(command)


@index.command()
@click.argument("store")
@tenant_option
@click.option("--embedder", default=DEFAULT_EMBEDDER, show_default=True, help="A name of 'ryorin models list'.")
@click.option(
    "--max-tokens",
    type=int,
    help=f"Tokens of a passage at most, {MIN_TOKENS} to {MAX_TOKENS}.  "
    f"[default: {DEFAULT_MAX_TOKENS}, fewer for an embedder that reads fewer]",
)
@click.option(
    "--overlap-tokens",
    type=int,
    help="Tokens that a passage shares with the next one at most, in whole sentences; "
    f"half of --max-tokens at most.  [default: {DEFAULT_OVERLAP_TOKENS}]",
)
@json_option
def create(
    store: str, tenant_name: str, embedder: str, max_tokens: int | None, overlap_tokens: int | None, as_json: bool
) -> None:
    """
    Create an empty vector store.

    Example: ryorin index create handbook --tenant support
    """
    chunking = make_chunking(max_tokens, overlap_tokens)
    with catalog_session() as (catalog, session):
        chosen = get_embedder(catalog.settings, embedder)
        made = create_store(session, get_tenant(session, tenant_name), store, chosen, chunking)
        result = {"id": made.id, "name": made.name, "embedder": made.embedder, "dimensions": made.dimensions}
    if as_json:
        print_json(result)
    else:
        say(
            f"store {store!r} of tenant {tenant_name!r}, embedder {embedder}; "
            f"fill it with 'ryorin index add {store} PATH'"
        )


@index.command(name="list")
@tenant_option
@json_option
def list_command(tenant_name: str, as_json: bool) -> None:
    """
    List the tenant's stores.

    Example: ryorin index list --tenant support
    """
    with catalog_session() as (_, session):
        stores = list_stores(session, get_tenant(session, tenant_name))
        rows = [
            {
                "name": store.name,
                "id": store.id,
                "embedder": store.embedder,
                **store_counts(session, store),
                "generation": store.generation,
                "created_at": store.created_at,
            }
            for store in stores
        ]
    columns = ("name", "documents", "passages", "embedder", "generation", "created_at")
    print_rows(rows, columns, as_json=as_json, empty="no stores yet; 'ryorin index create NAME' makes one")


@index.command()
@click.argument("store")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@tenant_option
@json_option
def add(store: str, paths: tuple[Path, ...], tenant_name: str, as_json: bool) -> None:
    """
    Add files and folders, or bring changed ones up to date.

    Formats: Markdown, text, HTML, PDF, Word (.docx), PowerPoint (.pptx), Excel (.xlsx), CSV, TSV, JSON, JSON Lines,
    e-mail (.eml), and ZIP archives of these. What lies in an archive or is attached to an e-mail is a document of its
    own; what vanished from it is removed.

    Files that did not change cost nothing; a running server finds the new text with its next question. A file that
    cannot be read is named, keeps the passages it had, and makes the exit code 2. A file that is gone from a folder
    stays in the store until 'ryorin index remove'.

    Example: ryorin index add handbook ./documents --tenant support
    """
    from ryorin_index.embed import open_embedder
    from ryorin_index.maintenance import maintain_quietly
    from ryorin_index.sync import add_paths

    with opened_store(store, tenant_name) as (catalog, chosen):
        embedder = embedder_of(catalog.settings, chosen)
        report = add_paths(catalog, chosen, paths, lambda: open_embedder(embedder), files_line())
        maintain_quietly(catalog, chosen)
    if as_json:
        print_json(asdict(report))
    else:
        show_report(report)
    if report.failed:
        sys.exit(2)


@index.command()
@click.argument("store")
@click.argument("documents", nargs=-1, required=True, metavar="DOCUMENT...")
@tenant_option
@json_option
def remove(store: str, documents: tuple[str, ...], tenant_name: str, as_json: bool) -> None:
    """
    Remove documents, named by file name, path or id; searches stop finding them at once.

    Example: ryorin index remove handbook old-prices.pdf --tenant support
    """
    from ryorin_index.ingest import remove_documents

    with opened_store(store, tenant_name) as (catalog, chosen):
        removed = remove_documents(catalog, chosen, documents)
    if as_json:
        print_json({"removed": removed})
    else:
        say(f"removed {len(removed)}; 'ryorin index add' brings a file back")


@index.command()
@click.argument("store")
@tenant_option
@json_option
def documents(store: str, tenant_name: str, as_json: bool) -> None:
    """
    List a store's documents.

    Example: ryorin index documents handbook --tenant support
    """
    with catalog_session() as (_, session):
        rows = list_documents(session, get_store(session, get_tenant(session, tenant_name), store))
    columns = ("filename", "title", "language", "passages", "updated_at")
    print_rows(rows, columns, as_json=as_json, empty="no documents yet; 'ryorin index add' brings some")


for command in (search, source, sync, watch, snapshot, snapshots, rollback, embedder_command, purge, delete):
    index.add_command(command)
for command in (evaluate, draft_cases):
    index.add_command(command)
