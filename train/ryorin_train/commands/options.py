"""Options that several commands share: how a file of rows is read, and a purpose statement."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ryorin_train.datasets.columns import parse_mapping
from ryorin_train.datasets.formats import FORMATS, Reading

if TYPE_CHECKING:
    from ryorin.purpose import Purpose

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic since click 8.5 only

Function = TypeVar("Function", bound=Callable[..., Any])


class OrAuto(ParamType):
    """A value of another type, or `auto` for what is chosen from the data: None."""

    def __init__(self, kind: Any) -> None:
        self.kind = click.types.convert_type(kind)
        self.name = f"{self.kind.name}|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value, or None."""
        return None if value == "auto" else self.kind.convert(value, param, ctx)


class Several(ParamType):
    """Values of another type with commas between them, as a tuple of different ones; `auto` alone: None."""

    def __init__(self, kind: Any) -> None:
        self.kind = click.types.convert_type(kind)
        self.name = f"{self.kind.name},…|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The values, or None."""
        if value == "auto" or isinstance(value, tuple):
            return None if value == "auto" else value
        return tuple(dict.fromkeys(self.kind.convert(part.strip(), param, ctx) for part in value.split(",")))


class Names(ParamType):
    """Names with commas between them, as a tuple."""

    name = "A,B,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The names."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


NAMES = Names()


def reading_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--format`, `--map` and `--encoding`, passed as one `reading`."""

    @click.option(
        "--format", "format_name", type=click.Choice(FORMATS), help="Its format; told by content unless given."
    )
    @click.option(
        "--map", "mapping", metavar="COLUMN=TARGET,…", help="Of CSV: which column is user, assistant, … (- leaves out)."
    )
    @click.option("--encoding", default="utf-8", show_default=True, help="Of CSV; cp932 for Excel's Japanese.")
    @wraps(function)
    def wrapped(*args: Any, format_name: str | None, mapping: str | None, encoding: str, **values: Any) -> Any:
        reading = Reading(format_name, None if mapping is None else parse_mapping(mapping), encoding)
        return function(*args, reading=reading, **values)

    return wrapped


def purpose_option(function: Function) -> Function:
    """`--purpose`, passed as `purpose_file`."""
    return click.option(
        "--purpose",
        "purpose_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Why this is trained and what defines success, YAML or JSON.",
    )(function)


def read_purpose(path: Path | None) -> Purpose | None:
    """The statement in the file, if one was given."""
    if path is None:
        return None
    from ryorin.purpose import read_purpose_file

    return read_purpose_file(path)
