"""`ryorin release`: what a tenant answers with, pinned as a whole; created, made live, taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ryorin.commands.common import catalog_session, json_option, print_json, print_rows, say, tenant_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from ryorin.catalog.tables import Adapter, Promotion, Release, Tenant, VectorStore

LATEST, NONE = "latest", "none"


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
@click.option("--filter", "filters", metavar="JSON", help="Only documents whose attributes pass, in OpenAI's grammar.")
@click.option(
    "--base", "base_name", metavar="NAME", help="The base model; by default the adapter's, or the bundled one."
)
@click.option("--note", default="", metavar="TEXT", help="What is new in it, for people.")
@click.option("--allow-prompt-mismatch", is_flag=True, help="Take an adapter that was trained for another prompt.")
@click.option("--promote", "promote_now", is_flag=True, help="Make it live at once.")
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
    filters: str | None,
    base_name: str | None,
    note: str,
    allow_prompt_mismatch: bool,
    promote_now: bool,
    as_json: bool,
) -> None:
    """
    Create a release from the tenant's current prompt, an adapter and its documents; not live until promoted.

    \b
    Example:
        ryorin release create --tenant support --note "new returns policy" --promote
        ryorin release create --tenant support --adapter none --top-k 5 --score-floor 0.8
    """
    from ryorin.catalog.tenants import current_prompt, get_tenant
    from ryorin.models.registry import DEFAULT_BASE, get_base
    from ryorin.release import Retrieval, create_release, promote

    if no_store and store_names:
        raise click.UsageError("--store and --no-store exclude each other.")
    with catalog_session() as (catalog, session):
        tenant = get_tenant(session, tenant_name)
        prompt = current_prompt(session, tenant)
        named = None if adapter_name in (None, LATEST, NONE) else _adapter_by_name(session, tenant, str(adapter_name))
        if named is not None and base_name is None:
            base_digest = named.base_digest
        else:
            base_digest = get_base(catalog.settings, base_name or DEFAULT_BASE).digest
        adapter = named
        if adapter_name in (None, LATEST):
            wanted_prompt = None if allow_prompt_mismatch else prompt.digest
            adapter = _newest_adapter(session, tenant, base_digest, wanted_prompt, must_exist=adapter_name == LATEST)
        stores = [] if no_store else _stores(session, tenant, store_names)
        if top_k is None:
            top_k = Retrieval.top_k if stores else 0
        chosen: dict[str, Any] = {
            "top_k": top_k,
            "score_floor": score_floor,
            "mode": mode,
            "dense_weight": dense_weight,
            "lexical_weight": lexical_weight,
            "mmr": mmr,
            **_reranker(reranker),
            "context": context,
            "filters": _filters(filters),
        }
        created = create_release(
            session,
            tenant,
            base_digest=base_digest,
            prompt=prompt,
            adapter=adapter,
            stores=stores,
            retrieval=Retrieval(**{name: value for name, value in chosen.items() if value is not None}),
            note=note,
            allow_prompt_mismatch=allow_prompt_mismatch,
        )
        promotion = promote(session, tenant, created) if promote_now else None
        before = _previous_version(session, promotion) if promotion else None
        row = _rows(session, tenant, [created])[0]
    if as_json:
        print_json(row)
        return
    say(f"release {row['version']} of tenant {tenant_name}: adapter {row['adapter'] or 'none'}, {_documents(row)}")
    if promote_now:
        _say_switched(tenant_name, row["version"], before)
    else:
        say(f"make it live with: ryorin release promote {row['version']} --tenant {tenant_name}")


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

    with catalog_session() as (_, session):
        tenant = get_tenant(session, tenant_name)
        rows = _rows(session, tenant, list_releases(session, tenant))
    if not as_json:
        rows = [row | {"live": "live" if row["live"] else "", "documents": _documents(row)} for row in rows]
    print_rows(
        rows,
        ["version", "live", "adapter", "documents", "note", "created_at"],
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

    with catalog_session() as (_, session):
        tenant = get_tenant(session, tenant_name)
        row = _rows(session, tenant, [get_release(session, tenant, version)])[0]
    if as_json:
        print_json(row)
        return
    for field, value in row.items():
        click.echo(f"{field.replace('_', ' '):<16}{'-' if value is None else value}")


@release.command("promote")
@click.argument("version", type=int)
@tenant_option
@json_option
def promote_command(version: int, tenant_name: str, as_json: bool) -> None:
    """
    Make release VERSION live: the next request uses it, requests in flight finish on the old one.

    \b
    Example:
        ryorin release promote 3 --tenant support
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin.release import get_release, promote

    with catalog_session() as (_, session):
        tenant = get_tenant(session, tenant_name)
        promotion = promote(session, tenant, get_release(session, tenant, version))
        changed = promotion is not None
        before = _previous_version(session, promotion) if promotion else version
    if as_json:
        print_json({"tenant": tenant_name, "live": version, "previous": before, "changed": changed})
    elif changed:
        _say_switched(tenant_name, version, before)
    else:
        say(f"release {version} of tenant {tenant_name} is live already; nothing changed")


