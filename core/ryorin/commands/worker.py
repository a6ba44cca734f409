"""`ryorin worker`: does queued jobs in the foreground."""

from __future__ import annotations

import signal
from dataclasses import asdict

import click

from ryorin.commands.common import json_option, opened_catalog, print_json, say


@click.command(epilog="Example:  ryorin worker --drain")
@click.option("--drain", is_flag=True, help="End when no job is left.")
@click.option(
    "--lease-s",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds without a sign of life after which another worker takes over.",
)
@json_option
def worker(drain: bool, lease_s: float, as_json: bool) -> None:
    """
    Do queued jobs, such as indexing files that were uploaded; until Ctrl-C or SIGTERM.

    'ryorin serve' has a worker of its own; more of them may run beside it, on every machine that reaches the catalog
    and the blobs.
    """
    from ryorin.worker import Worker

    with opened_catalog() as catalog:
        running = Worker(catalog, lease_s=lease_s)
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: running.ask_to_stop())
        if not drain:
            say("waiting for jobs; Ctrl-C ends it")
        tally = running.run(drain=drain)
    if as_json:
        print_json(asdict(tally))
    else:
        say(f"{tally.succeeded} jobs done, {tally.failed} failed")
