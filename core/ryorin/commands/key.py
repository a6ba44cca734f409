"""`ryorin key`: API keys of a tenant."""

from __future__ import annotations

import time
from typing import Any

import click

from ryorin.commands.common import catalog_session, json_option, print_json, print_rows, say, tenant_option

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
@click.option("--expires-days", type=click.IntRange(1, MAX_EXPIRES_DAYS), metavar="N", help="Valid for N days.")
@json_option
def create_command(tenant_name: str, label: str, expires_days: int | None, as_json: bool) -> None:
    """
    Create a key and print its secret, which is shown this once and kept nowhere.

    \b
    Example:
        ryorin key create --tenant support --label helpdesk-frontend --expires-days 90
    """
    from ryorin.catalog.tenants import get_tenant, issue_key

    expires_at = time.time() + expires_days * DAY_S if expires_days else None
    with catalog_session() as (catalog, session):
        tenant = get_tenant(session, tenant_name)
        row, secret = issue_key(session, tenant, catalog.settings.pepper(), label, expires_at)
        result = _row(row)
    if as_json:
        print_json({"key": secret, **result})
        return
    say(f"key {result['id']} of tenant {tenant_name}; its secret is shown this once:")
    click.echo(secret)


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
    from ryorin.catalog.tenants import get_tenant, list_keys

    with catalog_session() as (_, session):
        rows = [_row(row) for row in list_keys(session, get_tenant(session, tenant_name))]
    print_rows(
        rows,
        ["id", "prefix", "label", "created_at", "expires_at", "revoked_at"],
        as_json=as_json,
        empty=f"tenant {tenant_name} has no keys yet; create one with 'ryorin key create --tenant {tenant_name}'",
    )


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
    from ryorin.catalog.tenants import get_tenant, revoke_key

    with catalog_session() as (_, session):
        row = _row(revoke_key(session, get_tenant(session, tenant_name), key_id))
    if as_json:
        print_json(row)
    else:
        say(f"revoked key {row['id']} of tenant {tenant_name}")


def _row(key: Any) -> dict[str, Any]:
    fields = ("id", "prefix", "label", "created_at", "expires_at", "revoked_at")
    return {field: getattr(key, field) for field in fields}
