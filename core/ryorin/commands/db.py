"""`ryorin db`: the catalog's schema."""

from __future__ import annotations

import click

from ryorin.commands.common import json_option, print_json, say


@click.group()
def db() -> None:
    """
    The catalog's database.

    SQLite in the .ryorin folder unless RYORIN_DATABASE_URL names a PostgreSQL.

    \b
    Example:
        RYORIN_DATABASE_URL=postgresql://ryorin@db/ryorin ryorin db upgrade
    """


@db.command("upgrade")
@json_option
def upgrade_command(as_json: bool) -> None:
    """
    Bring the schema to this version of Ryorin; SQLite does so by itself when it is opened.

    \b
    Example:
        ryorin db upgrade
    """
    from sqlalchemy.engine import make_url

    from ryorin.catalog.database import upgrade_database
    from ryorin.settings import load_settings

    settings = load_settings()
    version = upgrade_database(settings)
    where = make_url(settings.database_url).render_as_string(hide_password=True)
    if as_json:
        print_json({"version": version, "database": where})
    else:
        say(f"the schema of {where} is at version {version}")
