"""How `ryorin index add` and `sync` show progress and what they did."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ryorin.commands.common import clear_progress, printable, progress_line, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from ryorin_index.sync import Progress, Report


def files_line() -> Callable[[Progress], None]:
    """A function that shows how many files are done; on a terminal also which is being read."""
    line = progress_line()

    def show(progress: Progress) -> None:
        finished = progress.done == progress.total
        rate = progress.done / progress.seconds if progress.seconds else 0.0
        left = f", {(progress.total - progress.done) / rate:.0f} s left" if rate and not finished else ""
        line(
            f"{progress.done}/{progress.total} files, {progress.embedded} passages embedded{left}",
            finished,
            f"  {printable(progress.filename)}",
        )

    return show


def listing_line() -> Callable[[str, int], None]:
    """A function that shows how much of a source was seen, where that takes longer than a moment."""
    line = progress_line()
    return lambda source, count: line(printable(f"{source}: {count} pages seen"))


def show_report(report: Report) -> None:
    """What a run did, in a line; then a line for each failure."""
    clear_progress()  # what `listing_line` left
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
