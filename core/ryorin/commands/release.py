"""`ryorin release`: what a tenant answers with, pinned as a whole; created, made live, taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ryorin.commands.common import (
    catalog_session,
    json_option,
    opened_catalog,
    print_json,
    print_rows,
    say,
    tenant_option,
)
from ryorin.commands.traffic import (
    canary_command,
    diff_command,
    print_moved,
    rollout,
    say_moved,
    shadow_command,
    status_command,
    swap_adapter_command,
    wait_option,
)


@click.group()
def release() -> None:
    """
    Releases: base model, adapter, documents, prompt and retrieval, switched as one.

    \b
    Example:
        ryorin release create --tenant support --promote
    """


@release.command("create")
@tenant_option
@click.option(
    "--adapter",
    "adapter_name",
    metavar="NAME|latest|none",
    help="The adapter; by default the newest that fits the base and the current prompt, if there is one.",
)
@click.option(
    "--store", "store_names", multiple=True, metavar="NAME", help="A vector store; all of the tenant's by default."
)
@click.option("--no-store", is_flag=True, help="No documents at all.")
@click.option("--top-k", type=int, metavar="N", help="Passages in the prompt at most (3); 0 turns retrieval off.")
@click.option("--score-floor", type=float, metavar="X", help="Leave out passages less similar than X (-1 to 1).")
@click.option("--mode", metavar="hybrid|dense|lexical", help="Search by meaning and words (hybrid), or by one of them.")
@click.option("--dense-weight", type=float, metavar="X", help="Of the search by meaning in hybrid (1).")
@click.option("--lexical-weight", type=float, metavar="X", help="Of the search by words in hybrid (1).")
@click.option("--mmr", type=float, metavar="X", help="Relevance against variety, 1 to 0; by default relevance alone.")
@click.option(
    "--reranker",
    metavar="FOLDER",
    help="A cross-encoder of sentence-transformers that orders the best anew; pinned by its digest.",
)
@click.option(
    "--context", metavar="passage|neighbours|section", help="What of a passage's surroundings stands in the prompt."
)
@click.option(
    "--query", metavar="last|rewritten", help="Search for what was said last, or for that rewritten to stand alone."
)
@click.option(
    "--order", metavar="relevance|shared", help="Passages best first, or so that the engine's cache is of more use."
)
@click.option("--filter", "filters", metavar="JSON", help="Only documents whose attributes pass, in OpenAI's grammar.")
@click.option(
    "--base", "base_name", metavar="NAME", help="The base model; by default the adapter's, or the bundled one."
)
@click.option("--note", default="", metavar="TEXT", help="What is new in it, for people.")
@click.option("--allow-prompt-mismatch", is_flag=True, help="Take an adapter that was trained for another prompt.")
@click.option("--promote", "promote_now", is_flag=True, help="Make it live at once.")
@wait_option
@json_option
def create_command(
    tenant_name: str,
    adapter_name: str | None,
    store_names: tuple[str, ...],
    no_store: bool,
    top_k: int | None,
    score_floor: float | None,
    mode: str | None,
    dense_weight: float | None,
    lexical_weight: float | None,
    mmr: float | None,
    reranker: str | None,
    context: str | None,
    query: str | None,
    order: str | None,
    filters: str | None,
    base_name: str | None,
    note: str,
    allow_prompt_mismatch: bool,
    promote_now: bool,
    wait_s: float,
    as_json: bool,
) -> None:
    """
    Create a release from the tenant's current prompt, an adapter and its documents; not live until promoted.

    \b
    Example:
        ryorin release create --tenant support --note "new returns policy" --promote
        ryorin release create --tenant support --adapter none --top-k 5 --score-floor 0.8
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin.release import create_release, get_release
    from ryorin.release_parts import Wanted, find_parts
    from ryorin.release_view import documents_of, release_rows

    if no_store and store_names:
        raise click.UsageError("--store and --no-store exclude each other.")
    wanted = Wanted(
        adapter=adapter_name,
        stores=[] if no_store else store_names or None,
        retrieval={
            "top_k": top_k,
            "score_floor": score_floor,
            "mode": mode,
            "dense_weight": dense_weight,
            "lexical_weight": lexical_weight,
            "mmr": mmr,
            **_reranker(reranker),
            "context": context,
            "query": query,
            "order": order,
            "filters": _filters(filters),
        },
        base=base_name,
        allow_prompt_mismatch=allow_prompt_mismatch,
    )
    with opened_catalog() as catalog:
        with catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
            parts = find_parts(session, catalog.settings, tenant, wanted)
            created = create_release(session, tenant, **parts, note=note, allow_prompt_mismatch=allow_prompt_mismatch)
            version = created.version
        if promote_now:
            moved = rollout(catalog, wait_s).promote(tenant_name, version)
        with catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
            row = release_rows(session, tenant, [get_release(session, tenant, version)])[0]
    if as_json:
        print_json(row)
        return
    say(f"release {version} of tenant {tenant_name}: adapter {row['adapter'] or 'none'}, {documents_of(row)}")
    if promote_now:
        say_moved(moved)
    else:
        say(f"make it live with: ryorin release promote {version} --tenant {tenant_name}")


