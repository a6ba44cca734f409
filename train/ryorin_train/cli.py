"""`ryorin train`: words in, words out; the work is in job.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ryorin.commands.common import (
    json_option,
    opened_catalog,
    print_json,
    say,
    stopping_in_order,
    tenant_option,
)
from ryorin_train.recipe import Recipe

DEFAULTS = Recipe()


@click.group()
def train() -> None:
    """
    Train an adapter from examples.

    \b
    Example:
        ryorin train sft --tenant support --data examples.jsonl
    """


@train.command("sft")
@tenant_option
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Examples, chat JSONL.")
@click.option("--base", "base_name", metavar="NAME", help="The base model; the bundled one unless named.")
@click.option("--epochs", type=int, default=DEFAULTS.epochs, show_default=True, help="Passes over the rows.")
@click.option("--rank", type=int, default=DEFAULTS.rank, show_default=True, help="LoRA rank: 1, 8, 16, 32 or 64.")
@click.option("--alpha", type=int, default=DEFAULTS.alpha, show_default=True, help="LoRA scaling: alpha / rank.")
@click.option(
    "--targets",
    default=",".join(DEFAULTS.targets),
    show_default=True,
    metavar="A,B,…",
    callback=lambda _context, _option, text: tuple(part.strip() for part in text.split(",") if part.strip()),
    help="The linear modules that are adapted.",
)
@click.option("--rslora", is_flag=True, help="Scale by alpha / sqrt(rank) instead: for large ranks.")
@click.option("--qlora", is_flag=True, help="Keep the base model in 4 bits while training; on a GPU only.")
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
