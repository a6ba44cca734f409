"""Filters: strict in what they take, and against an evaluator written another way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryorin.errors import InvalidInput
from ryorin.filters import MAX_CONDITIONS, MAX_DEPTH, parse_filter

KEYS = st.sampled_from(["year", "team", "open"])
VALUES = st.one_of(st.sampled_from(["a", "b", "1", ""]), st.sampled_from([0, 1, 2, 1.0, -0.5]), st.booleans())
ATTRIBUTES = st.dictionaries(KEYS, VALUES)


def comparison(kind: str, value: Any, key: str = "year") -> dict[str, Any]:
    return {"type": kind, "key": key, "value": value}


COMPARISONS = st.one_of(
    st.builds(comparison, st.sampled_from(["eq", "ne"]), VALUES, KEYS),
    st.builds(
        comparison,
        st.sampled_from(["gt", "gte", "lt", "lte"]),
        VALUES.filter(lambda value: not isinstance(value, bool)),
        KEYS,
    ),
    st.builds(comparison, st.sampled_from(["in", "nin"]), st.lists(VALUES, max_size=4), KEYS),
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda inner: st.fixed_dictionaries(
        {"type": st.sampled_from(["and", "or"]), "filters": st.lists(inner, min_size=1, max_size=3)}
    ),
    max_leaves=8,
).filter(lambda raw: depth(raw) <= MAX_DEPTH)


def depth(raw: dict[str, Any]) -> int:
    return 1 + max((depth(part) for part in raw.get("filters", [])), default=0)


def naive(raw: dict[str, Any], attributes: dict[str, Any]) -> bool:
    """The rules one by one, by number line and name: a value's kind and value are one tuple."""
    kind = raw["type"]
    if kind == "and":
        return False not in [naive(part, attributes) for part in raw["filters"]]
    if kind == "or":
        return True in [naive(part, attributes) for part in raw["filters"]]

    def typed(value: Any) -> tuple[str, Any]:
        return ("bool", value) if value is True or value is False else ("str" if type(value) is str else "num", value)

    if raw["key"] not in attributes:
        return kind in ("ne", "nin")
    has = typed(attributes[raw["key"]])
    if kind in ("in", "nin"):
        return (has in [typed(value) for value in raw["value"]]) is (kind == "in")
    value = typed(raw["value"])
    if kind in ("eq", "ne"):
        return (has == value) is (kind == "eq")
    if has[0] != value[0]:
        return False
    less, more = has[1] < value[1], has[1] > value[1]
    return {"gt": more, "gte": not less, "lt": less, "lte": not more}[kind]


@given(FILTERS, ATTRIBUTES)
def test_equals_a_naive_evaluator(raw: dict[str, Any], attributes: dict[str, Any]) -> None:
    assert parse_filter(raw).holds(attributes) is naive(raw, attributes)


@pytest.mark.parametrize(
    ("raw", "attributes", "holds"),
    [
        (comparison("eq", 1), {"year": True}, False),
        (comparison("eq", 1), {"year": 1.0}, True),
        (comparison("eq", "1"), {"year": 1}, False),
        (comparison("ne", 1), {}, True),
        (comparison("nin", [1]), {}, True),
        (comparison("gt", 1), {}, False),
        (comparison("gt", "a"), {"year": 2}, False),
        (comparison("in", []), {"year": 1}, False),
    ],
)
def test_kinds_and_missing_keys(raw: dict[str, Any], attributes: dict[str, Any], holds: bool) -> None:
    assert parse_filter(raw).holds(attributes) is holds


def nested(levels: int) -> dict[str, Any]:
    raw = comparison("eq", 1)
    for _ in range(levels - 1):
        raw = {"type": "and", "filters": [raw]}
    return raw


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        ([], "filters"),
        (None, "filters"),
        ({}, "filters.type"),
        (comparison("like", "x"), "filters.type"),
        (comparison("eq", None), "filters.value"),
        (comparison("eq", [1]), "filters.value"),
        (comparison("eq", float("nan")), "filters.value"),
        (comparison("gt", True), "filters.value"),
        (comparison("in", 1), "filters.value"),
        (comparison("in", [1, {}]), "filters.value[1]"),
        (comparison("eq", 1, key=""), "filters.key"),
        (comparison("eq", 1, key="k" * 65), "filters.key"),
        (comparison("eq", "v" * 513), "filters.value"),
        (comparison("eq", 1) | {"boost": 2}, "filters.boost"),
        ({"type": "and", "filters": []}, "filters.filters"),
        ({"type": "or", "filters": [comparison("eq", 1), comparison("is", 1)]}, "filters.filters[1].type"),
        (nested(MAX_DEPTH + 1), "filters" + ".filters[0]" * MAX_DEPTH),
        (
            {"type": "or", "filters": [comparison("eq", 1)] * (MAX_CONDITIONS + 1)},
            f"filters.filters[{MAX_CONDITIONS - 1}]",
        ),
    ],
)
def test_what_is_wrong_is_named(raw: Any, param: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_filter(raw)
    assert refused.value.param == param


def test_the_deepest_that_is_taken() -> None:
    assert parse_filter(nested(MAX_DEPTH)).holds({"year": 1})
