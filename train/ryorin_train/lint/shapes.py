"""The form of answers: the tenant's answer schema, drift between forms, labels that rule or never appear."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ryorin.errors import InvalidInput
from ryorin_train.lint.findings import ERROR, WARNING, Finding, shown
from ryorin_train.lint.turns import Turn

LEAST_LABELLED = 20  # answers with a label from which on their shares say something
RULING_SHARE = 0.9
COMMON_SHARE = 0.6  # of the answers in one form: the others are then exceptions
_LETTER = re.compile(
    r"\A(?:subject:|dear |to whom|拝啓|件名[:：])|(?:sincerely|regards|敬具|以上)\W*\w*\W*\Z", re.IGNORECASE
)
_LIST = re.compile(r"^\s*(?:[-*•・]|\d+[.)])\s", re.MULTILINE)
_MARKDOWN = re.compile(r"^#{1,6} |^\|.*\|$|^```", re.MULTILINE)


def breaks_schema(turns: Sequence[Turn], schema: dict[str, Any]) -> list[Finding]:
    """
    Answers that the schema does not accept.

    Raises InvalidInput when the schema refers to another one, which is never fetched.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    validator = Draft202012Validator(schema, registry=Registry())  # an empty registry: nothing is fetched
    reasons: dict[str, list[tuple[int, str]]] = {}
    for turn in turns:
        if turn.said.value is None:
            reasons.setdefault("no JSON", []).append((turn.line, f"{shown(turn.answer)!r} is no JSON object or list"))
            continue
        try:
            error = best_match(validator.iter_errors(turn.said.value))
        except Unresolvable as unresolved:
            raise InvalidInput(f"the answer schema refers to {unresolved.ref!r}, which is not in it") from unresolved
        if error is not None:
            place = "/".join(map(str, error.absolute_path)) or "the top"
            key = f"{place} {error.validator} {error.message if error.validator == 'required' else ''}"
            reasons.setdefault(key, []).append((turn.line, f"at {place}: {shown(error.message, 200)}"))
    return [
        Finding(
            "schema",
            ERROR,
            tuple(dict.fromkeys(line for line, _ in found)),
            f"answers break the tenant's answer schema: {found[0][1]}",
            "change the answers, or the schema with 'ryorin prompt set'",
        )
        for found in reasons.values()
    ]


def form_of(turn: Turn) -> str:
    """The form of an answer: JSON with its fields, a letter, Markdown, a list, one word, or prose."""
    said = turn.said
    if isinstance(said.value, dict):
        return f"JSON with {', '.join(sorted(said.value)) or 'no fields'}"
    if isinstance(said.value, list):
        return "a JSON list"
    if _LETTER.search(turn.answer.strip()):
        return "a letter"
    if _MARKDOWN.search(turn.answer):
        return "Markdown"
    if len(_LIST.findall(turn.answer)) > 1:
        return "a list"
    return "one word" if "answer" in said.labels else "prose"


def format_drift(turns: Sequence[Turn]) -> list[Finding]:
    """Answers in another form than most, or no form that most have."""
    forms: dict[str, list[int]] = {}
    for turn in turns:
        forms.setdefault(form_of(turn), []).append(turn.line)
    if len(forms) < 2:
        return []
    common = max(forms, key=lambda form: len(forms[form]))
    share = len(forms[common]) / len(turns)
    if share < COMMON_SHARE:
        counted = ", ".join(f"{len(lines)} {form}" for form, lines in sorted(forms.items(), key=lambda f: -len(f[1])))
        rows = tuple(dict.fromkeys(line for form, lines in forms.items() if form != common for line in lines))
        message = f"no form is common to most answers: {counted}"
        return [Finding("format-drift", WARNING, rows, message, "choose one form and write all answers in it")]
    return [
        Finding(
            "format-drift",
            WARNING,
            tuple(dict.fromkeys(lines)),
            f"the answer is {form}, while {share:.0%} are {common}",
            f"write it as {common}",
        )
        for form, lines in forms.items()
        if form != common
    ]


def labels(turns: Sequence[Turn], schema: dict[str, Any] | None) -> list[Finding]:
    """Labels that nearly all answers have, and values of the schema's enums that none has."""
    enums = _enums(schema)
    values: dict[str, list[tuple[int, str]]] = {}
    for turn in turns:
        found = dict(turn.said.labels)
        for name in enums:
            if isinstance(turn.said.value, dict) and name in turn.said.value:
                found[name] = str(turn.said.value[name])
        for name, value in found.items():
            values.setdefault(name, []).append((turn.line, value))
    findings = []
    for name, given in values.items():
        if len(given) < LEAST_LABELLED:
            continue
        counts = Counter(value for _, value in given)
        ruling, most = counts.most_common(1)[0]
        if name == "answer" and len(counts) > len(given) / 4:
            continue  # one-word answers of an open kind (a name, a number) are no labels
        if most / len(given) >= RULING_SHARE:
            findings.append(
                Finding(
                    "label-imbalance",
                    WARNING,
                    tuple(dict.fromkeys(line for line, value in given if value != ruling)),
                    f"{name} is {ruling} in {most} of {len(given)} answers: always saying so would nearly be right",
                    "add rows of the other labels",
                )
            )
        missing = [str(value) for value in enums.get(name, ()) if str(value) not in counts]
        if missing:
            findings.append(
                Finding(
                    "label-missing",
                    WARNING,
                    (),
                    f"{name} is never {' or '.join(missing)} in {len(given)} answers",
                    "add rows of that label, or take it out of the schema",
                )
            )
    return findings


def _enums(schema: dict[str, Any] | None) -> dict[str, list[Any]]:
    fields = (schema or {}).get("properties")
    if not isinstance(fields, dict):
        return {}
    return {
        name: spec["enum"]
        for name, spec in fields.items()
        if isinstance(spec, dict) and isinstance(spec.get("enum"), list)
    }
