"""
Purpose statements: why a tenant's behaviour is trained at all, and by which figures that will have succeeded.

A statement is written before the data, is kept with a dataset, goes into the manifest of every adapter trained on it
and stands in every report. It names metrics that evaluation measures; METRICS is the list of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ryorin.digests import digest_of
from ryorin.errors import InvalidInput

TEXTS = ("problem", "why_not_prompt", "why_not_retrieval")
BOUNDS = ("at_least", "at_most")
MAX_CHARACTERS = 10_000

METRICS = {  # by the names they have in evaluation's figures, on held-out cases; the last three are training's own
    "right": "share of answers with all that is expected right",
    "format": "share of answers whose format is valid, by the answer schema where there is one",
    "decision": "share of right decisions",
    "facts": "share of answers that state the expected facts",
    "citations": "share of answers that cite the right documents",
    "refusal": "share of cases that are refused exactly when they should be",
    "refusal_precision": "of the answers that refuse, the share that should",
    "refusal_recall": "of the cases to refuse, the share that is refused",
    "tone": "share of answers in the tone that is asked for",
    "consistency": "agreement of the answers to one case asked again",
    "paraphrases": "agreement of the answers to one case in other words",
    "hedging": "share of answers that hedge",
    "polite": "share of Japanese sentences in です・ます",
    "honorifics": "share of Japanese sentences with 敬語",
    "doubled": "share of Japanese answers with 二重敬語",
    "reading_grade": "reading grade of English answers, the mean",
    "characters": "characters of an answer, the mean",
    "latency": "seconds to the whole answer, the mean",
    "ability": "share of the general questions that the tuned model answers right",
    "held_out_loss": "loss on held-out rows at the end of training",
    "held_out_token_accuracy": "share of held-out answers' tokens that are the likeliest",
    "held_out_answer_accuracy": "share of held-out answers of which every token is the likeliest",
}


@dataclass(frozen=True)
class Target:
    """A bound that a metric must keep. bound: `at_least` or `at_most`."""

    metric: str
    bound: str
    value: float

    def is_met(self, measured: float) -> bool:
        """Whether a measured value keeps the bound; NaN does not."""
        return measured >= self.value if self.bound == "at_least" else measured <= self.value

    def __str__(self) -> str:
        return f"{self.metric} {self.bound.replace('_', ' ')} {self.value:g}"


@dataclass(frozen=True)
class Purpose:
    """
    problem: what is wrong today. why_not_prompt, why_not_retrieval: why neither of them solves it.
    success: the bounds that define success, at least one.
    """

    problem: str
    why_not_prompt: str
    why_not_retrieval: str
    success: tuple[Target, ...]

    def spec(self) -> dict[str, Any]:
        """The JSON form that is kept and repeated; `from_spec` reads it."""
        return {
            **{name: getattr(self, name) for name in TEXTS},
            "success": [{"metric": each.metric, each.bound: each.value} for each in self.success],
        }

    @property
    def digest(self) -> str:
        """Of `spec`."""
        return digest_of(self.spec())

    @classmethod
    def from_spec(cls, spec: Any, source: str = "the purpose") -> Purpose:
        """The statement in a JSON value. Raises InvalidInput naming the field that is wrong."""
        if not isinstance(spec, dict):
            raise InvalidInput(f"{source} must be an object with {', '.join(TEXTS)} and success", param="purpose")
        for name in spec:
            if name not in (*TEXTS, "success"):
                raise InvalidInput(
                    f"{source}: unknown field {name!r}; known: {', '.join(TEXTS)}, success", param="purpose"
                )
        for name in TEXTS:
            text = spec.get(name)
            if not isinstance(text, str) or not text.strip():
                raise InvalidInput(f"{source}: {name} is missing or empty; answer it in a sentence", param="purpose")
            if len(text) > MAX_CHARACTERS:
                raise InvalidInput(
                    f"{source}: {name} has {len(text)} characters, {MAX_CHARACTERS} at most", param="purpose"
                )
        listed = spec.get("success")
        if not isinstance(listed, list) or not listed:
            raise InvalidInput(
                f"{source}: success must list at least one bound, for example "
                '{"metric": "decision", "at_least": 0.9}',
                param="purpose",
            )
        targets = tuple(_target(value, f"{source}, success {number}") for number, value in enumerate(listed, start=1))
        problem, why_not_prompt, why_not_retrieval = (str(spec[name]).strip() for name in TEXTS)
        return cls(problem, why_not_prompt, why_not_retrieval, targets)


def read_purpose_file(path: Path) -> Purpose:
    """
    The statement in a YAML or JSON file.

    Raises InvalidInput for a file that cannot be read or a field that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", param="purpose") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text (byte {error.start})", param="purpose") from error
    if path.suffix.lower() == ".json" or text.lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{path} is not JSON: {error}", param="purpose") from error
    else:
        import yaml  # type: ignore[import-untyped]

        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            where = " ".join(str(error).split())
            raise InvalidInput(f"{path} is not YAML: {where}", param="purpose") from error
    return Purpose.from_spec(value, str(path))


def _target(value: Any, where: str) -> Target:
    if not isinstance(value, dict) or "metric" not in value:
        raise InvalidInput(f"{where} must be an object with metric and at_least or at_most", param="purpose")
    metric = value["metric"]
    if metric not in METRICS:
        raise InvalidInput(f"{where}: unknown metric {metric!r}; known: {', '.join(METRICS)}", param="purpose")
    bounds = [name for name in value if name != "metric"]
    if len(bounds) != 1 or bounds[0] not in BOUNDS:
        raise InvalidInput(f"{where}: {metric} needs one bound, at_least or at_most", param="purpose")
    number = value[bounds[0]]
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < 1e12:
        raise InvalidInput(f"{where}: {bounds[0]} is {number!r}; it must be a number", param="purpose")
    return Target(metric, bounds[0], float(number))
