"""The commands of `ryorin release` that move traffic beside promoting, and those that look at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ryorin.commands.common import (
    catalog_session,
    json_option,
    opened_catalog,
    print_json,
    print_rows,
    progress_line,
    say,
    tenant_option,
)
from ryorin.settings import LOAD_WAIT_S

if TYPE_CHECKING:
    from ryorin.catalog import Catalog
    from ryorin.rollout import Moved, Rollout

Function = TypeVar("Function", bound=Callable[..., Any])


def wait_option(function: Function) -> Function:
    """`--wait`, passed as `wait_s`: how long running gateways may take to load a release before it gets traffic."""
    return click.option(
        "--wait",
        "wait_s",
        type=click.FloatRange(0),
        default=LOAD_WAIT_S,
        show_default=True,
        metavar="SECONDS",
        help="How long running gateways may take to load it first; 0 does not ask them.",
    )(function)


def rollout(catalog: Catalog, wait_s: float) -> Rollout:
    """What moves traffic, with its progress on standard error once it takes a while."""
    from ryorin.rollout import Rollout

    show, waited = progress_line(), False

    def on_progress(line: str, finished: bool) -> None:
        nonlocal waited
        if waited or not finished:
            show(line, finished)
        waited = waited or not finished

    return Rollout(catalog, wait_s=wait_s, on_progress=on_progress)


def print_moved(moved: Moved, as_json: bool) -> None:
    """What a promotion or rollback did."""
    if as_json:
        print_json({"tenant": moved.tenant, "live": moved.version, "previous": moved.before, "changed": moved.changed})
    else:
        say_moved(moved)


def say_moved(moved: Moved) -> None:
    """What a promotion did, and how to undo it."""
    if not moved.changed:
        say(f"release {moved.version} of tenant {moved.tenant} is live already; nothing changed")
        return
    before = moved.before if moved.before is not None else "nothing"
    say(f"release {moved.version} of tenant {moved.tenant} is live; before: {before}")
    if moved.before is not None:
        say(f"to undo: ryorin release rollback --tenant {moved.tenant}")


@click.command("canary")
@click.argument("version", type=int, required=False)
@tenant_option
@click.option("--share", metavar="10%", help="Of the tenant's askers, above 0 and below 100%.")
@click.option("--off", is_flag=True, help="End the canary.")
@wait_option
@json_option
def canary_command(
    version: int | None, tenant_name: str, share: str | None, off: bool, wait_s: float, as_json: bool
) -> None:
    """
    Let release VERSION answer a share of the tenant's traffic; the same asker always gets the same release.

    Who asks is told by safety_identifier, user or prompt_cache_key, else by a conversation's first message, with the
    key. Whoever is in at 10% stays in at 20%. A canary that cannot be loaded costs no answer: the live release answers.

    \b
    Example:
        ryorin release canary 4 --share 10% --tenant support
        ryorin release canary --off --tenant support
    """
    from ryorin.traffic import parse_share

    if off == (version is not None) or off == (share is not None):
        raise click.UsageError("Give VERSION and --share, or --off alone.")
    with opened_catalog() as catalog:
        moved = rollout(catalog, wait_s).canary(tenant_name, version, None if share is None else parse_share(share))
    _print_beside(moved, as_json, "answers")


@click.command("shadow")
@click.argument("version", type=int, required=False)
@tenant_option
@click.option("--share", metavar="20%", help="Of the tenant's askers; all unless given.")
@click.option("--off", is_flag=True, help="End the shadow.")
@wait_option
@json_option
def shadow_command(
    version: int | None, tenant_name: str, share: str | None, off: bool, wait_s: float, as_json: bool
) -> None:
    """
    Let release VERSION answer the tenant's requests once more, after the live one, for the log alone.

    Its answers are shown to nobody. It makes way for whoever waits for an answer; what finds no room is left out.

    \b
    Example:
        ryorin release shadow 4 --tenant support
        ryorin release shadow --off --tenant support
    """
    from ryorin.traffic import parse_share

    if off == (version is not None) or (off and share is not None):
        raise click.UsageError("Give VERSION, or --off alone.")
    with opened_catalog() as catalog:
        moved = rollout(catalog, wait_s).shadow(tenant_name, version, None if off else parse_share(share or "100%"))
    _print_beside(moved, as_json, "answers once more, unseen,")


def _print_beside(moved: Moved, as_json: bool, what: str) -> None:
    from ryorin.traffic import shown_share

    if as_json:
        print_json(
            {
                "tenant": moved.tenant,
                moved.part: moved.version,
                "share": moved.share,
                "previous": moved.before,
                "changed": moved.changed,
            }
        )
    elif moved.version is None:
        said = f"release {moved.before} is the {moved.part} no longer" if moved.before else f"there was no {moved.part}"
        say(f"tenant {moved.tenant}: {said}")
    else:
        again = "" if moved.changed else " already; nothing changed"
        say(f"release {moved.version} {what} {shown_share(moved.share or 0)} of tenant {moved.tenant}{again}")
        say(f"see how it does: ryorin release status --tenant {moved.tenant}")


@click.command("status")
@tenant_option
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    default=24.0,
    show_default=True,
    help="How far to look back.",
)
@json_option
def status_command(tenant_name: str, hours: float, as_json: bool) -> None:
    """
    Show how each part of the tenant's traffic fares: live, canary, shadow, and versions that were asked for by name.

    'passed' counts requests of the canary's share that the live release answered because the canary could not,
    'dropped' those that the shadow left out. Times are medians but for p95, in milliseconds, of answered requests.

    \b
    Example:
        ryorin release status --tenant support --hours 1
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin.traffic import shown_share, traffic_status

    with catalog_session() as (_, session):
        rows = [one.row() for one in traffic_status(session, get_tenant(session, tenant_name), hours * 3600)]
    columns = ["part", "version", "requests", "errors", "cancelled", "passed", "dropped"]
    if not as_json:
        for row in rows:
            share = f" {shown_share(row['share'])}" if row["share"] else ""
            row["part"] += share if row["current"] else " (before)" if row["part"] != "pinned" else ""
            row |= {
                name: f"{row[name]:.0f}" for name in ("median_ms", "p95_ms", "first_token_ms") if row[name] is not None
            }
    print_rows(
        rows,
        [*columns, "median_ms", "p95_ms", "first_token_ms", "completion_tokens"],
        as_json=as_json,
        empty=f"tenant {tenant_name} has no live release and no traffic in the last {hours:g} hours",
    )