@release.command("list")
@tenant_option
@json_option
def list_command(tenant_name: str, as_json: bool) -> None:
    """
    List the tenant's releases, newest first.

    \b
    Example:
        ryorin release list --tenant support
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin.release import list_releases
    from ryorin.release_view import documents_of, release_rows
    from ryorin.traffic import shown_share

    with catalog_session() as (_, session):
        tenant = get_tenant(session, tenant_name)
        rows = release_rows(session, tenant, list_releases(session, tenant))
    if not as_json:
        for row in rows:
            share = f" {shown_share(row['share'])}" if row["share"] else ""
            row |= {"traffic": f"{row['traffic'] or ''}{share}", "documents": documents_of(row)}
    print_rows(
        rows,
        ["version", "traffic", "adapter", "documents", "note", "created_at"],
        as_json=as_json,
        empty=f"tenant {tenant_name} has no releases yet; make one with 'ryorin release create --tenant {tenant_name}'",
    )


@release.command("show")
@click.argument("version", type=int)
@tenant_option
@json_option
def show_command(version: int, tenant_name: str, as_json: bool) -> None:
    """
    Show everything that release VERSION pins.

    \b
    Example:
        ryorin release show 3 --tenant support
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin.release import get_release
    from ryorin.release_view import release_rows

    with catalog_session() as (_, session):
        tenant = get_tenant(session, tenant_name)
        row = release_rows(session, tenant, [get_release(session, tenant, version)])[0]
    if as_json:
        print_json(row)
        return
    for field, value in row.items():
        click.echo(f"{field.replace('_', ' '):<16}{'-' if value is None else value}")


@release.command("promote")
@click.argument("version", type=int)
@tenant_option
@wait_option
@json_option
def promote_command(version: int, tenant_name: str, wait_s: float, as_json: bool) -> None:
    """
    Make release VERSION live: the next request uses it, requests in flight finish on the old one.

    Running gateways load it first. If one cannot, the old release stays live and the error says why.

    \b
    Example:
        ryorin release promote 3 --tenant support
    """
    with opened_catalog() as catalog:
        print_moved(rollout(catalog, wait_s).promote(tenant_name, version), as_json)


@release.command("rollback")
@tenant_option
@wait_option
@json_option
def rollback_command(tenant_name: str, wait_s: float, as_json: bool) -> None:
    """
    Make the release live again that was live before; once more goes one further back.

    \b
    Example:
        ryorin release rollback --tenant support
    """
    with opened_catalog() as catalog:
        moved = rollout(catalog, wait_s).rollback(tenant_name)
    if as_json:
        print_moved(moved, as_json)
    else:
        say(f"release {moved.version} of tenant {tenant_name} is live again; before: {moved.before}")
        say(f"to undo: ryorin release promote {moved.before} --tenant {tenant_name}")


def _reranker(name: str | None) -> dict[str, str]:
    """Where a reranker lies and which one it is. Raises NotFound when there is none."""
    from ryorin.models.folders import reranker_digest

    if name is None:
        return {}
    folder = Path(name).expanduser().resolve()
    return {"reranker": str(folder), "reranker_digest": reranker_digest(folder)}


def _filters(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    from ryorin.errors import InvalidInput

    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"--filter is not an object in JSON: {error}", param="filters") from error


for command in (canary_command, shadow_command, status_command, diff_command, swap_adapter_command):
    release.add_command(command)
