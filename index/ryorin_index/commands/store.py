"""Commands for the files of a store: `verify`, `rebuild`, `merge`, `stats`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ryorin.commands.common import json_option, print_json, printable, say, tenant_option
from ryorin_index.commands.common import opened_store

if TYPE_CHECKING:
    from ryorin_index.maintenance import Maintained


@click.command()
@click.argument("store")
@tenant_option
@json_option
def verify(store: str, tenant_name: str, as_json: bool) -> None:
    """
    Check a store's files against their digests and against the database; exit code 1 when something is wrong.

    Searches are right all the same: what is damaged is not searched, its passages come from the database.

    Example: ryorin index verify handbook --tenant support
    """
    from ryorin_index.maintenance import verify as verify_files

    with opened_store(store, tenant_name) as (catalog, chosen):
        problems = verify_files(catalog, chosen)
    if as_json:
        print_json({"problems": problems})
    else:
        for problem in problems:
            say(printable(f"error: {problem}"))
        say(f"{len(problems)} problems; 'ryorin index rebuild {store}' makes the files anew" if problems else "whole")
    if problems:
        sys.exit(1)


@click.command()
@click.argument("store")
@tenant_option
@json_option
def rebuild(store: str, tenant_name: str, as_json: bool) -> None:
    """
    Make a store's files anew from the database; searches go on meanwhile.

    Example: ryorin index rebuild handbook --tenant support
    """
    from ryorin_index.maintenance import rebuild as rebuild_files

    with opened_store(store, tenant_name) as (catalog, chosen):
        done = rebuild_files(catalog, chosen)
    _show(done, as_json)


@click.command()
@click.argument("store")
@tenant_option
@json_option
def merge(store: str, tenant_name: str, as_json: bool) -> None:
    """
    Merge a store's segments and what came since into one; searches go on meanwhile. It happens by itself as well.

    Example: ryorin index merge handbook --tenant support
    """
    from ryorin_index.maintenance import merge as merge_files

    with opened_store(store, tenant_name) as (catalog, chosen):
        done = merge_files(catalog, chosen)
    _show(done, as_json)


@click.command()
@click.argument("store")
@tenant_option
@json_option
def stats(store: str, tenant_name: str, as_json: bool) -> None:
    """
    Show a store's figures: passages, those in no segment yet, removed ones, bytes on disk, generation, embedder.

    Example: ryorin index stats handbook --tenant support
    """
    from ryorin_index.maintenance import stats as figures

    with opened_store(store, tenant_name) as (catalog, chosen):
        result = figures(catalog, chosen)
    if as_json:
        print_json(result)
        return
    for name, value in result.items():
        if name == "segments":
            for segment in value:
                how = segment["kind"]
                if segment["recall"]:
                    how += f", {segment['candidates']} candidates, recall {segment['recall']:.3f}"
                click.echo(f"{'segment':20}{segment['passages']} passages, {how}")
        else:
            click.echo(f"{name.replace('_', ' '):20}{'-' if value is None else value}")


def _show(done: Maintained, as_json: bool) -> None:
    if as_json:
        print_json(asdict(done))
    else:
        say(f"{done.passages} passages written, {done.segments} segments, generation {done.generation}")