@click.command("diff")
@click.argument("first", type=int)
@click.argument("second", type=int)
@tenant_option
@json_option
def diff_command(first: int, second: int, tenant_name: str, as_json: bool) -> None:
    """
    Show what differs between two releases: parts, the prompt as a text diff, figures of evaluations side by side.

    \b
    Example:
        ryorin release diff 3 4 --tenant support
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin.release_view import release_diff

    with catalog_session() as (_, session):
        found = release_diff(session, get_tenant(session, tenant_name), first, second)
    if as_json:
        print_json(found)
        return
    names = {"first": str(first), "second": str(second)}
    if found["parts"]:
        rows = [{"part": row["part"], **{names[side]: _shown(row[side]) for side in names}} for row in found["parts"]]
        print_rows(rows, ["part", *names.values()], as_json=False, empty="")
    if found["prompt"]:
        click.echo(found["prompt"])
    if not found["parts"] and not found["prompt"]:
        say(f"releases {first} and {second} of tenant {tenant_name} answer from the same parts")
    if found["figures"]:
        rows = [
            {"figure": row["name"], **{names[side]: _figure(row[side]) for side in names}} for row in found["figures"]
        ]
        print_rows(rows, ["figure", *names.values()], as_json=False, empty="")
    else:
        say("neither keeps an evaluation as evidence; 'ryorin train evaluate --evidence' makes one")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _figure(figure: dict[str, Any] | None) -> str:
    if figure is None or figure.get("mean") is None:
        return "-"
    low, high = figure.get("low"), figure.get("high")
    between = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{figure['mean']:.3f}{between} of {figure['cases']}"


@click.command("swap-adapter")
@click.argument("adapter")
@tenant_option
@click.option("--note", default="", metavar="TEXT", help="What is new, for people.")
@click.option("--allow-prompt-mismatch", is_flag=True, help="Take an adapter that was trained for another prompt.")
@wait_option
@json_option
def swap_adapter_command(
    adapter: str, tenant_name: str, note: str, allow_prompt_mismatch: bool, wait_s: float, as_json: bool
) -> None:
    """
    Make a release live that equals the live one but for its adapter; ADAPTER 'none' is the base model alone.

    \b
    Example:
        ryorin release swap-adapter support-0123456789ab --tenant support
    """
    with opened_catalog() as catalog:
        moved = rollout(catalog, wait_s).swap_adapter(
            tenant_name, adapter, note=note, allow_prompt_mismatch=allow_prompt_mismatch
        )
    print_moved(moved, as_json)
