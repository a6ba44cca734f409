"""
From the grades of all cases to figures: shares and means with intervals, the confusion of decisions, two releases.

A value is a number for each case, NaN where the case does not ask for it, so that two releases can be paired case by
case. `right` is the one that counts first; with twenty others beside it, a p of 0.05 on one of those is no finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ryorin_index.statistics import Floats, compare, compare_shares, interval, ratio, share
from ryorin_train.judging.cases import Case
from ryorin_train.judging.grade import Answer, Grade

Kind = Literal["share", "rate", "mean"]
NO_DECISION = "(none)"


@dataclass(frozen=True)
class Judged:
    """
    One case with its answer and grade.

    agreement: share of pairs, among several answers at the served temperature, that say the same; None when not asked.
    rewording: share of paraphrases that were answered as the case itself; None when there are none.
    """

    case: Case
    answer: Answer
    grade: Grade
    agreement: float | None = None
    rewording: float | None = None


@dataclass(frozen=True)
class Measure:
    """
    A number for each case. kind: a share of right answers (0 or 1 a case), a rate (0 to 1 a case), or a mean of what
    else there is. better: 'high', 'low', or ''.

    value: None for a case that it says nothing of. digits: behind the point, of means.
    """

    name: str
    label: str
    kind: Kind
    better: str
    value: Callable[[Judged], float | None] = field(repr=False)
    unit: str = ""
    digits: int = 2


def _verdict(name: str) -> Callable[[Judged], float | None]:
    def value(judged: Judged) -> float | None:
        verdict = getattr(judged.grade, name)
        return None if verdict is None else float(verdict)

    return value


def _japanese(value: Callable[[Judged], float | None]) -> Callable[[Judged], float | None]:
    return lambda judged: value(judged) if judged.case.language == "ja" else None


def _honorifics(judged: Judged) -> float | None:
    heard = judged.grade.heard
    return heard.honorifics / heard.sentences if heard.sentences else None


MEASURES = (
    Measure("right", "all that is expected right", "share", "high", _verdict("right")),
    Measure("format", "format valid", "share", "high", _verdict("format")),
    Measure("decision", "decision right", "share", "high", _verdict("decision")),
    Measure("facts", "facts stated", "share", "high", _verdict("facts")),
    Measure("citations", "right documents cited", "share", "high", _verdict("citations")),
    Measure("refusal", "refuses exactly when it should", "share", "high", _verdict("refusal")),
    Measure("tone", "tone kept", "share", "high", _verdict("tone")),
    Measure("consistency", "same answer when asked again", "rate", "high", lambda one: one.agreement),
    Measure("paraphrases", "same answer in other words", "rate", "high", lambda one: one.rewording),
    Measure("hedging", "answers that hedge", "share", "low", lambda one: float(bool(one.grade.heard.hedges))),
    Measure("polite", "sentences in です・ます", "rate", "", _japanese(lambda one: one.grade.heard.polite_share)),
    Measure("honorifics", "sentences with 敬語", "rate", "", _japanese(_honorifics)),
    Measure(
        "doubled", "answers with 二重敬語", "share", "low", _japanese(lambda one: float(bool(one.grade.heard.doubled)))
    ),
    Measure("reading_grade", "reading grade (English)", "mean", "", lambda one: one.grade.heard.grade, digits=1),
    Measure("characters", "length", "mean", "", lambda one: float(one.grade.heard.characters), "characters", 0),
    Measure("latency", "time to the whole answer", "mean", "low", lambda one: one.answer.total_ms / 1000 or None, "s"),
)


def values(measure: Measure, judged: Sequence[Judged]) -> Floats:
    """One number for each case, NaN where there is none. Shape: (n_cases,)."""
    found = (measure.value(one) for one in judged)
    return np.array([np.nan if value is None else value for value in found], float)


def figures(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The figures of one release: measures that some case asks for, then precision and recall of refusal."""
    rows = []
    for measure in MEASURES:
        found = values(measure, judged)
        known = found[~np.isnan(found)]
        if len(known):
            mean = interval(known) if measure.kind == "mean" else share(known)
            rows.append(_row(measure.name, measure.label, measure.kind, len(known), measure.unit, measure.digits, mean))
    should = np.array([one.case.expected.refuse for one in judged], float)
    does = np.array([one.grade.refused for one in judged], float)
    for name, label, wholes in (
        ("refusal_precision", "refusals that are right", does),
        ("refusal_recall", "questions to refuse that are", should),
    ):
        if wholes.sum():
            rows.append(_row(name, label, "share", int(wholes.sum()), "", 2, ratio(should * does, wholes)))
    return rows


def comparison(ours: Sequence[Judged], theirs: Sequence[Judged]) -> list[dict[str, Any]]:
    """Ours minus theirs on the same cases: exact McNemar for shares, paired bootstrap and sign flips for means."""
    rows = []
    for measure in MEASURES:
        one, other = values(measure, ours), values(measure, theirs)
        both = ~np.isnan(one) & ~np.isnan(other)
        if both.any():
            test = compare_shares if measure.kind == "share" else compare
            found = test(one[both], other[both])
            rows.append(
                {
                    "name": measure.name,
                    "label": measure.label,
                    "kind": measure.kind,
                    "test": "McNemar, exact" if measure.kind == "share" else "sign flips",
                    "better": measure.better,
                    "unit": measure.unit,
                    "digits": measure.digits,
                    "cases": int(both.sum()),
                    **{
                        ("wins" if name == "better" else "losses" if name == "worse" else name): value
                        for name, value in found.items()
                    },
                }
            )
    return rows


def confusion(judged: Sequence[Judged]) -> dict[str, Any] | None:
    """How often each expected decision got which: labels and counts by row; None when no case expects a decision."""
    pairs = Counter(
        (one.case.expected.decision, one.grade.said or NO_DECISION)
        for one in judged
        if one.case.expected.decision is not None
    )
    if not pairs:
        return None
    expected = sorted({str(pair[0]) for pair in pairs})
    said = [*expected, *sorted({pair[1] for pair in pairs} - set(expected))]
    return {"expected": expected, "said": said, "counts": [[pairs[row, column] for column in said] for row in expected]}


def groups(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The share that is right by language and by tag, where there are several."""
    rows = []
    languages = sorted({one.case.language for one in judged})
    tags = sorted({tag for one in judged for tag in one.case.tags})
    chosen: list[tuple[str, str, Callable[[Case], bool]]] = []
    if len(languages) > 1:
        chosen += [("language", name, lambda case, name=name: case.language == name) for name in languages]  # type: ignore[misc]
    chosen += [("tag", name, lambda case, name=name: name in case.tags) for name in tags]  # type: ignore[misc]
    for kind, name, belongs in chosen:
        right = np.array([one.grade.right for one in judged if belongs(one.case)], float)
        rows.append({"by": kind, "name": name, "cases": len(right), **share(right).as_json()})
    return rows


def latency(judged: Sequence[Judged]) -> dict[str, float] | None:
    """Median and 95th percentile of the time to the whole answer, seconds."""
    times = [one.answer.total_ms / 1000 for one in judged if one.answer.total_ms]
    if not times:
        return None
    median, late = np.quantile(times, [0.5, 0.95])
    return {"median_s": round(float(median), 3), "p95_s": round(float(late), 3)}


def _row(name: str, label: str, kind: str, cases: int, unit: str, digits: int, found: Any) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "kind": kind,
        "cases": cases,
        "unit": unit,
        "digits": digits,
        **found.as_json(),
    }
