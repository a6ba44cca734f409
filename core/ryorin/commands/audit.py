"""`ryorin audit`: who did what."""

from __future__ import annotations

import json
import time

import click

from ryorin.commands.common import catalog_session, json_option, print_rows, printable, tenant_option

DAY_S = 86_400


@click.command("audit")
@tenant_option
@click.option("--days", type=click.FloatRange(0, 36_500), default=30, show_default=True, help="How far back.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Rows at most.")
@json_option
def audit_command(tenant_name: str, days: float, limit: int, as_json: bool) -> None:
    """
    Show the administrative acts on a tenant, the newest first: what was done to what, when, and by whom.

    By whom is a key's prefix, or the user of the machine that ran a command. Nothing of it can be changed.

    \b
    Example:
        ryorin audit --tenant support --days 7
    """
    from ryorin.catalog.audit import audit_events, audit_row
    from ryorin.catalog.tenants import get_tenant

    with catalog_session() as (_, session):
        tenant = get_tenant(session, tenant_name)
        rows = [audit_row(event) for event in audit_events(session, tenant.id, time.time() - days * DAY_S, limit)]
    if not as_json:
        rows = [row | {"detail": printable(json.dumps(row["detail"], ensure_ascii=False))} for row in rows]
    print_rows(
        rows,
        ["created_at", "actor", "act", "target", "detail"],
        as_json=as_json,
        empty=f"nothing was done to tenant {tenant_name} in {days:g} days",
    )
