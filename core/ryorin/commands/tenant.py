"""`ryorin tenant`: departments."""

from __future__ import annotations

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


def _row(tenant: Any) -> dict[str, Any]:
    return {
        "id": tenant.id,
        "name": tenant.name,
        "description": tenant.description,
        "created_at": tenant.created_at,
    }
