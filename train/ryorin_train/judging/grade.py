"""
One answer graded against its case, by rules alone.

An answer whose format is not valid has no right decision, fact or citation: a program that reads it could not use any
of them. What a case does not expect is not judged, and is None in its grade.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ryorin.errors import InvalidInput
from ryorin.prompt import MARKER
from ryorin_train.judging.cases import Case, Cases, Finding, Rubric, plain
from ryorin_train.judging.tone import REFUSALS, Heard, listen, says

SEVERAL = "(several)"  # an answer that decides twice, differently
NOTHING = object()


@dataclass(frozen=True)
class Answer:
    """
    What the server said to one question.

    cited: the file names its markers point to, in their order. error: what it said instead of answering.
    passages: ids of the passages in the prompt, best first; None when retrieval was off or that is not known.
    """

    text: str
    cited: tuple[str, ...] = ()
    error: str | None = None
    passages: tuple[int, ...] | None = None
    total_ms: float = 0.0


@dataclass(frozen=True)
class Grade:
    """
    The verdicts on one answer; None is what the case does not ask.

    said: the decision it has, or none. refused: whether it says that it cannot be answered. refusal: whether it
    refuses exactly when it should. right: all of format, decision, facts, citations and refusal that are judged.
    signature: what two answers to one question must have in common to be called the same.
    """

    format: bool | None
    decision: bool | None
    facts: bool | None
    citations: bool | None
    refusal: bool
    refused: bool
    said: str | None
    heard: Heard
    signature: tuple[Any, ...]

    @property
    def tone(self) -> bool | None:
        """Whether no rule of the house's tone is broken; None where it has none."""
        return None if self.heard.broken is None else not self.heard.broken

    @property
    def right(self) -> bool:
        """Whether nothing that is judged is wrong; tone is a matter of its own."""
        return False not in (self.format, self.decision, self.facts, self.citations, self.refusal)

    def wrong(self) -> list[str]:
        """What is wrong, by name, tone included."""
        verdicts = {
            "format": self.format,
            "decision": self.decision,
            "facts": self.facts,
            "citations": self.citations,
            "refusal": self.refusal,
            "tone": self.tone,
        }
        return [name for name, verdict in verdicts.items() if verdict is False]


class Grader:
    """Grades answers by a rubric and, where the tenant's prompt has one, its answer schema."""

    def __init__(self, rubric: Rubric, answer_schema: dict[str, Any] | None) -> None:
        from jsonschema import Draft202012Validator

        self.rubric = rubric
        self.schema = answer_schema
        self._validator = None if answer_schema is None else Draft202012Validator(answer_schema)

    def check(self, cases: Cases) -> None:
        """Raises InvalidInput when cases expect a decision and nothing says where it stands."""
        asked = next((case for case in cases.cases if case.expected.decision is not None), None)
        finding = self.rubric.decision
        if asked is None or finding.pattern is not None:
            return
        first = (finding.field or "").partition(".")[0]
        known = (self.schema or {}).get("properties")
        if self.schema is None or (isinstance(known, dict) and first not in known):
            where = "its answers have no schema" if self.schema is None else "its answer schema has no such field"
            raise InvalidInput(
                f"{cases.name}, line {asked.line}: a decision is expected, and it is looked for in the field "
                f"{finding.field!r}, but {where}; say where it stands in the first line: "
                '{"rubric": {"decision": {"field": "…"}}} or {"pattern": "Decision: (YES|NO)"}',
                param="cases",
            )

    def grade(self, case: Case, answer: Answer) -> Grade:
        """The grade of one answer."""
        expected = case.expected
        value = json_value(answer.text)
        text = answer.text if value is NOTHING else "\n".join(_texts(value))
        valid = self._format(answer.text, value)
        usable = valid is not False and answer.error is None
        said = self._said(self.rubric.decision, answer.text, value) if usable else None
        refused = answer.error is None and self._refused(case.language, text, value)
        decision = facts = citations = None
        if expected.decision is not None:
            decision = usable and said == plain(expected.decision)
        if expected.facts is not None:
            stated = _field_text(value, self.rubric.facts) if self.rubric.facts else text
            facts = usable and all(any(says(stated, wording) for wording in fact) for fact in expected.facts)
        if expected.documents is not None:
            citations = usable and self._cites(answer, [place.document for place in expected.documents])
        return Grade(
            format=False if answer.error is not None and valid is not None else valid,
            decision=decision,
            facts=facts,
            citations=citations,
            refusal=answer.error is None and refused == expected.refuse,
            refused=refused,
            said=said,
            heard=listen(text, case.language, self.rubric.tone.get(case.language)),
            # Of an answer that cannot be read only its words can be compared.
            signature=(said, facts, frozenset(answer.cited), refused, "" if usable else squeezed(text)),
        )

    def _format(self, text: str, value: Any) -> bool | None:
        if self.rubric.format is not None:
            return self.rubric.format.fullmatch(text.strip()) is not None
        if self._validator is not None:
            return value is not NOTHING and bool(self._validator.is_valid(value))
        return None

    def _said(self, finding: Finding, text: str, value: Any) -> str | None:
        if finding.pattern is None:
            found = _field(value, finding.field or "")
            return None if found is NOTHING or isinstance(found, dict | list) else plain(_word(found))
        words = {plain(match[1] if match.re.groups else match[0]) for match in finding.pattern.finditer(text)}
        return None if not words else words.pop() if len(words) == 1 else SEVERAL

    def _refused(self, language: str, text: str, value: Any) -> bool:
        refusal = self.rubric.refusal
        if refusal.field is not None:
            found = _field(value, refusal.field)
            return found is not NOTHING and type(found) is type(refusal.equals) and bool(found == refusal.equals)
        pattern = refusal.pattern or REFUSALS[language]
        return pattern.search(" ".join(text.split())) is not None

    def _cites(self, answer: Answer, documents: Sequence[str]) -> bool:
        """Whether exactly these documents are cited, and no marker points to a passage that there is not."""
        markers = {int(match[1]) for match in MARKER.finditer(answer.text)}
        names = [document.rpartition("/")[2] for document in documents]
        return set(answer.cited) == set(names) and (not markers or bool(answer.cited)) and _all_known(markers, answer)


def _all_known(markers: set[int], answer: Answer) -> bool:
    """Markers of no passage cannot be told from the citations alone: where the passages are known, they must exist."""
    return answer.passages is None or all(1 <= number <= len(answer.passages) for number in markers)


def json_value(text: str) -> Any:
    """The value of an answer that is JSON and nothing else, or `NOTHING`."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOTHING


def _refuse(name: str) -> None:
    raise ValueError(name)


def _field(value: Any, path: str) -> Any:
    for step in path.split("."):
        if not isinstance(value, dict) or step not in value:
            return NOTHING
        value = value[step]
    return value


def _field_text(value: Any, path: str) -> str:
    found = _field(value, path)
    return "" if found is NOTHING else "\n".join(_texts(found))


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _texts(value: Any) -> list[str]:
    """What a JSON value says, field by field, without the names of its fields."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for part in value.values() for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [] if value is None or isinstance(value, bool) else [_word(value)]


def prose(text: str) -> str:
    """What an answer says, whether it is JSON or not."""
    value = json_value(text)
    return text if value is NOTHING else "\n".join(_texts(value))


def squeezed(text: str) -> str:
    """Text without white space."""
    return re.sub(r"\s+", "", text)
