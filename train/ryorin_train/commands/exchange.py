"""`ryorin adapter import`, `export` and `merge`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ryorin.commands.common import json_option, opened_catalog, print_json, say, stopping_in_order, tenant_option
from ryorin.errors import InvalidInput


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path), metavar="FOLDER|ZIP")
@tenant_option
@click.option("--base", "base_name", metavar="NAME", help="The base model it adapts; by default what it names.")
@click.option(
    "--for-current-prompt",
    is_flag=True,
    help="It was made for the department's present prompt: a release takes it without more.",
)
@json_option
def import_command(
    source: Path, tenant_name: str, base_name: str | None, for_current_prompt: bool, as_json: bool
) -> None:
    """
    Take over a LoRA adapter that PEFT saved elsewhere.

    Two files are taken, adapter_config.json and adapter_model.safetensors, and only when vLLM can serve them on that
    base model: each field, tensor name, type, shape and value is checked. Pickles (.bin, .pt), links and archives that
    lead out of themselves are refused, and nothing in the source is executed.

    For which prompt it was made is not known unless you say so with --for-current-prompt; a release then needs
    --allow-prompt-mismatch.

    \b
    Examples:
        ryorin adapter import ./polite-lora --tenant support --base smollm2-135m-instruct
        ryorin adapter import polite-lora.zip --tenant support --for-current-prompt
    """
    from ryorin_train.import_adapter import import_adapter

    with stopping_in_order(), opened_catalog() as catalog:
        imported = import_adapter(
            catalog, tenant_name, source, base_name=base_name, for_current_prompt=for_current_prompt, say=say
        )
    if as_json:
        print_json(asdict(imported))
        return
    bound = "the present prompt" if for_current_prompt else "no prompt: a release needs --allow-prompt-mismatch"
    say("it was here already" if imported.present else f"rank {imported.rank} on {imported.base}, bound to {bound}")
    click.echo(imported.adapter)


@click.command("export")
@click.argument("name")
@click.argument("target", type=click.Path(path_type=Path), metavar="FOLDER|FILE.zip")
@click.option("--merged", is_flag=True, help="The whole model, the adapter merged into its weights, for any engine.")
@click.option("--base-id", metavar="ORG/NAME", help="The base model's public name, where it did not come from the hub.")
@json_option
def export_command(name: str, target: Path, merged: bool, base_id: str | None, as_json: bool) -> None:
    """
    Write the adapter NAME in the Hugging Face layout, as PEFT loads it, with a model card and its manifest.

    With --merged the base model's weights with the adapter in them, its tokenizer and configuration, as transformers
    loads them.

    \b
    Examples:
        ryorin adapter export support-1f0c2a9b7d3e ./support-lora
        ryorin adapter export support-1f0c2a9b7d3e support-lora.zip --base-id HuggingFaceTB/SmolLM2-135M-Instruct
        ryorin adapter export support-1f0c2a9b7d3e ./support-model --merged
    """
    from ryorin_train.export_adapter import export_adapter

    with stopping_in_order(), opened_catalog() as catalog:
        exported = export_adapter(catalog, name, target, merged=merged, base_id=base_id, say=say)
    if as_json:
        print_json(asdict(exported))
        return
    say(f"{', '.join(exported.files)}: {exported.bytes / 1e6:.1f} MB, base model {exported.base_model}")
    click.echo(exported.path)


@click.command("merge")
@click.argument("names", nargs=-1, required=True, metavar="A B...")
@click.option("--weights", required=True, metavar="X,Y,…", help="How much of each one's change, e.g. 0.5,0.5.")
@click.option("--rank", type=int, metavar="N", help="Of the result; by default the smallest that loses nothing.")
@click.option(
    "--tenant", "tenant_name", envvar="RYORIN_TENANT", metavar="NAME", help="Whose it is; the first one's by default."
)
@json_option
def merge_command(
    names: tuple[str, ...], weights: str, rank: int | None, tenant_name: str | None, as_json: bool
) -> None:
    """
    Make a new adapter out of several of one base model: the weighted sum of what they change.

    Exact while the ranks together are 64 at most; above, or with --rank, the nearest adapter of that rank, and it says
    how much of the sum was lost. A sum can behave unlike each of its parts: evaluate it before it goes live.

    \b
    Examples:
        ryorin adapter merge support-1f0c2a9b7d3e support-77aa03c41b2d --weights 0.7,0.3
        ryorin adapter merge support-1f0c2a9b7d3e people-90b1ce6f2a77 --weights 1,0.5 --rank 16 --tenant people
    """
    from ryorin_train.merge_adapters import merge_adapters

    try:
        parsed = [float(part) for part in weights.split(",")]
    except ValueError:
        raise InvalidInput(f"--weights is {weights!r}; write numbers with commas between, as 0.5,0.5") from None
    with stopping_in_order(), opened_catalog() as catalog:
        merged = merge_adapters(catalog, names, parsed, tenant_name=tenant_name, rank=rank, say=say)
    if as_json:
        print_json(asdict(merged))
        return
    say("it was here already" if merged.present else f"rank {merged.rank}, {merged.lost:.1%} of the sum lost")
    click.echo(merged.adapter)
