"""
Answers to grades.

A grader that fails on an answer (a field is missing, its code raised or took too long, a model gave no number) gives
that answer its failure grade; the reason is kept with the grade, and the run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

from ryorin.errors import RequirementMissing
from ryorin.graders import (
    Grader,
    JsonSchema,
    Multi,
    Python,
    Regex,
    RewardModel,
    ScoreModel,
    StringCheck,
    TextSimilarity,
)
from ryorin.graders.template import lacking
from ryorin_train.graders.asking_model import asker, score_of
from ryorin_train.graders.similarity import similarity
from ryorin_train.judging.grade import NOTHING, json_value

REGEX_TIMEOUT_S = 1.0
ASKED_AT_ONCE = 8


@dataclass(frozen=True)
class Sample:
    """
    An answer to grade.

    item: the fields of its row. prompt, answer: both as tokens, which only reward models look at.
    """

    item: Mapping[str, Any]
    text: str
    prompt: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()

    def values(self) -> dict[str, Any]:
        """What templates are filled with."""
        sample: dict[str, Any] = {"output_text": self.text}
        parsed = json_value(self.text)
        if parsed is not NOTHING:
            sample["output_json"] = parsed
        return {"item": self.item, "sample": sample}


@dataclass(frozen=True)
class Mark:
    """
    What an answer is worth.

    parts: of each grader that it is computed from, by name. failures: reasons, by name.
    """

    grade: float
    parts: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class Failed(ValueError):
    """A grader can say nothing of an answer."""


Score = Callable[[Sequence[Sample]], Sequence[float]]
_One = Callable[[Sample], float]
_Found = float | Failed


class Grading:
    """
    A grader, ready to grade.

    reward_model: gives the scorer of a reward model by its name; called once for each that the grader names. Raises
    what `asker` and `reward_model` raise.
    """

    def __init__(self, grader: Grader, reward_model: Callable[[str], Score] | None = None) -> None:
        self.grader = grader
        self._leaves: dict[str, tuple[Grader, Callable[[Sequence[Sample]], Iterable[_Found]]]] = {}
        named = grader.graders if isinstance(grader, Multi) else {grader.name: grader}
        for name, leaf in named.items():
            self._leaves[name] = leaf, _prepared(leaf, reward_model)

    def grade(self, samples: Sequence[Sample]) -> list[Mark]:
        """A mark for each answer."""
        columns: dict[str, list[_Found]] = {}
        for name, (_, graded) in self._leaves.items():
            columns[name] = list(graded(samples))
        return [self._mark({name: column[at] for name, column in columns.items()}) for at in range(len(samples))]

    def _mark(self, found: Mapping[str, _Found]) -> Mark:
        parts: dict[str, float] = {}
        failures: dict[str, str] = {}
        for name, value in found.items():
            leaf = self._leaves[name][0]
            if not isinstance(value, Failed) and not math.isfinite(value):
                value = Failed(f"the grade is {value}")
            if isinstance(value, Failed):
                failures[name] = str(value)
            parts[name] = leaf.failed if isinstance(value, Failed) else leaf.clipped(value)
        if not isinstance(self.grader, Multi):
            return Mark(parts[self.grader.name], parts, failures)
        try:
            total = self.grader.formula.value(parts)
            if not math.isfinite(total):
                raise ValueError(f"the grade is {total}")
        except (ValueError, ArithmeticError) as error:
            return Mark(self.grader.failed, parts, failures | {self.grader.name: f"calculate_output: {error}"})
        return Mark(self.grader.clipped(total), parts, failures)


def check_item(grader: Grader, item: Mapping[str, Any]) -> None:
    """Whether a row has the fields that the grader's templates ask for. Raises ValueError naming the first it lacks."""
    for template in grader.templates():
        missing = lacking(template, dict(item))
        if missing is not None:
            raise ValueError(f"{missing}, which the grader asks for")


def _prepared(
    leaf: Grader, reward_model: Callable[[str], Score] | None
) -> Callable[[Sequence[Sample]], Iterable[_Found]]:
    """A function from answers to what the grader finds."""
    if isinstance(leaf, RewardModel):
        if reward_model is None:
            raise RequirementMissing("a reward_model grades in training only; use another grader here")
        return cast("Any", reward_model(leaf.model))
    if isinstance(leaf, ScoreModel):
        one = _asked(leaf)

        def together(samples: Sequence[Sample]) -> Iterable[_Found]:
            with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
                return list(pool.map(one, samples))

        return together
    alone = _guarded(_SIMPLE[type(leaf)](leaf))
    return lambda samples: map(alone, samples)


def _guarded(one: _One) -> Callable[[Sample], _Found]:
    def graded(sample: Sample) -> _Found:
        try:
            return one(sample)
        except Failed as error:
            return error
        except (ValueError, TimeoutError, RecursionError) as error:  # Missing, CodeFailed
            return Failed(str(error) or type(error).__name__)

    return graded


def _string_check(grader: StringCheck) -> _One:
    def one(sample: Sample) -> float:
        values = sample.values()
        text, reference = grader.input.fill(values), grader.reference.fill(values)
        if grader.operation == "like":
            return float(reference in text)
        if grader.operation == "ilike":
            return float(reference.casefold() in text.casefold())
        return float((text == reference) is (grader.operation == "eq"))

    return one


def _text_similarity(grader: TextSimilarity) -> _One:
    def one(sample: Sample) -> float:
        values = sample.values()
        return similarity(grader.metric, grader.input.fill(values), grader.reference.fill(values))

    return one


def _json_schema(grader: JsonSchema) -> _One:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    validator = Draft202012Validator(grader.schema, registry=Registry())  # which fetches nothing

    def one(sample: Sample) -> float:
        value = json_value(grader.input.fill(sample.values()))
        return float(value is not NOTHING and validator.is_valid(value))

    return one


def _regex(grader: Regex) -> _One:
    import regex  # type: ignore[import-untyped]  # which can be stopped; `re` cannot

    pattern = regex.compile(grader.pattern)

    def one(sample: Sample) -> float:
        text = grader.input.fill(sample.values())
        search = pattern.fullmatch if grader.match == "full" else pattern.search
        try:
            return float(search(text, timeout=REGEX_TIMEOUT_S) is not None)
        except TimeoutError:
            raise Failed(f"the pattern took more than {REGEX_TIMEOUT_S:g} s") from None

    return one


def _python(grader: Python) -> _One:
    from ryorin_index.sandbox.code import run_code

    def one(sample: Sample) -> float:
        values = sample.values()
        given = {"output_json": None, **values["sample"]}
        value = run_code(grader.source, "grade", [given, values["item"]])
        if not isinstance(value, int | float):
            raise Failed(f"grade returned {type(value).__name__}, not a number")
        return float(value)

    return one


def _asked(grader: ScoreModel) -> Callable[[Sample], _Found]:
    ask = asker(grader)

    def one(sample: Sample) -> _Found:
        values = sample.values()
        try:
            return score_of(ask([{"role": role, "content": text.fill(values)} for role, text in grader.messages]))
        except Exception as error:  # the client's own of many kinds; the answer has no grade, and says why
            return Failed(f"{type(error).__name__}: {error}"[:300])

    return one


_SIMPLE: dict[type[Grader], Callable[[Any], _One]] = {
    StringCheck: _string_check,
    TextSimilarity: _text_similarity,
    JsonSchema: _json_schema,
    Regex: _regex,
    Python: _python,
}
