"""Graders as JSON: what is read, and what is refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ryorin.errors import InvalidInput
from ryorin.graders import Multi, read_grader
from ryorin.graders.formula import read_formula
from ryorin.graders.template import Missing, read_template

CHECK = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{sample.output_text}}", "hé"),
        ("a {{ item.answer }} b", "a 7 b"),
        ("{{item.list[1].x}}", "yes"),
        ("{{item.list}}", '[1, {"x": "yes"}]'),
        ("{{sample.output_json.decision}}", "OK"),
        ("{{item.項目}}", "日本"),
        ("no place } {", "no place } {"),
    ],
)
def test_templates_are_filled(text: str, expected: str) -> None:
    item = {"answer": 7, "list": [1, {"x": "yes"}], "項目": "日本"}
    values = {"item": item, "sample": {"output_text": "hé", "output_json": {"decision": "OK"}}}
    assert read_template(text).fill(values) == expected


def test_a_place_without_a_value_is_missing() -> None:
    with pytest.raises(Missing, match=r"there is no item\.a\.b"):
        read_template("{{item.a.b}}").fill({"item": {"a": {}}, "sample": {}})
    with pytest.raises(Missing, match=r"there is no item\[0\]"):
        read_template("{{item[0]}}").fill({"item": {"a": {}}, "sample": {}})


@pytest.mark.parametrize("place", ["", "x", "item", "item.", "sample.tools", "sample.output_text.x", "item.__a", "1+1"])
def test_places_that_are_not_known_are_refused(place: str) -> None:
    if place == "item.__a":  # a field like any other
        read_template(f"{{{{{place}}}}}")
        return
    with pytest.raises(ValueError, match=r"cannot be filled|is not known"):
        read_template(f"{{{{{place}}}}}")


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("0.5 * a + b", 1.25),
        ("min(a, b) - max(1, 2)", -1.5),
        ("-a ** 2", -0.25),
        ("exp(0) + sqrt(4) + floor(1.9)", 4.0),
    ],
)
def test_formulas(formula: str, value: float) -> None:
    assert read_formula(formula).value({"a": 0.5, "b": 1.0}) == value


@pytest.mark.parametrize(
    "formula",
    [
        "__import__('os').system('true')", "a.b", "a[0]", "(lambda: 1)()", "[1]", "'a' * 9", "a if b else 1", "a ^ 2",
        "abs(1, 2)", "min(1)", "open('x')", "a and b", "1 +", "(" * 900, "a := 1", "True", "1j", "9" * 1001, "a @ b",
    ],
)  # fmt: skip
def test_formulas_hold_nothing_else(formula: str) -> None:
    with pytest.raises(ValueError):
        read_formula(formula)


@pytest.mark.parametrize("formula", ["1 / a", "9.0 ** 9999", "sqrt(-1)", "log(a)", "exp(1000)"])
def test_a_formula_without_a_value_says_so(formula: str) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        read_formula(formula).value({"a": 0.0})


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"type": "label_model"}, "grader.type", "use string_check"),
        ({"name": "a b"}, "grader.name", "letters, digits"),
        ({"operation": "is"}, "grader.operation", "eq, ne, like, ilike"),
        ({"input": None}, "grader.input", "is missing"),
        ({"input": "{{x}}"}, "grader.input", "cannot be filled"),
        ({"pass_threshold": 0.5}, "grader.pass_threshold", "not a field"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        read_grader(CHECK | change)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("grader", "words"),
    [
        (None, "must be an object"),
        ({"type": "python", "name": "p", "source": "def grade(:"}, "cannot be compiled"),
        ({"type": "python", "name": "p", "source": "1", "image_tag": "2025-05-08"}, "image_tag"),
        ({"type": "python", "name": "p", "source": "1", "range": [1, 0]}, "must be below"),
        ({"type": "python", "name": "p", "source": "1", "range": [0, math.inf]}, "two numbers"),
        ({"type": "regex", "name": "r", "pattern": "("}, "cannot be read"),
        ({"type": "json_schema", "name": "j", "schema": {"type": "no"}}, "no JSON Schema"),
        ({"type": "json_schema", "name": "j", "schema": {"$ref": "http://a/b"}}, "only what stands in it"),
        (CHECK | {"type": "text_similarity", "evaluation_metric": "cosine"}, "embedding model"),
        ({"type": "score_model", "name": "s", "model": "m", "input": []}, "list of messages"),
        (
            {
                "type": "score_model", "name": "s", "model": "m", "input": [{"role": "user", "content": "x"}],
                "sampling_params": {"reasoning_effort": "low"},
            },
            "reasoning_effort is not a field",
        ),
        ({"type": "multi", "name": "m", "graders": {}, "calculate_output": "1"}, "1 to 20 graders"),
        ({"type": "multi", "name": "m", "graders": {"a": CHECK}, "calculate_output": "b"}, "names 'b'"),
        ({"type": "multi", "name": "m", "graders": {"a": CHECK}, "calculate_output": "1"}, "does not use"),
    ],
)  # fmt: skip
def test_each_kind_is_checked(grader: Any, words: str) -> None:
    if isinstance(grader, dict) and grader["type"] == "text_similarity":
        grader = {name: value for name, value in grader.items() if name != "operation"}
    with pytest.raises(InvalidInput, match=words):
        read_grader(grader)


def test_openais_own_types_are_read() -> None:
    """As the openai client's models write them."""
    from openai.types.graders import MultiGrader, PythonGrader, StringCheckGrader

    check = StringCheckGrader.model_validate(CHECK)
    python = PythonGrader(type="python", name="p", source="def grade(sample, item): return 1.0")
    assert read_grader(python.to_dict()).name == "p"
    multi = MultiGrader(type="multi", name="m", graders=check, calculate_output="same")
    found = read_grader(multi.to_dict())
    assert isinstance(found, Multi) and list(found.graders) == ["same"]
