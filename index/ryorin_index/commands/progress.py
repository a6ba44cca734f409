"""How `ryorin index add` and `sync` show progress and what they did."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import click

from ryorin.commands.common import printable, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from ryorin_index.sync import Progress, Report

PIPED_PROGRESS_S = 10.0


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


def show_report(report: Report) -> None:
    """What a run did, in a line; then a line for each failure."""
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
    if report.skipped:
        kinds = Counter(name[name.rfind(".") :].lower() if "." in name[1:] else name for name in report.skipped)
        say("passed over: " + printable(", ".join(f"{count} {kind}" for kind, count in kinds.most_common(10))))
    if report.kept:
        say("documents that a source lost are kept; --allow-deletions deletes them")
