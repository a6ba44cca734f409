"""`ryorin index watch`: a store is kept equal to its sources as they change."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ryorin.commands.common import json_option, print_json, printable, say, stopping_in_order, tenant_option
from ryorin_index.commands.common import opened_store
from ryorin_index.commands.progress import files_line, show_report

if TYPE_CHECKING:
    from ryorin_index.watch import Round


@click.command()
@click.argument("store")
@tenant_option
@click.option("--source", "only", multiple=True, metavar="URI|ID", help="Only this source; may be repeated.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How often every source is synced, also without a sign of change; 0 for never.  [default: 300]",
)
@json_option
def watch(store: str, tenant_name: str, only: tuple[str, ...], interval_s: float | None, as_json: bool) -> None:
    """
    Keep STORE equal to its sources as they change, until Ctrl-C or SIGTERM.

    It begins with a sync. Then a change in a folder is taken over at once; git repositories and buckets, and folders on
    a network that do not tell of changes, every --interval. A source that lost more than half of its documents, and at
    least 10, keeps them until 'ryorin index sync' is asked to delete them; so does a folder that is gone. What does not
    answer for a while is tried again. With --json every sync prints one line.

    \b
    Example:
        ryorin index watch handbook --tenant support
        ryorin index watch handbook --tenant support --source ./documents --json
    """
    from ryorin_index.source_rows import find_sources
    from ryorin_index.watch import INTERVAL_S, watch_store

    shower = _Shower(as_json)
    with suppress(KeyboardInterrupt), stopping_in_order(), opened_store(store, tenant_name) as (catalog, chosen):
        with catalog.session() as session:
            found = find_sources(session, chosen, only)
        for source in found:
            say(printable(f"watching {source.kind} {source.uri}; Ctrl-C ends it"))
        watch_store(
            catalog,
            chosen,
            found if only else (),
            interval_s=INTERVAL_S if interval_s is None else interval_s,
            on_round=shower.show,
            on_progress=files_line(),
            on_note=lambda line: say(printable(line)),
        )
    say("stopped")


class _Shower:
    """Tells what a sync did; for people only what is new."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._last: dict[tuple[str, ...], Any] = {}
        self._error = ""

    def show(self, done: Round) -> None:
        """One round."""
        repeated = done.error != "" and done.error == self._error
        if done.error and not repeated:
            say(printable(f"error: {done.error}; tried again until it works"))
        self._error = done.error
        report = done.report
        if report is None:
            if self._as_json and not repeated:
                print_json({"sources": done.sources, "error": done.error, "retry_in_s": done.retry_in_s})
            return
        if self._as_json:
            print_json({"sources": done.sources} | asdict(report) | {"unchanged": len(report.unchanged)})
            return
        troubles = (report.failed, report.errors, report.kept, report.notes)
        news = report.added or report.changed or report.renamed or report.deleted
        if news or self._last.get(done.sources) != troubles:
            show_report(report)
        self._last[done.sources] = troubles
