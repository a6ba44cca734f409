"""`ryorin prompt`: a tenant's system text and answer schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ryorin.commands.common import catalog_session, json_option, print_json, say, tenant_option


@click.group()
def prompt() -> None:
    """
    A tenant's prompt: the same text in training, evaluation and serving.

    \b
    Example:
        ryorin prompt set support.json --tenant support
    """


@prompt.command("set")
@click.argument("file", type=click.Path(path_type=Path))
@tenant_option
@json_option
def set_command(file: Path, tenant_name: str, as_json: bool) -> None:
    """
    Make FILE the prompt of the tenant's next training and next release; live releases keep theirs.

    FILE is JSON with the fields system and answer_schema (a JSON Schema, or null), or plain text: the system text.

    \b
    Example:
        ryorin prompt set support.json --tenant support
    """
    from ryorin.catalog.tenants import get_tenant, set_prompt
    from ryorin.prompt_file import read_prompt_file

    value = read_prompt_file(file)
    with catalog_session() as (_, session):
        row = _row(set_prompt(session, get_tenant(session, tenant_name), value))
    if as_json:
        print_json(row)
    else:
        say(f"tenant {tenant_name} now has prompt {row['digest'][:12]}")


@prompt.command("show")
@tenant_option
@json_option
def show_command(tenant_name: str, as_json: bool) -> None:
    """
    Show the tenant's current prompt.

    \b
    Example:
        ryorin prompt show --tenant support
    """
    import json

    from ryorin.catalog.tenants import current_prompt, get_tenant

    with catalog_session() as (_, session):
        row = _row(current_prompt(session, get_tenant(session, tenant_name)))
    if as_json:
        print_json(row)
        return
    say(f"prompt {row['digest'][:12]}")
    click.echo(row["system"])
    if row["answer_schema"] is not None:
        click.echo("\nanswer schema:\n" + json.dumps(row["answer_schema"], indent=2, ensure_ascii=False))


def _row(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "digest": row.digest,
        "system": row.spec["system"],
        "answer_schema": row.spec["answer_schema"],
        "created_at": row.created_at,
    }
