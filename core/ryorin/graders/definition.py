"""
The kinds of graders. OpenAI's (https://platform.openai.com/docs/guides/graders):

    string_check     input, reference, operation: eq, ne, like (input holds reference), ilike (whatever the case)
    text_similarity  input, reference, evaluation_metric: fuzzy_match, bleu, gleu, rouge_1 … rouge_5, rouge_l
    python           source, with `def grade(sample, item) -> float`; runs confined
    score_model      model, input: messages, range, sampling_params
    multi            graders: {name: grader}, calculate_output: a formula over the names

and ours:

    json_schema      schema, input: 1 when the input is JSON of this schema and nothing else
    regex            pattern, match: full or search, input
    reward_model     model: the name of a reward model that `ryorin train reward` made

`input` and `reference` are templates (template.py). A grade lies in `range`, [0, 1] unless given; what is above or
below counts as its end. An answer that a grader fails on gets `Grader.failed`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ryorin.errors import InvalidInput
from ryorin.graders.formula import Formula, read_formula
from ryorin.graders.template import Template, read_template

METRICS = ("fuzzy_match", "bleu", "gleu", *(f"rouge_{n}" for n in range(1, 6)), "rouge_l")
REFUSED_METRICS = {
    "cosine": "it needs an embedding model at every step",
    "meteor": "it needs WordNet, which is not installed",
}
OPERATIONS = ("eq", "ne", "like", "ilike")
MATCHES = ("full", "search")
ROLES = ("system", "developer", "user", "assistant")
MAX_SOURCE_BYTES = 256 * 1024
MAX_GRADERS = 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_ANSWER = "{{sample.output_text}}"


@dataclass(frozen=True)
class Grader:
    """What all graders have. low, high: between which a grade lies."""

    name: str
    low: float
    high: float

    @property
    def failed(self) -> float:
        """The grade of an answer that the grader failed on: 0, or what its range has closest to it."""
        return self.clipped(0.0)

    def clipped(self, grade: float) -> float:
        """The grade, no further out than the range."""
        return min(max(grade, self.low), self.high)

    def templates(self) -> Iterator[Template]:
        """All templates in it."""
        return (value for value in vars(self).values() if isinstance(value, Template))

    def leaves(self) -> Iterator[Grader]:
        """It, or the graders it is computed from."""
        yield self


@dataclass(frozen=True)
class StringCheck(Grader):
    """1 or 0."""

    input: Template
    reference: Template
    operation: str


@dataclass(frozen=True)
class TextSimilarity(Grader):
    """From 0 to 1."""

    input: Template
    reference: Template
    metric: str


@dataclass(frozen=True)
class Python(Grader):
    """What the function `grade(sample, item)` of `source` returns."""

    source: str


@dataclass(frozen=True)
class ScoreModel(Grader):
    """What a language model says. messages: (role, text). sampling: temperature, top_p, seed, max_tokens."""

    model: str
    messages: tuple[tuple[str, Template], ...]
    sampling: Mapping[str, Any]

    def templates(self) -> Iterator[Template]:
        """Of its messages."""
        return (text for _, text in self.messages)


@dataclass(frozen=True)
class JsonSchema(Grader):
    """1 or 0."""

    input: Template
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Regex(Grader):
    """1 or 0."""

    input: Template
    pattern: str
    match: str


@dataclass(frozen=True)
class RewardModel(Grader):
    """The score of a trained reward model, as it is: its scale is its own."""

    model: str


@dataclass(frozen=True)
class Multi(Grader):
    """A formula over other graders."""

    graders: Mapping[str, Grader]
    formula: Formula

    def templates(self) -> Iterator[Template]:
        """Of its graders."""
        return (template for grader in self.graders.values() for template in grader.templates())

    def leaves(self) -> Iterator[Grader]:
        """Its graders."""
        yield from self.graders.values()


FullGrader = StringCheck | TextSimilarity | Python | ScoreModel | JsonSchema | Regex | RewardModel | Multi


def read_grader(value: Any, where: str = "grader") -> Grader:
    """The grader that a JSON object defines. Raises InvalidInput naming the field."""
    fields = _Fields(value, where)
    kind = fields.one_of("type", tuple(_KINDS))
    grader = _KINDS[kind](fields)
    fields.none_left(kind)
    return grader


class _Fields:
    """A JSON object whose fields are taken one by one."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise InvalidInput(f"{where} must be an object with a 'type': {', '.join(_KINDS)}", param=where)
        self.left, self.where = dict(value), where

    def wrong(self, name: str, reason: str) -> InvalidInput:
        return InvalidInput(f"{self.where}.{name} {reason}", param=f"{self.where}.{name}")

    def take(self, name: str) -> Any:
        return self.left.pop(name, None)

    def text(self, name: str, default: str | None = None) -> str:
        found = self.take(name)
        if found is None and default is not None:
            return default
        if not isinstance(found, str) or not found:
            raise self.wrong(name, "must be text" if found is not None else "is missing")
        return found

    def one_of(self, name: str, known: tuple[str, ...], default: str | None = None) -> str:
        found = self.take(name)
        if found is None and default is not None:
            return default
        if found not in known:
            raise self.wrong(name, f"is {found!r}; use {', '.join(known)}")
        return str(found)

    def template(self, name: str, default: str | None = None) -> Template:
        written = self.text(name, default)
        try:
            return read_template(written)
        except ValueError as error:
            raise self.wrong(name, f"cannot be used: {error}") from None

    def name(self) -> str:
        found = self.text("name")
        if _NAME.fullmatch(found) is None:
            raise self.wrong("name", f"is {found!r}; use letters, digits and underscores, 64 at most")
        return found

    def range(self, low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
        found = self.take("range")
        if found is None:
            return low, high
        if not isinstance(found, list) or len(found) != 2 or not all(_is_number(each) for each in found):
            raise self.wrong("range", "must be two numbers, the lowest and the highest grade")
        if not found[0] < found[1]:
            raise self.wrong("range", f"is {found}; the first must be below the second")
        return float(found[0]), float(found[1])

    def common(self) -> tuple[str, float, float]:
        return (self.name(), *self.range())

    def none_left(self, kind: str) -> None:
        for name, value in self.left.items():
            if value is not None:
                raise self.wrong(name, f"is not a field of {kind!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _string_check(fields: _Fields) -> Grader:
    return StringCheck(
        fields.name(),
        0.0,
        1.0,
        fields.template("input"),
        fields.template("reference"),
        fields.one_of("operation", OPERATIONS),
    )


def _text_similarity(fields: _Fields) -> Grader:
    metric = fields.left.get("evaluation_metric")
    if metric in REFUSED_METRICS:
        raise fields.wrong("evaluation_metric", f"{metric!r} is not done here: {REFUSED_METRICS[metric]}")
    metric = fields.one_of("evaluation_metric", METRICS)
    return TextSimilarity(fields.name(), 0.0, 1.0, fields.template("input"), fields.template("reference"), metric)


def _python(fields: _Fields) -> Grader:
    source = fields.text("source")
    if fields.take("image_tag") is not None:
        raise fields.wrong("image_tag", "is not supported: a grader runs in the Python that trains, leave it out")
    if len(source.encode(errors="replace")) > MAX_SOURCE_BYTES:
        raise fields.wrong("source", f"is longer than {MAX_SOURCE_BYTES >> 10} KB")
    try:
        compile(source, "grader", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise fields.wrong("source", f"cannot be compiled: {error}") from None
    return Python(*fields.common(), source)


def _score_model(fields: _Fields) -> Grader:
    given = fields.take("input")
    if not isinstance(given, list) or not given:
        raise fields.wrong("input", "must be a list of messages")
    messages = []
    for number, message in enumerate(given):
        inner = _Fields(message, f"{fields.where}.input[{number}]")
        inner.one_of("type", ("message",), "message")
        content = inner.left.get("content")
        if isinstance(content, dict) and content.get("type") == "input_text" and set(content) == {"type", "text"}:
            inner.left["content"] = content["text"]
        messages.append((inner.one_of("role", ROLES), inner.template("content")))
        inner.none_left("message")
    sampling = _Fields(fields.take("sampling_params") or {}, f"{fields.where}.sampling_params")
    kept: dict[str, Any] = {}
    for name, sent in (
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("seed", "seed"),
        ("max_completions_tokens", "max_tokens"),
    ):
        number_given = sampling.take(name)
        if number_given is not None:
            if not _is_number(number_given):
                raise sampling.wrong(name, f"is {number_given!r}; use a number")
            kept[sent] = number_given
    sampling.none_left("score_model")
    return ScoreModel(*fields.common(), fields.text("model"), tuple(messages), kept)


def _json_schema(fields: _Fields) -> Grader:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    schema = fields.take("schema")
    if not isinstance(schema, dict):
        raise fields.wrong("schema", "must be a JSON Schema, an object")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise fields.wrong("schema", f"is no JSON Schema: {error.message}") from None
    for target in _references(schema):
        if not target.startswith("#"):
            raise fields.wrong("schema", f"refers to {target!r}; only what stands in it can be referred to ('#/…')")
    return JsonSchema(fields.name(), 0.0, 1.0, fields.template("input", _ANSWER), schema)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("$ref", "$dynamicRef") and isinstance(inner, str):
                yield inner
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _regex(fields: _Fields) -> Grader:
    pattern = fields.text("pattern")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise fields.wrong("pattern", f"cannot be read: {error}") from None
    return Regex(
        fields.name(),
        0.0,
        1.0,
        fields.template("input", _ANSWER),
        pattern,
        fields.one_of("match", MATCHES, "full"),
    )


def _reward_model(fields: _Fields) -> Grader:
    return RewardModel(fields.name(), *fields.range(-10.0, 10.0), fields.text("model"))


def _multi(fields: _Fields) -> Grader:
    given = fields.take("graders")
    if isinstance(given, dict) and isinstance(given.get("type"), str):  # one grader, as OpenAI's SDK has it
        given = {str(given.get("name")): given}
    if not isinstance(given, dict) or not 1 <= len(given) <= MAX_GRADERS:
        raise fields.wrong("graders", f"must be an object of 1 to {MAX_GRADERS} graders by name")
    graders = {}
    for name, each in given.items():
        if _NAME.fullmatch(name) is None:
            raise fields.wrong("graders", f"has the name {name!r}; use letters, digits and underscores")
        grader = read_grader(each, f"{fields.where}.graders.{name}")
        if isinstance(grader, Multi):
            raise fields.wrong("graders", f"has {name!r}, a multi grader in a multi grader; write one formula")
        graders[name] = grader
    try:
        formula = read_formula(fields.text("calculate_output"))
    except ValueError as error:
        raise fields.wrong("calculate_output", f"cannot be used: {error}") from None
    for unknown in sorted(formula.names - set(graders)):
        raise fields.wrong("calculate_output", f"names {unknown!r}; its graders are {', '.join(graders)}")
    for unused in sorted(set(graders) - formula.names):
        raise fields.wrong("calculate_output", f"does not use the grader {unused!r}")
    return Multi(*fields.common(), graders, formula)


_KINDS: dict[str, Callable[[_Fields], Grader]] = {
    "string_check": _string_check,
    "text_similarity": _text_similarity,
    "python": _python,
    "score_model": _score_model,
    "json_schema": _json_schema,
    "regex": _regex,
    "reward_model": _reward_model,
    "multi": _multi,
}
