"""`ryorin worker`: does queued jobs in the foreground."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ryorin.commands.common import json_option, opened_catalog, print_json, say

if TYPE_CHECKING:
    from ryorin.worker import Worker


@click.command(epilog="Example:  ryorin worker --kinds fine_tune")
@click.option("--drain", is_flag=True, help="End when no job is left.")
@click.option(
    "--kinds",
    metavar="KIND[,KIND]",
    help="Do these kinds of jobs alone: index_file, fine_tune; all that are installed unless given.",
)
@click.option(
    "--lease-s",
    type=click.FloatRange(min=0.1),
    help="Seconds without a sign of life after which another worker takes over; 30 unless given.",
)
@json_option
def worker(drain: bool, kinds: str | None, lease_s: float | None, as_json: bool) -> None:
    """
    Do queued jobs, such as indexing uploaded files and training adapters; until Ctrl-C or SIGTERM.

    'ryorin serve' has a worker of its own; more of them may run beside it, on every machine that reaches the catalog
    and the blobs.
    """
    from ryorin.worker import LEASE_S, Worker, chosen_kinds

    chosen = None if kinds is None else chosen_kinds(kinds)
    with opened_catalog() as catalog:
        running = Worker(catalog, kinds=chosen, lease_s=LEASE_S if lease_s is None else lease_s)
        with _stopping(running):
            if not drain:
                say("waiting for jobs; Ctrl-C ends it")
            tally = running.run(drain=drain)
    if as_json:
        print_json(asdict(tally))
    else:
        say(f"{tally.succeeded} jobs done, {tally.failed} failed")


@contextmanager
def _stopping(running: Worker) -> Iterator[None]:
    """SIGTERM and Ctrl-C stop the worker in order; a second one ends it at once."""
    earlier = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for name, handler in earlier.items():
            signal.signal(name, handler)

    def received(_signal: int, _frame: object) -> None:
        say("stopping (once more to stop at once)…")
        running.ask_to_stop()
        restore()

    for name in earlier:
        signal.signal(name, received)
    try:
        yield
    finally:
        restore()
