"""`ryorin key`: API keys of a tenant."""

from __future__ import annotations

import time
from typing import Any

import click

from ryorin.commands.common import catalog_session, json_option, print_json, print_rows, say, tenant_option
from ryorin.scopes import DEFAULT_SCOPES, SCOPES
from ryorin.settings import ROTATION_GRACE_S

DAY_S = 86_400
MAX_EXPIRES_DAYS = 36_500


@click.group()
def key() -> None:
    """
    API keys: bearer secrets with which clients speak for a tenant.

    \b
    Example:
        ryorin key create --tenant support --label helpdesk-frontend
    """


@key.command("create")
@tenant_option
@click.option("--label", default="", metavar="TEXT", help="What the key is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    default=DEFAULT_SCOPES,
    show_default=True,
    help="What it may do; several times for several.",
)
@click.option("--expires-days", type=click.IntRange(1, MAX_EXPIRES_DAYS), metavar="N", help="Valid for N days.")
@json_option
def create_command(
    tenant_name: str, label: str, scopes: tuple[str, ...], expires_days: int | None, as_json: bool
) -> None:
    """
    Create a key and print its secret, which is shown this once and kept nowhere.

    Scopes: chat asks; knowledge uploads files and keeps vector stores; train uploads files and has adapters trained;
    admin moves releases, makes keys, sets limits and reads the audit log.

    \b
    Example:
        ryorin key create --tenant support --label helpdesk-frontend --expires-days 90
        ryorin key create --tenant support --label indexer --scope knowledge
    """
    from ryorin.catalog.keys import issue_key, key_row
    from ryorin.catalog.tenants import get_tenant

    expires_at = time.time() + expires_days * DAY_S if expires_days else None
    with catalog_session() as (catalog, session):
        tenant = get_tenant(session, tenant_name)
        row, secret = issue_key(session, tenant, catalog.settings.pepper(), label, expires_at, scopes)
        result = key_row(row)
    _show_secret(result, secret, tenant_name, as_json)


@key.command("list")
@tenant_option
@json_option
def list_command(tenant_name: str, as_json: bool) -> None:
    """
    List the keys of a tenant; secrets are not kept and cannot be shown.

    \b
    Example:
        ryorin key list --tenant support
    """
    from ryorin.catalog.keys import key_row, list_keys
    from ryorin.catalog.tenants import get_tenant

    with catalog_session() as (_, session):
        rows = [key_row(row) for row in list_keys(session, get_tenant(session, tenant_name))]
    if not as_json:
        rows = [row | {"scopes": ", ".join(row["scopes"])} for row in rows]
    print_rows(
        rows,
        ["id", "prefix", "label", "scopes", "created_at", "expires_at", "revoked_at"],
        as_json=as_json,
        empty=f"tenant {tenant_name} has no keys yet; create one with 'ryorin key create --tenant {tenant_name}'",
    )


@key.command("rotate")
@click.argument("key_id", metavar="KEY")
@tenant_option
@click.option(
    "--grace-hours",
    type=click.FloatRange(0, MAX_EXPIRES_DAYS * 24),
    default=ROTATION_GRACE_S / 3600,
    show_default=True,
    help="How long the old one goes on.",
)
@json_option
def rotate_command(key_id: str, tenant_name: str, grace_hours: float, as_json: bool) -> None:
    """
    Make a new key in the place of KEY (its id or prefix), with the same scopes and limits; the old one ends later.

    \b
    Example:
        ryorin key rotate ryo-1f0c2b7d9e83 --tenant support --grace-hours 2
    """
    from ryorin.catalog.keys import key_row, rotate_key
    from ryorin.catalog.tenants import get_tenant

    with catalog_session() as (catalog, session):
        tenant = get_tenant(session, tenant_name)
        row, secret = rotate_key(session, tenant, catalog.settings.pepper(), key_id, grace_hours * 3600)
        result = key_row(row)
    _show_secret(result, secret, tenant_name, as_json)


@key.command("revoke")
@click.argument("key_id", metavar="KEY")
@tenant_option
@json_option
def revoke_command(key_id: str, tenant_name: str, as_json: bool) -> None:
    """
    Revoke KEY (its id or its prefix): refused from the next request on. It cannot be undone.

    \b
    Example:
        ryorin key revoke key_1f0c2b7d9e83aa5512f0c6d4 --tenant support
    """
    from ryorin.catalog.keys import key_row, revoke_key
    from ryorin.catalog.tenants import get_tenant

    with catalog_session() as (_, session):
        row = key_row(revoke_key(session, get_tenant(session, tenant_name), key_id))
    if as_json:
        print_json(row)
    else:
        say(f"revoked key {row['id']} of tenant {tenant_name}")


def _show_secret(result: dict[str, Any], secret: str, tenant_name: str, as_json: bool) -> None:
    if as_json:
        print_json({"key": secret, **result})
        return
    may = ", ".join(result["scopes"])
    say(f"key {result['id']} of tenant {tenant_name}, for {may}; its secret is shown this once:")
    click.echo(secret)
