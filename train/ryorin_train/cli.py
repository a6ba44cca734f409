"""`ryorin train` and `ryorin adapter`: words in, words out; the work is in job.py and adapters.py."""

from __future__ import annotations

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
    stopping_in_order,
    tenant_option,
)
from ryorin_train.judging.cli import evaluate_command
from ryorin_train.recipe import Recipe

DEFAULTS = Recipe()


@click.group()
def train() -> None:
    """
    Train an adapter from examples, and judge what it is worth.

    \b
    Example:
        ryorin train sft --tenant support --data examples.jsonl
    """


train.add_command(evaluate_command)


@train.command("sft")
@tenant_option
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Examples, chat JSONL.")
@click.option("--base", "base_name", metavar="NAME", help="The base model; the bundled one unless named.")
@click.option("--epochs", type=int, default=DEFAULTS.epochs, show_default=True, help="Passes over the rows.")
@click.option("--rank", type=int, default=DEFAULTS.rank, show_default=True, help="LoRA rank: 1, 8, 16, 32 or 64.")
@click.option("--alpha", type=int, default=DEFAULTS.alpha, show_default=True, help="LoRA scaling: alpha / rank.")
@click.option("--learning-rate", type=float, default=DEFAULTS.learning_rate, show_default=True, help="At its peak.")
@click.option("--batch-tokens", type=int, default=DEFAULTS.batch_tokens, show_default=True, help="Tokens of a step.")
@click.option(
    "--layers",
    type=int,
    default=DEFAULTS.layers,
    show_default="all",
    help="Adapt only this many of the uppermost layers: an epoch then costs that share.",
)
@click.option(
    "--held-out", type=float, default=DEFAULTS.held_out, show_default=True, help="Share of rows never trained on."
)
@click.option(
    "--max-row-tokens", type=int, default=DEFAULTS.max_row_tokens, show_default=True, help="The longest row accepted."
)
@click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True, help="Of every random choice.")
@click.option("--start-from", metavar="ADAPTER", help="Begin with this adapter's weights; of the same base and shape.")
@click.option("--again", is_flag=True, help="Train even if an identical run was trained before.")
@json_option
def sft_command(
    tenant_name: str,
    data: Path,
    base_name: str | None,
    start_from: str | None,
    again: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """
    Train an adapter on example conversations (supervised fine-tuning, LoRA).

    FILE holds one example a line: {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content":
    "…"}]}, and, where the tenant answers from documents, "passages": [{"title": "…", "text": "…"}]. Only the
    assistant's words are learned. The tenant's current prompt is put before each.

    With --start-from a department's adapter grows out of an earlier one: its own, to add examples, or one that several
    departments share. What that one was trained on lives on in the new one; its manifest names it.

    \b
    Examples:
        ryorin train sft --tenant support --data examples.jsonl
        ryorin train sft --tenant support --data examples.jsonl --layers 15 --epochs 4
        ryorin train sft --tenant support --data more.jsonl --start-from support-1f0c2a9b7d3e
    """
    from ryorin_train.job import run_sft

    recipe = Recipe(**values)
    with stopping_in_order(), opened_catalog() as catalog:
        finished = run_sft(catalog, tenant_name, data, base_name, recipe, say, start_from=start_from, again=again)
    if as_json:
        print_json(finished.as_json())
        return
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in finished.metrics.items())
    say(f"{scores}; {finished.seconds:.0f} s")
    click.echo(finished.adapter)


@click.group()
def adapter() -> None:
    """
    Trained adapters.

    \b
    Example:
        ryorin adapter list --tenant support
    """


@adapter.command("list")
@click.option("--tenant", "tenant_name", envvar="RYORIN_TENANT", metavar="NAME", help="Only this department's.")
@json_option
def list_command(tenant_name: str | None, as_json: bool) -> None:
    """
    List adapters, newest first.

    \b
    Example:
        ryorin adapter list --tenant support
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin_train.adapters import list_adapters

    with catalog_session() as (_, session):
        tenant = get_tenant(session, tenant_name) if tenant_name else None
        rows = [
            {
                "name": row.name,
                "tenant": owner,
                "base": row.manifest["base"]["name"],
                "rank": row.rank,
                "rows": row.manifest["data"]["rows"],
                "held_out_loss": row.manifest["metrics"].get("held_out_loss"),
                "created_at": row.created_at,
            }
            for row, owner in list_adapters(session, tenant)
        ]
    columns = ("name", "tenant", "base", "rank", "rows", "held_out_loss", "created_at")
    print_rows(rows, columns, as_json=as_json, empty="no adapters yet; 'ryorin train sft' makes one")


@adapter.command("show")
@click.argument("name")
@json_option
def show_command(name: str, as_json: bool) -> None:
    """
    Show the adapter NAME: what it was trained on, how, and how well.

    \b
    Example:
        ryorin adapter show support-1f0c2a9b7d3e
    """
    from ryorin_train.adapters import get_adapter, is_whole

    with catalog_session() as (catalog, session):
        row, _ = get_adapter(session, name)
        folder = catalog.settings.adapters_dir / row.name
        shown = {**row.manifest, "path": str(folder), "files": "whole" if is_whole(folder, row.digest) else "damaged"}
    if as_json:
        print_json(shown)
        return
    width = max(len(key) for key in shown)
    for key, value in shown.items():
        text = ", ".join(f"{part} {item}" for part, item in value.items()) if isinstance(value, dict) else value
        click.echo(f"{key.replace('_', ' '):{width}}  {text}")
