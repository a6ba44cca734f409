"""`ryorin adapter`: words in, words out; `import`, `export` and `merge` are in exchange.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
)
from ryorin.digests import SHORT
from ryorin_train.commands.exchange import export_command, import_command, merge_command


@click.group()
def adapter() -> None:
    """
    Adapters: list, show, compare, import, export, merge, delete.

    \b
    Example:
        ryorin adapter list --tenant support
    """


for command in (import_command, export_command, merge_command):
    adapter.add_command(command)


@adapter.command("list")
@click.option("--tenant", "tenant_name", envvar="RYORIN_TENANT", metavar="NAME", help="Only this department's.")
@json_option
def list_command(tenant_name: str | None, as_json: bool) -> None:
    """
    List adapters, newest first, with their size and whether their files are whole.

    Every file is read for that.

    \b
    Example:
        ryorin adapter list --tenant support
    """
    from ryorin.adapter_files import is_whole
    from ryorin.catalog.tenants import get_tenant
    from ryorin_train.adapters import folder_bytes, list_adapters

    with catalog_session() as (catalog, session):
        tenant = get_tenant(session, tenant_name) if tenant_name else None
        found = list_adapters(session, tenant)
        folders = {row.name: catalog.settings.adapters_dir / row.name for row, _ in found}
    rows = [
        {
            "name": row.name,
            "tenant": owner,
            "kind": row.manifest["kind"],
            "base": row.manifest["base"]["name"],
            "rank": row.rank,
            "rows": (row.manifest.get("data") or {}).get("rows"),
            "held_out_loss": row.manifest["metrics"].get("held_out_loss"),
            "bytes": folder_bytes(folders[row.name]),
            "files": "whole" if is_whole(folders[row.name], row.digest) else "damaged",
            "created_at": row.created_at,
        }
        for row, owner in found
    ]
    columns = ("name", "tenant", "kind", "base", "rank", "rows", "held_out_loss", "size", "files", "created_at")
    if not as_json:
        rows = [{**row, "size": _size(row["bytes"])} for row in rows]
    print_rows(
        rows,
        columns,
        as_json=as_json,
        empty="no adapters yet; 'ryorin train sft' makes one, 'ryorin adapter import' takes one over",
    )


@adapter.command("show")
@click.argument("name")
@json_option
def show_command(name: str, as_json: bool) -> None:
    """
    Show the adapter NAME: what it was made from, how, how well it does, and which releases use it.

    \b
    Example:
        ryorin adapter show support-1f0c2a9b7d3e
    """
    from ryorin.adapter_files import is_whole
    from ryorin_train.adapters import folder_bytes, get_adapter, releases_using

    with catalog_session() as (catalog, session):
        row, _ = get_adapter(session, name)
        folder = catalog.settings.adapters_dir / row.name
        shown = {
            **row.manifest,
            "releases": releases_using(session, row),
            "path": str(folder),
            "bytes": folder_bytes(folder),
            "files": "whole" if is_whole(folder, row.digest) else "damaged",
        }
    if as_json:
        print_json(shown)
        return
    width = max(len(key) for key in shown)
    for key, value in shown.items():
        click.echo(f"{key.replace('_', ' '):{width}}  {_text(value)}")


@adapter.command("diff")
@click.argument("name_a", metavar="A")
@click.argument("name_b", metavar="B")
@json_option
def diff_command(name_a: str, name_b: str, as_json: bool) -> None:
    """
    Compare the adapters A and B: base, prompt, data, recipe, metrics, and how far their weights are apart.

    'distance' is the Frobenius norm of the difference of the two weight updates, relative to A's; 'cosine' is that of
    the angle between them. The table sums them up by kind of module; --json has every layer and module.

    \b
    Example:
        ryorin adapter diff support-1f0c2a9b7d3e support-77aa03c41b2d
    """
    from ryorin_train.compare_adapters import compare_adapters

    with opened_catalog() as catalog:
        compared = compare_adapters(catalog, name_a, name_b)
    if as_json:
        print_json(compared)
        return
    if compared["same"]:
        say("the weights and the configuration are the same")
    rows = [
        {"field": field, "A": _without_long_digests(_text(a)), "B": _without_long_digests(_text(b))}
        for field, (a, b) in compared["fields"].items()
    ]
    print_rows(rows, ("field", "A", "B"), as_json=False, empty="nothing differs in base, prompt, data, recipe, metrics")
    weights = compared["weights"]
    if weights is None:
        say("they adapt different base models, so their weights are not compared")
        return
    click.echo("")
    layers = sorted(weights["layers"].items(), key=lambda item: -(item[1]["distance"] or 0.0))[:1]
    groups = [
        ("all", weights["all"]),
        *weights["kinds"].items(),
        *((f"layer {n}, the furthest", one) for n, one in layers),
    ]
    print_rows(
        [{"modules": name, **one} for name, one in groups],
        ("modules", "norm_a", "norm_b", "distance", "cosine"),
        as_json=False,
        empty="",
    )


@adapter.command("delete")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also when releases name it that are not live; never for a live one.")
@json_option
def delete_command(name: str, force: bool, as_json: bool) -> None:
    """
    Delete the adapter NAME and its files.

    Refused while a release names it. With --force a release that is not live loses it: it can no longer be promoted,
    rolled back to or asked by version. A running server may keep the weights in vLLM's memory until vLLM is started
    again, but answers no request with them. Deleting what is gone changes nothing.

    \b
    Examples:
        ryorin adapter delete support-1f0c2a9b7d3e
        ryorin adapter delete support-1f0c2a9b7d3e --force
    """
    from ryorin_train.adapters import delete_adapter

    with stopping_in_order(), opened_catalog() as catalog:
        deleted = delete_adapter(catalog, name, force=force)
    if as_json:
        print_json(
            {
                "name": name,
                "deleted": deleted.found,
                "bytes": deleted.freed_bytes,
                "kept_for_releases": deleted.row_kept,
            }
        )
    elif not deleted.found:
        say(f"no adapter {name!r}; nothing to delete")
    else:
        say(f"deleted {name}, {_size(deleted.freed_bytes)}")


def _without_long_digests(text: str) -> str:
    return re.sub(r"\b[0-9a-f]{64}\b", lambda digest: digest[0][:SHORT], text)


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _text(value: Any) -> str:
    """A value of a manifest in one line."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{part.replace('_', ' ')} {_text(item)}" for part, item in value.items())
    if isinstance(value, list):
        parts = [_text(item) for item in value]
        return ("; " if any(isinstance(item, Mapping) for item in value) else ", ").join(parts) or "none"
    return str(value)
