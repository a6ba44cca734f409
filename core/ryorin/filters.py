"""
Filters of a search, in the grammar of OpenAI's vector store search.

    {"type": "eq" | "ne" | "gt" | "gte" | "lt" | "lte", "key": "year", "value": 2026}
    {"type": "in" | "nin", "key": "team", "value": ["sales", "support"]}
    {"type": "and" | "or", "filters": [...]}

(https://platform.openai.com/docs/api-reference/vector-stores/search). A filter chooses documents by their attributes,
before anything is searched. Values are strings, numbers or booleans and compare only with their own kind: "3" is not 3
and 1 is not true. What a document does not have, or has as another kind, is not equal to anything: `ne` and `nin` hold
for it, all others do not. A document's own fields can be named where no attribute has that name: filename, source,
title, language, media_type, document_id.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ryorin.errors import InvalidInput

MAX_DEPTH = 8
MAX_CONDITIONS = 200
MAX_VALUES = 1000  # of one in or nin
MAX_KEY_CHARACTERS = 64  # the limit of OpenAI's attributes
MAX_VALUE_CHARACTERS = 512
DOCUMENT_FIELDS = ("filename", "source", "title", "language", "media_type", "document_id")

Value = str | float | bool
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_COMPARISONS = ("eq", "ne", *_ORDER, "in", "nin")
_COMPOUNDS = ("and", "or")


@dataclass(frozen=True)
class Comparison:
    """One attribute against a value, or against several for `in` and `nin`."""

    type: str
    key: str
    value: Value | tuple[Value, ...]

    def holds(self, attributes: Mapping[str, Any]) -> bool:
        """Whether a document with these attributes passes."""
        has = attributes.get(self.key)
        wanted = self.value if isinstance(self.value, tuple) else (self.value,)
        if self.type in _ORDER:
            return _kind(has) == _kind(wanted[0]) and _ORDER[self.type](has, wanted[0])
        equal = any(_kind(has) == _kind(value) and has == value for value in wanted)
        return equal == (self.type in ("eq", "in"))


@dataclass(frozen=True)
class Compound:
    """Several filters, all of which or one of which must hold."""

    type: str
    filters: tuple[Filter, ...]

    def holds(self, attributes: Mapping[str, Any]) -> bool:
        """Whether a document with these attributes passes."""
        each = (part.holds(attributes) for part in self.filters)
        return all(each) if self.type == "and" else any(each)


Filter = Comparison | Compound


def parse_filter(raw: Any, param: str = "filters") -> Filter:
    """
    A filter from its JSON.

    param: what the field is called where it came from; errors name the place within it.
    Raises InvalidInput for anything the grammar does not have: nothing is passed over.
    """
    left = [MAX_CONDITIONS]
    return _parse(raw, param, 1, left)


def filter_attributes(attributes: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """What filters see of a document: its own fields, and its attributes, which come first."""
    return {**fields, **attributes}


def _parse(raw: Any, place: str, depth: int, left: list[int]) -> Filter:
    if not isinstance(raw, Mapping):
        raise InvalidInput(f"{place} is {_shown(raw)}; a filter is an object with a 'type'", param=place)
    if depth > MAX_DEPTH:
        raise InvalidInput(f"{place} is nested deeper than {MAX_DEPTH} levels; flatten it", param=place)
    left[0] -= 1
    if left[0] < 0:
        raise InvalidInput(f"the filter has more than {MAX_CONDITIONS} conditions", param=place)
    kind = raw.get("type")
    if kind in _COMPOUNDS:
        _only(raw, ("type", "filters"), place)
        parts = raw.get("filters")
        if not isinstance(parts, list) or not parts:
            raise InvalidInput(
                f"{place}.filters is {_shown(parts)}; {kind!r} needs a list of filters", param=f"{place}.filters"
            )
        return Compound(
            kind, tuple(_parse(part, f"{place}.filters[{at}]", depth + 1, left) for at, part in enumerate(parts))
        )
    if kind not in _COMPARISONS:
        known = ", ".join((*_COMPARISONS, *_COMPOUNDS))
        raise InvalidInput(f"{place}.type is {_shown(kind)}; known: {known}", param=f"{place}.type")
    _only(raw, ("type", "key", "value"), place)
    key = raw.get("key")
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise InvalidInput(
            f"{place}.key is {_shown(key)}; it must be a name of 1 to {MAX_KEY_CHARACTERS} characters",
            param=f"{place}.key",
        )
    return Comparison(kind, key, _value(kind, raw.get("value"), f"{place}.value"))


def _value(kind: str, value: Any, place: str) -> Value | tuple[Value, ...]:
    if kind in ("in", "nin"):
        if not isinstance(value, list) or len(value) > MAX_VALUES:
            raise InvalidInput(
                f"{place} is {_shown(value)}; {kind!r} needs a list of {MAX_VALUES} values at most", param=place
            )
        return tuple(_scalar(each, f"{place}[{at}]") for at, each in enumerate(value))
    found = _scalar(value, place)
    if kind in _ORDER and isinstance(found, bool):
        raise InvalidInput(f"{place} is {_shown(value)}; {kind!r} compares numbers and strings", param=place)
    return found


def _scalar(value: Any, place: str) -> Value:
    good = isinstance(value, bool | str | int) or (isinstance(value, float) and math.isfinite(value))
    if not good:
        raise InvalidInput(f"{place} is {_shown(value)}; it must be a string, a number or a boolean", param=place)
    if isinstance(value, str) and len(value) > MAX_VALUE_CHARACTERS:
        raise InvalidInput(f"{place} has {len(value)} characters, the limit is {MAX_VALUE_CHARACTERS}", param=place)
    found: Value = value
    return found


def _only(raw: Mapping[str, Any], fields: tuple[str, ...], place: str) -> None:
    for field in raw:
        if field not in fields:
            raise InvalidInput(f"{place} has no field {field!r}; it has {', '.join(fields)}", param=f"{place}.{field}")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "none"


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