@release.command("rollback")
@tenant_option
@json_option
def rollback_command(tenant_name: str, as_json: bool) -> None:
    """
    Make the release live again that was live before; once more goes one further back.

    \b
    Example:
        ryorin release rollback --tenant support
    """
    from ryorin.catalog.tables import Release
    from ryorin.catalog.tenants import get_tenant
    from ryorin.release import rollback

    with catalog_session() as (_, session):
        promotion = rollback(session, get_tenant(session, tenant_name))
        version = session.get_one(Release, promotion.release_id).version
        before = _previous_version(session, promotion)
    if as_json:
        print_json({"tenant": tenant_name, "live": version, "previous": before, "changed": True})
    else:
        say(f"release {version} of tenant {tenant_name} is live again; before: {before}")
        say(f"to undo: ryorin release promote {before} --tenant {tenant_name}")


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


def _adapter_by_name(session: Session, tenant: Tenant, name: str) -> Adapter:
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter
    from ryorin.errors import NotFound

    adapters = session.scalars(
        select(Adapter)
        .where(Adapter.tenant_id == tenant.id, Adapter.deleted_at.is_(None))
        .order_by(Adapter.created_at.desc())
    ).all()
    for adapter in adapters:
        if adapter.name == name:
            return adapter
    known = ", ".join(adapter.name for adapter in adapters) or "none yet"
    raise NotFound(f"tenant {tenant.name!r} has no adapter {name!r} (known: {known})", param="adapter")


def _newest_adapter(
    session: Session, tenant: Tenant, base_digest: str, prompt_digest: str | None, *, must_exist: bool
) -> Adapter | None:
    """The newest adapter of that base and prompt (any prompt when None)."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter
    from ryorin.errors import NotFound

    query = select(Adapter).where(
        Adapter.tenant_id == tenant.id, Adapter.base_digest == base_digest, Adapter.deleted_at.is_(None)
    )
    if prompt_digest is not None:
        query = query.where(Adapter.prompt_digest == prompt_digest)
    adapter = session.scalar(query.order_by(Adapter.created_at.desc(), Adapter.id).limit(1))
    if adapter is None and must_exist:
        raise NotFound(
            f"tenant {tenant.name!r} has no adapter that fits base {base_digest[:12]} and the current prompt; "
            f"train one with 'ryorin train sft --tenant {tenant.name} --data FILE.jsonl'",
            param="adapter",
        )
    return adapter


def _stores(session: Session, tenant: Tenant, names: Sequence[str]) -> list[VectorStore]:
    """The named stores in the order given, or all of the tenant's by name."""
    from sqlalchemy import select

    from ryorin.catalog.tables import VectorStore
    from ryorin.errors import NotFound

    stores = session.scalars(
        select(VectorStore).where(VectorStore.tenant_id == tenant.id).order_by(VectorStore.name)
    ).all()
    if not names:
        return list(stores)
    by_name = {store.name: store for store in stores}
    for name in names:
        if name not in by_name:
            raise NotFound(
                f"tenant {tenant.name!r} has no vector store {name!r} (known: {', '.join(by_name) or 'none yet'}); "
                f"create it with 'ryorin index create {name} --tenant {tenant.name}'",
                param="store",
            )
    return [by_name[name] for name in dict.fromkeys(names)]


def _rows(session: Session, tenant: Tenant, releases: Sequence[Release]) -> list[dict[str, Any]]:
    """Releases as they are printed: names instead of ids."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter, Prompt, VectorStore

    adapters = {row.id: row.name for row in session.scalars(select(Adapter).where(Adapter.tenant_id == tenant.id))}
    prompts = {row.id: row.digest for row in session.scalars(select(Prompt).where(Prompt.tenant_id == tenant.id))}
    stores = {
        row.id: row.name for row in session.scalars(select(VectorStore).where(VectorStore.tenant_id == tenant.id))
    }
    return [
        {
            "version": release.version,
            "live": release.id == tenant.live_release_id,
            "adapter": adapters[release.adapter_id] if release.adapter_id else None,
            "stores": [stores.get(store_id, store_id) for store_id in release.store_ids],
            "retrieval": release.retrieval,
            "base": release.base_digest,
            "prompt": prompts[release.prompt_id],
            "digest": release.digest,
            "evidence": release.evidence,
            "note": release.note,
            "created_at": release.created_at,
            "id": release.id,
        }
        for release in releases
    ]


def _documents(row: dict[str, Any]) -> str:
    if not row["stores"] or not row["retrieval"]["top_k"]:
        return "no documents"
    return f"{row['retrieval']['top_k']} passages of {', '.join(row['stores'])}"


def _previous_version(session: Session, promotion: Promotion) -> int | None:
    from ryorin.catalog.tables import Release

    if promotion.previous_release_id is None:
        return None
    return session.get_one(Release, promotion.previous_release_id).version


def _say_switched(tenant_name: str, version: int, before: int | None) -> None:
    say(f"release {version} of tenant {tenant_name} is live; before: {before if before is not None else 'nothing'}")
    if before is not None:
        say(f"to undo: ryorin release rollback --tenant {tenant_name}")
