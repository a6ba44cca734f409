"""`ryorin tenant`: departments."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ryorin.commands.common import catalog_session, json_option, print_json, print_rows, say


@click.group()
def tenant() -> None:
    """
    Departments: each has its own documents, adapters, keys and releases.

    \b
    Example:
        ryorin tenant create support --description "Customer support"
    """


@tenant.command("create")
@click.argument("name")
@click.option("--description", default="", metavar="TEXT", help="What the department does, for people.")
@json_option
def create_command(name: str, description: str, as_json: bool) -> None:
    """
    Create the tenant NAME; its name is also the model name that its clients ask for.

    \b
    Example:
        ryorin tenant create support --description "Customer support"
    """
    from ryorin.catalog.tenants import create_tenant

    with catalog_session() as (_, session):
        row = _row(create_tenant(session, name, description))
    if as_json:
        print_json(row)
    else:
        say(f"created tenant {name}; next: ryorin prompt set FILE --tenant {name}")


@tenant.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """
    List the tenants.

    \b
    Example:
        ryorin tenant list
    """
    from ryorin.catalog.tenants import list_tenants

    with catalog_session() as (_, session):
        rows = [_row(tenant) for tenant in list_tenants(session)]
    print_rows(
        rows,
        ["name", "description", "created_at"],
        as_json=as_json,
        empty="no tenants yet; create one with 'ryorin tenant create NAME'",
    )


def _limit(text: str | None) -> int | None:
    """A limit of the command line; 'none' takes one away."""
    from ryorin.errors import InvalidInput

    if text in (None, "none"):
        return None
    if not text.isascii() or not text.isdecimal():
        raise InvalidInput(f"limit is {text!r}; use a whole number, or 'none'", param="limit")
    return int(text)


@tenant.command("limits")
@click.argument("name")
@click.option("--key", "key_id", metavar="KEY", help="Of this key alone, by its id or prefix.")
@click.option("--requests-per-minute", metavar="N", help="Questions a minute; 'none' takes the limit away.")
@click.option("--tokens-per-minute", metavar="N", help="Tokens of prompts and answers a minute.")
@click.option("--tokens-per-month", metavar="N", help="The budget of a month (UTC).")
@json_option
def limits_command(name: str, key_id: str | None, as_json: bool, **given: str | None) -> None:
    """
    Show the limits of the tenant NAME, or of one of its keys; with options, change them. They hold from the next
    request on.

    \b
    Example:
        ryorin tenant limits support
        ryorin tenant limits support --tokens-per-month 20000000
        ryorin tenant limits support --key ryo-1f0c2b7d9e83 --requests-per-minute 60
    """
    from ryorin.catalog.keys import get_key
    from ryorin.catalog.tenants import get_tenant
    from ryorin.catalog.usage import set_limits

    changes = {field: _limit(text) for field, text in given.items() if text is not None}
    with catalog_session() as (_, session):
        row = get_tenant(session, name)
        limits = set_limits(session, row, get_key(session, row, key_id) if key_id else row, changes)
    shown = asdict(limits)
    if as_json:
        print_json(shown)
    else:
        for field, value in shown.items():
            click.echo(f"{field.replace('_', ' '):20}  {'no limit' if value is None else f'{value:,}'}")


@tenant.command("fallbacks")
@click.argument("name")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--none", "take_away", is_flag=True, help="Allow no model elsewhere any longer.")
@json_option
def fallbacks_command(name: str, models: tuple[str, ...], take_away: bool, as_json: bool) -> None:
    """
    Show, or with MODELs set, which models elsewhere may answer for the tenant NAME when no engine does.

    Its questions and the passages found for them are then sent there, so none is allowed unless it is said. The names
    are those of the file of 'ryorin serve --providers'; the first that answers is taken.

    \b
    Example:
        ryorin tenant fallbacks support
        ryorin tenant fallbacks support our-other-site gpt-small
        ryorin tenant fallbacks support --none
    """
    from ryorin.catalog.tenants import get_tenant, set_fallbacks

    if models and take_away:
        raise click.UsageError("MODEL and --none exclude each other.")
    with catalog_session() as (_, session):
        row = get_tenant(session, name)
        if models or take_away:
            set_fallbacks(session, row, models)
        allowed = row.fallbacks or []
    if as_json:
        print_json({"tenant": name, "fallbacks": allowed})
    else:
        click.echo(", ".join(allowed) or "none: its questions go to no model elsewhere")


@tenant.command("usage")
@click.argument("name")
@click.option("--months", type=click.IntRange(1, 120), default=3, show_default=True, help="How many, newest first.")
@json_option
def usage_command(name: str, months: int, as_json: bool) -> None:
    """
    Show what each key of the tenant NAME used a month: requests, and tokens of prompts and answers.

    \b
    Example:
        ryorin tenant usage support
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin.catalog.usage import monthly_usage

    with catalog_session() as (_, session):
        rows = monthly_usage(session, get_tenant(session, name), months)
    columns = ["month", "key_id", "requests", "tokens"]
    print_rows(rows, columns, as_json=as_json, empty=f"tenant {name} used nothing yet")


def _row(tenant: Any) -> dict[str, Any]:
    return {
        "id": tenant.id,
        "name": tenant.name,
        "description": tenant.description,
        "created_at": tenant.created_at,
    }
