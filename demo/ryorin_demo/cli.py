"""The `ryorin demo` command."""

from __future__ import annotations

import click

from ryorin.commands.common import json_option

DEFAULT_PORT = 8000


@click.command()
@click.option("--port", default=DEFAULT_PORT, show_default=True, help="Port of the server.")
@click.option("--keep-running", is_flag=True, help="Leave the server up at the end, until Ctrl-C.")
@click.option("--all-cases", is_flag=True, help="Ask all arms all held-out cases (some minutes more).")
@click.option("--fresh-arms", is_flag=True, help="Ask the held-out cases again even if nothing changed since.")
@json_option
def demo(port: int, keep_running: bool, all_cases: bool, fresh_arms: bool, as_json: bool) -> None:
    """
    The main job, end to end: two departments, their documents, their adapters, one server.

    Runs the commands that you would type, shows each of them, and asks through the plain openai client. A second run
    skips what is done. Example:

        ryorin demo --keep-running
    """
    from ryorin_demo.runner import run_demo

    run_demo(port=port, keep_running=keep_running, all_cases=all_cases, fresh_arms=fresh_arms, as_json=as_json)
