"""
Texts with places for values: `{{sample.output_text}}`, `{{sample.output_json.field}}`, `{{item.list[0]}}`.

A value that is text stands as it is, any other as JSON. A place whose value there is not raises `Missing`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_PLACE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"(?:item|sample)(?:\.[^\W\d][\w-]*|\[\d{1,6}\])+")
_STEP = re.compile(r"\.([^\W\d][\w-]*)|\[(\d+)\]")
OF_SAMPLE = ("output_text", "output_json")

Path = tuple[str | int, ...]


class Missing(ValueError):
    """A template asks for a value that the row or the answer does not have."""


@dataclass(frozen=True)
class Template:
    """A text as its parts: what stands in it, and paths like ('item', 'answer', 0)."""

    parts: tuple[str | Path, ...]

    def fill(self, values: dict[str, Any]) -> str:
        """The text with its values; `values` has 'item' and 'sample'. Raises Missing."""
        return "".join(part if isinstance(part, str) else _shown(_value(values, part)) for part in self.parts)

    def paths(self) -> Iterator[Path]:
        """What it asks for."""
        return (part for part in self.parts if not isinstance(part, str))


def read_template(text: str) -> Template:
    """A text with places. Raises ValueError naming a place that cannot be."""
    parts: list[str | Path] = []
    for number, piece in enumerate(_PLACE.split(text)):
        if number % 2 == 0:
            if piece:
                parts.append(piece)
            continue
        written = piece.strip()
        if _PATH.fullmatch(written) is None:
            raise ValueError(
                f"'{{{{{written}}}}}' cannot be filled; places are {{{{sample.output_text}}}}, "
                "{{sample.output_json.FIELD}} and {{item.FIELD}}"
            )
        root = written[: min(at for at in (written.find("."), written.find("[")) if at > 0)]
        steps = [name or int(index) for name, index in _STEP.findall(written)]
        if root == "sample" and (steps[0] not in OF_SAMPLE or (steps[0] == "output_text" and len(steps) > 1)):
            raise ValueError(f"'{{{{{written}}}}}' is not known; a sample has {' and '.join(OF_SAMPLE)}")
        parts.append((root, *steps))
    return Template(tuple(parts))


def lacking(template: Template, item: dict[str, Any]) -> str | None:
    """The first place of the template that this item has no value for, as it is written; None when there is none."""
    for path in template.paths():
        if path[0] == "item":
            try:
                _value({"item": item}, path)
            except Missing as error:
                return str(error)
    return None


def _value(values: dict[str, Any], path: Path) -> Any:
    found: Any = values
    for at, step in enumerate(path):
        fits = isinstance(found, list) if isinstance(step, int) else isinstance(found, dict)
        try:
            if not fits:
                raise KeyError
            found = found[step]
        except (KeyError, IndexError):
            raise Missing(f"there is no {written(path[: at + 1])}") from None
    return found


def written(path: Path) -> str:
    """A path as it is written in a template."""
    first, *steps = path
    return f"{first}" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
