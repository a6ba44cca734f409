"""How `ryorin index add` and `sync` show progress and what they did."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import click

from ryorin.commands.common import printable, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from ryorin_index.sync import Progress, Report

PIPED_PROGRESS_S = 10.0
LISTING_S = 0.5


def progress_line() -> Callable[[Progress], None]:
    """A function that shows progress: one line, written over on a terminal; a line now and then where it is piped."""
    said_s = 0.0

    def show(progress: Progress) -> None:
        nonlocal said_s
        finished = progress.done == progress.total
        rate = progress.done / progress.seconds if progress.seconds else 0.0
        left = f", {(progress.total - progress.done) / rate:.0f} s left" if rate and not finished else ""
        line = f"{progress.done}/{progress.total} files, {progress.embedded} passages embedded{left}"
        if sys.stderr.isatty():
            tail = "\n" if finished else f"  {printable(progress.filename)}"
            click.echo(f"\r\x1b[K{line}{tail}", err=True, nl=False)
        elif finished or progress.seconds - said_s >= PIPED_PROGRESS_S:
            said_s = progress.seconds
            say(line)

    return show


def listing_line() -> Callable[[str, int], None]:
    """A function that shows how much of a source was seen, where that takes longer than a moment."""
    said_s = time.monotonic()

    def show(source: str, count: int) -> None:
        nonlocal said_s
        terminal = sys.stderr.isatty()
        if time.monotonic() - said_s < (LISTING_S if terminal else PIPED_PROGRESS_S):
            return
        said_s = time.monotonic()
        line = printable(f"{source}: {count} pages seen")
        click.echo(f"\r\x1b[K{line}" if terminal else line, err=True, nl=not terminal)

    return show


def show_report(report: Report) -> None:
    """What a run did, in a line; then a line for each failure."""
    if sys.stderr.isatty():  # what `listing_line` left
        click.echo("\r\x1b[K", err=True, nl=False)
    parts = [
        f"{len(names)} {what}"
        for what, names in (
            ("added", report.added),
            ("changed", report.changed),
            ("renamed", report.renamed),
            ("deleted", report.deleted),
            ("unchanged", report.unchanged),
            ("of other formats passed over", report.skipped),
            ("failed", report.failed),
            ("lost but kept", report.kept),
        )
        if names
    ]
    say(f"{', '.join(parts) or 'no files found'}; {report.embedded} passages embedded in {report.seconds:.1f} s")
    for path, reason in report.failed:
        say(printable(f"error: {reason}  ({path})"))
    for source, reason in report.errors:
        say(printable(f"error: source {source}: {reason}"))
    for source, note in report.notes:
        say(printable(f"note: source {source}: {note}"))
    if report.skipped:
        kinds = Counter(name[name.rfind(".") :].lower() if "." in name[1:] else name for name in report.skipped)
        say("passed over: " + printable(", ".join(f"{count} {kind}" for kind, count in kinds.most_common(10))))
    if report.kept:
        say("documents that a source lost are kept; --allow-deletions deletes them")
