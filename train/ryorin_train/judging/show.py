"""Reports on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ryorin.commands.common import printable, say
from ryorin_train.judging.wording import figure_text, interval_text, p_text

SHOWN_WRONG = 5


def show_evaluation(report: Mapping[str, Any], page: Path) -> None:
    """The figures, the comparison, the confusion and what to distrust; the rest stands on the page."""
    against = report["against"]
    theirs = {row["name"]: row for row in report["against_figures"] or ()}
    tests = {row["name"]: row for row in report["comparison"] or ()}
    head = ["", "cases", f"release {report['release']['version']}"]
    if against:
        head += [f"release {against['version']}", "difference", "p"]
    rows = []
    for row in report["figures"]:
        cells = [row["label"], str(row["cases"]), figure_text(row)]
        if against:
            test = tests.get(row["name"])
            cells += [
                figure_text(theirs[row["name"]]) if row["name"] in theirs else "-",
                figure_text({**test, "mean": test["difference"]}, signed=True) if test else "-",
                p_text(test["p"]) if test else "-",
            ]
        rows.append(cells)
    _print(
        head, rows, f"{report['tenant']}@{report['release']['version']} on {report['cases']['held_out']} held-out cases"
    )
    found = report["confusion"]
    if found:
        rows = [[name, *map(str, counts)] for name, counts in zip(found["expected"], found["counts"], strict=True)]
        _print(["expected \\ said", *found["said"]], rows, "decisions")
    kept = report["ability"]
    if kept:
        say(
            f"general ability: base {interval_text(kept['base'])}, tuned {interval_text(kept['tuned'])}, "
            f"p {p_text(kept['p'])}, {kept['questions']} questions"
        )
    for warning in report["warnings"]:
        say(printable(f"warning: {warning['text']}"))
    for row in report["wrong"][:SHOWN_WRONG]:
        say(printable(f"line {row['line']}: {', '.join(row['wrong'])} wrong: {row['question']}"))
    if len(report["wrong"]) > SHOWN_WRONG:
        say(f"… and {len(report['wrong']) - SHOWN_WRONG} more on the page")
    say(f"report: {page}")


def show_diagnosis(report: Mapping[str, Any], page: Path) -> None:
    """The arms, the causes and the levers."""
    names = ("right", "format", "decision", "facts", "citations", "refusal")
    labels = {row["name"]: row["label"] for arm in report["arms"] for row in arm["figures"]}
    shown = [name for name in names if name in labels]
    rows = []
    for arm in report["arms"]:
        figures = {row["name"]: row for row in arm["figures"]}
        rows.append([arm["name"], *(figure_text(figures[name]) if name in figures else "-" for name in shown)])
    _print(["arm", *(labels[name] for name in shown)], rows, f"{report['tenant']}: {report['cases']['held_out']} cases")
    rows = [[row["cause"], str(row["failures"]), interval_text(row)] for row in report["causes"]]
    _print(["cause", "failures", "of all cases"], rows, f"why answers of the arm '{report['arm_of_causes']}' are wrong")
    for row in report["gains"]:
        say(
            f"{row['adds']}: {row['difference']:+.0%} right answers ({row['low']:+.0%} to {row['high']:+.0%}), "
            f"{row['better']} won, {row['worse']} lost, p {p_text(row['p'])}"
        )
    for lever in report["levers"]:
        say(printable(f"→ {lever['advice']}"))
    say(f"report: {page}")


def _print(head: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(head):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(cell) for cell in row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # piped: a row stays one line, whatever its width
        console = Console(highlight=False, markup=False, width=10_000)
    console.print(title, style="bold")
    console.print(table)
    console.print()
