"""`ryorin index snapshot | snapshots | rollback`: what a store was, and going back to it."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from ryorin.catalog.tenants import get_tenant
from ryorin.commands.common import (
    catalog_session,
    json_option,
    opened_catalog,
    print_json,
    print_rows,
    say,
    tenant_option,
)
from ryorin_index.commands.common import opened_store
from ryorin_index.store import embedder_of, get_store


@click.command()
@click.argument("store")
@click.argument("name", required=False)
@tenant_option
@json_option
def snapshot(store: str, name: str | None, tenant_name: str, as_json: bool) -> None:
    """
    Keep what the store holds now, under NAME or the present time.

    Example: ryorin index snapshot handbook before-import --tenant support
    """
    from ryorin_index.snapshots import create_snapshot

    with opened_store(store, tenant_name) as (catalog, chosen):
        made = create_snapshot(catalog, chosen, name)
    if as_json:
        keys = ("name", "generation", "documents", "passages", "embedder", "bytes", "sha256", "created_at")
        print_json({key: getattr(made, key) for key in keys})
    else:
        say(
            f"snapshot {made.name!r}: {made.documents} documents, {made.passages} passages, {made.bytes:,} bytes; "
            f"go back with 'ryorin index rollback {store} {made.name}'"
        )


@click.command()
@click.argument("store")
@tenant_option
@click.option("--delete", "unwanted", metavar="NAME", help="Delete this snapshot instead of listing them.")
@click.option("--yes", is_flag=True, help="Do not ask before deleting.")
@json_option
def snapshots(store: str, tenant_name: str, unwanted: str | None, yes: bool, as_json: bool) -> None:
    """
    List a store's snapshots, newest first, or delete one.

    \b
    Example:
        ryorin index snapshots handbook --tenant support
        ryorin index snapshots handbook --tenant support --delete before-import
    """
    from ryorin_index.snapshots import delete_snapshot, get_snapshot, list_snapshots

    if unwanted is None:
        with catalog_session() as (_, session):
            chosen = get_store(session, get_tenant(session, tenant_name), store)
            rows = [
                {
                    "name": each.name,
                    "documents": each.documents,
                    "passages": each.passages,
                    "generation": each.generation,
                    "embedder": each.embedder,
                    "bytes": each.bytes,
                    "created_at": each.created_at,
                }
                for each in list_snapshots(session, chosen)
            ]
        columns = ("name", "documents", "passages", "generation", "bytes", "created_at")
        print_rows(rows, columns, as_json=as_json, empty=f"no snapshots yet; 'ryorin index snapshot {store}' takes one")
        return
    with opened_catalog() as catalog:
        with catalog.session() as session:
            chosen = get_store(session, get_tenant(session, tenant_name), store)
            get_snapshot(session, chosen, unwanted)
        ask(f"Delete snapshot {unwanted!r} of store {store!r}?", yes)
        delete_snapshot(catalog, chosen, unwanted)
    if as_json:
        print_json({"deleted": unwanted})
    else:
        say(f"snapshot {unwanted!r} is deleted")


@click.command()
@click.argument("store")
@click.argument("name")
@tenant_option
@click.option("--no-save", is_flag=True, help="Do not take a snapshot of the present state first.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@json_option
def rollback(store: str, name: str, tenant_name: str, no_save: bool, yes: bool, as_json: bool) -> None:
    """
    Make a store's documents those of snapshot NAME, at once for every search.

    A snapshot of the present state is taken first, so that this can be undone. Sources are not asked: the next sync
    brings what they say now.

    Example: ryorin index rollback handbook before-import --tenant support
    """
    from ryorin_index.embed import open_embedder
    from ryorin_index.snapshots import get_snapshot, rollback_store

    with opened_catalog() as catalog:
        with catalog.session() as session:
            chosen = get_store(session, get_tenant(session, tenant_name), store)
            wanted = get_snapshot(session, chosen, name)
        ask(
            f"Make store {store!r} what it was at generation {wanted.generation} "
            f"({wanted.documents} documents, {wanted.passages} passages)?",
            yes,
        )
        done = rollback_store(
            catalog,
            chosen,
            name,
            lambda: open_embedder(embedder_of(catalog.settings, chosen)),
            save=not no_save,
        )
    if as_json:
        print_json(asdict(done))
        return
    say(
        f"{done.added} documents brought back, {done.changed} changed, {done.removed} removed; "
        f"{done.embedded} passages embedded"
    )
    if done.saved_as:
        say(f"to undo: ryorin index rollback {store} {done.saved_as} --tenant {tenant_name}")


def ask(question: str, yes: bool) -> None:
    """Ask before something is changed, on a terminal; what is not a person is not asked. Ends the command on a no."""
    if not yes and sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)
