"""
The `ryorin` command line: one lazy group, so that `ryorin --help` imports nothing but click.

The table below names every command, the module that holds it and its one line of help; a command's module is imported
when the command runs. An error of Ryorin's own, of the database or of the operating system ends a command with
`error: …` and exit code 2, Ctrl-C with 130; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import importlib
import sys

import click

from ryorin import __version__
from ryorin.errors import RyorinError

# name: (module, attribute, one line of help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("ryorin_demo.cli", "demo", "Run the main job end to end: two departments on one server."),
    "models": ("ryorin.commands.models", "models", "Base models and embedders: list, pull, add."),
    "tenant": ("ryorin.commands.tenant", "tenant", "Departments: create, list; their limits and what they used."),
    "key": ("ryorin.commands.key", "key", "API keys of a tenant: create, list, rotate, revoke."),
    "prompt": ("ryorin.commands.prompt", "prompt", "A tenant's prompt: set, show."),
    "index": ("ryorin_index.cli", "index", "Documents: create a store, add, remove, search."),
    "data": ("ryorin_train.commands.data", "data", "Training data: add, lint, split, export."),
    "train": ("ryorin_train.cli", "train", "Train an adapter from examples or preferences; judge it."),
    "adapter": (
        "ryorin_train.commands.adapter",
        "adapter",
        "Adapters: list, show, compare, import, export, merge, delete.",
    ),
    "release": ("ryorin.commands.release", "release", "Releases: create, promote, roll back, canary, shadow."),
    "apply": ("ryorin_index.commands.apply", "apply_command", "Make tenants what a YAML file says; show what differs."),
    "diagnose": (
        "ryorin_train.judging.cli",
        "diagnose_command",
        "Which lever to pull: documents, retrieval, behaviour.",
    ),
    "serve": ("ryorin_serve.cli", "serve", "Start vLLM and the OpenAI-compatible gateway."),
    "engine": ("ryorin_serve.cli", "engine", "Start one vLLM for gateways that run elsewhere."),
    "worker": ("ryorin.commands.worker", "worker", "Do queued jobs: indexing uploaded files, training."),
    "logs": ("ryorin.commands.logs", "logs", "The log of requests: how long it is kept, erasing a person's."),
    "audit": ("ryorin.commands.audit", "audit_command", "Who did what: keys, limits, releases, stores."),
    "db": ("ryorin.commands.db", "db", "The catalog's database: upgrade its schema."),
}
EXTRAS = {"ryorin_index": "index", "ryorin_train": "train", "ryorin_serve": "serve"}


class LazyGroup(click.Group):
    """A group whose commands come from `COMMANDS` and are imported when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the named command. Raises ClickException when its extra is not installed."""
        if cmd_name not in COMMANDS:
            return None
        module_name, attribute, _ = COMMANDS[cmd_name]
        try:
            command: click.Command = getattr(importlib.import_module(module_name), attribute)
        except ModuleNotFoundError as missing:
            extra = EXTRAS.get(module_name.partition(".")[0], "index")
            raise click.ClickException(
                f"'ryorin {cmd_name}' needs the package {missing.name!r}; get it with: pip install 'ryorin[{extra}]'"
            ) from missing
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ryorin")
def ryorin() -> None:
    """
    Serve a fine-tuned model together with its documents.

    Everything is kept in a .ryorin folder, found in the present folder or one above it (RYORIN_HOME names another).
    Begin with:

        ryorin demo
    """


def main() -> None:
    """Entry point: run a command and turn what it raises into words and an exit code."""
    try:
        code = ryorin.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except RyorinError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        words = _outside_cause(error)
        if words is None:
            raise
        click.echo(f"error: {words}", err=True)
        sys.exit(2)


def _outside_cause(error: Exception) -> str | None:
    """In one line what went wrong, when it was the database, the operating system or what was typed."""
    sql = sys.modules.get("sqlalchemy.exc")  # not imported: then it raised nothing
    if sql is not None and isinstance(error, sql.DBAPIError | sql.TimeoutError):
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        return f"the catalog's database failed: {reason}; what was not finished is undone, repeat the command"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or error}"
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:200]!r} cannot be written in {error.encoding}"
    return None


if __name__ == "__main__":
    main()
