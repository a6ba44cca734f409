"""`ryorin index embedder | purge | delete`: what is done to a store as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ryorin.catalog.tenants import get_tenant
from ryorin.commands.common import json_option, opened_catalog, print_json, progress_line, say, tenant_option
from ryorin.models.registry import get_embedder
from ryorin_index.commands.common import opened_store
from ryorin_index.commands.snapshots import ask
from ryorin_index.store import get_store, store_counts

if TYPE_CHECKING:
    from ryorin_index.reembed import Change


@click.command()
@click.argument("store")
@click.argument("name")
@tenant_option
@click.option("--also", multiple=True, metavar="STORE", help="Another store to change together with it; repeatable.")
@json_option
def embedder(store: str, name: str, tenant_name: str, also: tuple[str, ...], as_json: bool) -> None:
    """
    Change a store's embedder to NAME; the present one serves until all texts are embedded.

    Interrupted, it goes on where it was when it is run again. The embedder that the store has gives up a change that
    was begun.

    \b
    Example:
        ryorin index embedder handbook all-minilm-l6-v2 --tenant support
        ryorin index embedder handbook all-minilm-l6-v2 --also prices --tenant support
    """
    from ryorin_index.embed import Embed, open_embedder
    from ryorin_index.reembed import change_embedder

    with opened_catalog() as catalog:
        with catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
            stores = [get_store(session, tenant, each) for each in dict.fromkeys((store, *also))]
        wanted = get_embedder(catalog.settings, name)
        opened: list[Embed] = []

        def embed() -> Embed:
            if not opened:
                opened.append(open_embedder(wanted))
            return opened[0]

        changed = change_embedder(catalog, stores, wanted, embed, _texts_line())
    if as_json:
        print_json(asdict(changed))
        return
    names = ", ".join(changed.generations)
    say(f"{names}: embedder {changed.embedder}; {changed.embedded} texts embedded in {changed.seconds:.1f} s")
    if changed.broken:
        versions = ", ".join(map(str, changed.broken))
        say(f"releases {versions} search it together with stores of another embedder: they find nothing when promoted")


@click.command()
@click.argument("store")
@tenant_option
@click.option("--dry-run", is_flag=True, help="Count only.")
@json_option
def purge(store: str, tenant_name: str, dry_run: bool, as_json: bool) -> None:
    """
    Remove what no reader, passage or snapshot needs: old tombstones, and vectors of texts that are gone.

    Vectors are shared by all stores of the tenant, and all of them are looked through.

    Example: ryorin index purge handbook --tenant support --dry-run
    """
    from ryorin_index.purge import purge_store

    with opened_store(store, tenant_name) as (catalog, chosen):
        done = purge_store(catalog, chosen, dry_run=dry_run)
    if as_json:
        print_json(asdict(done) | {"dry_run": dry_run})
    else:
        what = "would remove" if dry_run else "removed"
        say(f"{what} {done.tombstones} tombstones and {done.vectors} vectors ({done.bytes:,} bytes)")


@click.command()
@click.argument("store")
@tenant_option
@click.option("--force", is_flag=True, help="Also when releases that are not live name it.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@json_option
def delete(store: str, tenant_name: str, force: bool, yes: bool, as_json: bool) -> None:
    """
    Delete a store with its documents, passages and snapshots; it cannot be brought back.

    Example: ryorin index delete handbook --tenant support
    """
    from ryorin_index.purge import delete_store

    with opened_catalog() as catalog:
        with catalog.session() as session:
            chosen = get_store(session, get_tenant(session, tenant_name), store)
            counts = store_counts(session, chosen)
        ask(f"Delete store {store!r} ({counts['documents']} documents, {counts['passages']} passages)?", yes)
        delete_store(catalog, chosen, force=force)
    if as_json:
        print_json({"deleted": store, **counts})
    else:
        say(f"store {store!r} is deleted, with {counts['documents']} documents")


def _texts_line() -> Callable[[Change], None]:
    line = progress_line()

    def show(change: Change) -> None:
        finished = change.done == change.total
        rate = f", {change.done / change.seconds:.0f}/s" if change.seconds else ""
        left = "" if finished or change.seconds_left is None else f", {change.seconds_left:.0f} s left"
        line(f"{change.done}/{change.total} texts embedded{rate}{left}", finished)

    return show
