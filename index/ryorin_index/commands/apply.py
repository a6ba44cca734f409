"""`ryorin apply`: departments as a file says them to be."""

from __future__ import annotations

from pathlib import Path

import click

from ryorin.commands.common import json_option, opened_catalog, print_json, printable, say
from ryorin.commands.traffic import rollout, wait_option

DRIFT = 1  # exit code of --dry-run when something differs


@click.command("apply")
@click.option("-f", "--file", "path", required=True, type=click.Path(path_type=Path), help="The file, in YAML.")
@click.option("--dry-run", is_flag=True, help="Show what differs and would be done; exit with 1 if anything does.")
@wait_option
@json_option
def apply_command(path: Path, dry_run: bool, wait_s: float, as_json: bool) -> None:
    """
    Make tenants what a YAML file says: description, prompt, stores with sources, release, canary, shadow.

    Applying twice does nothing the second time. What the file does not name is left alone; nothing is deleted unless it
    says 'remove'. What gets traffic is loaded first, and a tenant's traffic moves in one go or not at all.

    \b
    Example:
        ryorin apply -f tenants.yaml --dry-run
        ryorin apply -f tenants.yaml
    """
    from ryorin_index.declared.apply import Applier, plan_row
    from ryorin_index.declared.file import read_declared

    said = read_declared(path)
    with opened_catalog() as catalog:
        applier = Applier(catalog, path.resolve().parent)
        if dry_run:
            plans = applier.plan(said)
        else:
            plans = applier.apply(
                said, rollout(catalog, wait_s), lambda tenant, step: say(printable(f"{tenant}: {step}: done"))
            )
    drift = any(plan.steps for plan in plans)
    if as_json:
        print_json([plan_row(plan) for plan in plans])
    else:
        for plan in plans:
            if dry_run and plan.diff:
                click.echo(plan.diff)
            if dry_run:
                for step in plan.steps:
                    say(printable(f"{plan.tenant}: would {step}"))
            for left in plan.left_alone:
                say(f"{plan.tenant}: {left} is not in the file and left alone")
        if not drift:
            say("nothing to do: the catalog is what the file says")
    if not dry_run and any("add the source" in step for plan in plans for step in plan.steps):
        say("bring the documents in with: ryorin index sync STORE --tenant TENANT")
    if dry_run and drift:
        raise click.exceptions.Exit(DRIFT)
