"""What every command shares: the `--json` and `--tenant` options, opening the catalog, printing tables."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ryorin.catalog import Catalog

PIPED_PROGRESS_S, TERMINAL_PROGRESS_S = 10.0, 0.1
Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(function: Function) -> Function:
    """`--json`, passed as `as_json`: the result on standard output as JSON, progress on standard error."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def tenant_option(function: Function) -> Function:
    """`--tenant`, passed as `tenant_name`; also read from RYORIN_TENANT."""
    return click.option(
        "--tenant", "tenant_name", required=True, envvar="RYORIN_TENANT", metavar="NAME", help="The department."
    )(function)


@contextmanager
def opened_catalog() -> Iterator[Catalog]:
    """The catalog that the environment names, closed at the end."""
    from ryorin.catalog import open_catalog
    from ryorin.settings import load_settings

    catalog = open_catalog(load_settings())
    try:
        yield catalog
    finally:
        catalog.close()


@contextmanager
def catalog_session() -> Iterator[tuple[Catalog, Session]]:
    """The catalog and a session in one transaction, for commands that need no more than that."""
    with opened_catalog() as catalog, catalog.session() as session:
        yield catalog, session


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that it can remove what is half done."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def say(text: str) -> None:
    """A line for the person who watches, on standard error."""
    click.echo(text, err=True)


def progress_line() -> Callable[..., None]:
    """
    A function `show(line, finished=False, beside="")` for the progress of long work.

    On a terminal it writes one line over and over, with `beside` at its end; elsewhere `line` alone, every
    `PIPED_PROGRESS_S` seconds and when it is finished. A terminal's line stays when it is finished.
    """
    said = time.monotonic()

    def show(line: str, finished: bool = False, beside: str = "") -> None:
        nonlocal said
        terminal, now = sys.stderr.isatty(), time.monotonic()
        if not finished and now - said < (TERMINAL_PROGRESS_S if terminal else PIPED_PROGRESS_S):
            return
        said = now
        if terminal:
            click.echo(f"\r\x1b[K{line}" + ("\n" if finished else beside), err=True, nl=False)
        else:
            say(line)

    return show


def clear_progress() -> None:
    """Take away what `progress_line` left unfinished on a terminal."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)


def counting_line(what: str) -> Callable[[int, int], None]:
    """A function that is told (done, total) and shows it with the time left, which counts from this call."""
    began, line = time.monotonic(), progress_line()

    def show(done: int, total: int) -> None:
        left = f", {(time.monotonic() - began) / done * (total - done):.0f} s left" if 0 < done < total else ""
        line(f"{done}/{total} {what}{left}", done == total)

    return show


def print_json(value: object) -> None:
    """A value as one line of JSON on standard output."""
    # A file name that is not UTF-8 holds halves of characters; what replaces them here is JSON's own escape of them.
    click.echo(json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode())


def printable(text: str) -> str:
    """Text from outside, such as a file's name, on one line and without anything a terminal would obey."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, empty: str) -> None:
    """
    Rows as a JSON list, or `columns` of them as an aligned table; `empty` is said when there are none.

    Wide characters (Japanese) are aligned by their width on a terminal.
    """
    if as_json:
        print_json([dict(row) for row in rows])
        return
    if not rows:
        say(empty)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(column, row[column]) for column in columns))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # piped: a row stays one line, whatever its width
        console = Console(highlight=False, markup=False, width=10_000)
    console.print(table)


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column.endswith("_at"):
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    if isinstance(value, float):
        return f"{value:.3f}"
    return printable(str(value))
