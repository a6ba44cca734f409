"""`ryorin logs`: how long the log of requests is kept, and taking a person's requests out of it."""

from __future__ import annotations

import click

from ryorin.commands.common import catalog_session, json_option, opened_catalog, print_json, say, tenant_option


@click.group()
def logs() -> None:
    """
    The log of requests: questions, answers, passages, tokens and times of each.

    \b
    Example:
        ryorin logs keep --tenant support --days 90
    """


@logs.command("keep")
@tenant_option
@click.option("--days", metavar="N|none", help="Rows older than this are deleted; 'none' keeps them.")
@json_option
def keep_command(tenant_name: str, days: str | None, as_json: bool) -> None:
    """
    Show or set how long a tenant's log is kept. A running server deletes what is older, within minutes.

    \b
    Example:
        ryorin logs keep --tenant support --days 90
    """
    from ryorin.catalog.logs import set_log_days
    from ryorin.catalog.tenants import get_tenant
    from ryorin.errors import InvalidInput

    with catalog_session() as (_, session):
        tenant = get_tenant(session, tenant_name)
        if days is not None:
            if days != "none" and not (days.isascii() and days.isdecimal() and len(days) < 8):
                raise InvalidInput(f"days is {days!r}; use a whole number, or 'none'", param="days")
            set_log_days(session, tenant, None if days == "none" else int(days))
        kept = tenant.log_days
    if as_json:
        print_json({"tenant": tenant_name, "log_days": kept})
    else:
        say(f"the log of tenant {tenant_name} is kept " + ("for good" if kept is None else f"for {kept} days"))


@logs.command("prune")
@json_option
def prune_command(as_json: bool) -> None:
    """
    Delete rows that are older than their tenants keep them, now.

    \b
    Example:
        ryorin logs prune
    """
    from ryorin.catalog.logs import prune_logs

    deleted = 0
    with opened_catalog() as catalog:
        while True:
            with catalog.session() as session:
                some = prune_logs(session)
            deleted += some
            if not some:
                break
    if as_json:
        print_json({"deleted": deleted})
    else:
        say(f"{deleted} rows deleted")


@logs.command("erase")
@tenant_option
@click.option("--user", "name", required=True, metavar="NAME", help="As clients send it: 'user', 'safety_identifier'.")
@json_option
def erase_command(tenant_name: str, name: str, as_json: bool) -> None:
    """
    Delete all that a tenant's log holds of one person: their questions, the answers, shadows' too. It cannot be undone.

    Datasets that were made from logs, files and documents are not searched for the person: delete those by hand.

    \b
    Example:
        ryorin logs erase --tenant support --user anna.k
    """
    from ryorin.catalog.logs import erase_asker
    from ryorin.catalog.tenants import get_tenant

    with catalog_session() as (catalog, session):
        rows = erase_asker(session, get_tenant(session, tenant_name), catalog.settings.pepper(), name)
    if as_json:
        print_json({"tenant": tenant_name, "deleted": rows})
    else:
        say(f"{rows} rows of the log of tenant {tenant_name} deleted; datasets, files and documents were not searched")
