"""
Make docs/cli.md from the help of every command; `--check` fails when the file is not what the commands say.

    .venv/bin/python scripts/cli_docs.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from ryorin.cli import ryorin

TARGET = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 100
HEAD = """# The command line

Made from the commands' own help by `make docs`; do not edit. Every command prints its result as JSON with `--json`,
says its progress on standard error, and ends with exit code 0, with 2 and `error: …`, or with 130 after Ctrl-C;
`ryorin apply --dry-run` ends with 1 when something differs.
"""


def pages(command: click.Command, path: tuple[str, ...], parent: click.Context | None = None) -> Iterator[str]:
    """A section for the command and for each one below it, in the order of their help."""
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=path[-1], parent=parent, **settings)
    help_text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield f"## {' '.join(path)}\n\n```text\n{help_text}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from pages(below, (*path, name), context)


def main() -> int:
    """Write the file, or compare it, and return the exit code."""
    text = "\n".join([HEAD, *pages(ryorin, ("ryorin",))])
    if "--check" in sys.argv[1:]:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
            print("error: docs/cli.md is stale; run 'make docs' and commit it", file=sys.stderr)
            return 1
        return 0
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except click.ClickException as problem:
        sys.exit(f"error: {problem.format_message()}")
