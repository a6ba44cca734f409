"""
Retrieval evaluation: how often and how high a store's search finds the passages that answer a question.

A case is a question and the places that answer it. A place is a document, narrowed by a heading or by words that stand
in it, so cases stay true when documents are cut another way. A place is found at the rank of its first passage; further
passages of it neither help nor harm. Measures, each per case and then averaged:

- recall@k: share of a case's places among the first k passages;
- MRR: one over the rank of the first right passage, 0 beyond k;
- nDCG@k with gain 1 for each place (Järvelin and Kekäläinen 2002, https://doi.org/10.1145/582415.582418).

Confidence intervals and the comparison of two runs are in statistics.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog.tables import Document, Passage, VectorStore
from ryorin.errors import InvalidInput, RowError
from ryorin_index.statistics import Floats, interval

MEASURES = ("recall", "mrr", "ndcg")
_CASE_KEYS = {"question", "language", "relevant", "drafted"}
_PLACE_KEYS = {"document", "heading", "quote"}


@dataclass(frozen=True)
class Place:
    """
    Where an answer stands.

    document: file name or source. heading: how the last part of the heading path begins, or the whole path.
    quote: words in the passage, white space aside. Empty ones match everything.
    """

    document: str
    heading: str = ""
    quote: str = ""

    def holds(self, source: str, filename: str, heading: str, text: str) -> bool:
        """Whether a passage lies in this place."""
        if self.document not in (filename, source):
            return False
        if self.heading and heading != self.heading and not heading.split(" > ")[-1].startswith(self.heading):
            return False
        return not self.quote or _squeezed(self.quote) in _squeezed(text)


@dataclass(frozen=True)
class Case:
    """A question with the places that answer it. language: 'en', 'ja', … or empty."""

    question: str
    relevant: tuple[Place, ...]
    language: str = ""


@dataclass(frozen=True)
class Judged:
    """A case with the passages of each of its places in one store: `places[i]` are passage ids, never empty."""

    case: Case
    places: tuple[frozenset[int], ...]


@dataclass(frozen=True)
class Scores:
    """Measures of one way to search, by case in the cases' order. Shape of each array: (n_cases,)."""

    recall: Floats
    mrr: Floats
    ndcg: Floats

    def of(self, measure: str) -> Floats:
        """One measure by its name in `MEASURES`."""
        values: Floats = getattr(self, measure)
        return values


def load_cases(path: Path) -> list[Case]:
    """
    Cases from JSONL: {"question", "relevant": [{"document", "heading"?, "quote"?}], "language"?}.

    Raises RowError with the line and the reason, InvalidInput for a file without cases.
    """
    cases = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}", param="cases") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                cases.append(_case(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
                raise RowError(path.name, number, reason) from error
    if not cases:
        raise InvalidInput(f"{path} has no cases; a line is {{'question': …, 'relevant': [{{'document': …}}]}}")
    return cases


def judge(session: Session, store: VectorStore, cases: Sequence[Case]) -> tuple[list[Judged], list[Case]]:
    """The cases with their passages in the store, and those of which a place has no passage in it."""
    passages: dict[str, list[tuple[int, str, str, str, str]]] = {}
    rows = session.execute(
        select(Passage.id, Document.source, Document.filename, Passage.heading, Passage.text)
        .join(Document, Document.id == Passage.document_id)
        .where(Passage.tenant_id == store.tenant_id, Passage.store_id == store.id)
    )
    for row in rows:
        for name in {row.source, row.filename}:
            passages.setdefault(name, []).append((row.id, row.source, row.filename, row.heading, row.text))
    judged, unmatched = [], []
    for case in cases:
        places = tuple(
            frozenset(number for number, *passage in passages.get(place.document, ()) if place.holds(*passage))
            for place in case.relevant
        )
        if all(places):
            judged.append(Judged(case, places))
        else:
            unmatched.append(case)
    return judged, unmatched


def score(cases: Sequence[Judged], rankings: Iterable[Sequence[int]], k: int) -> Scores:
    """The measures at `k` of one ranking of passage ids, best first, for each case."""
    discounts = 1 / np.log2(np.arange(2, k + 2))
    rows = np.zeros((len(cases), len(MEASURES)))
    for number, (case, ranking) in enumerate(zip(cases, rankings, strict=True)):
        ranks = sorted(
            rank for place in case.places if (rank := _first(ranking[:k], place)) is not None
        )  # from 0, one for each place that was found
        # Two places may be found by the same passage: the second counts at the next rank, or a gain would be had twice.
        for at in range(1, len(ranks)):
            ranks[at] = max(ranks[at], ranks[at - 1] + 1)
        ranks = [rank for rank in ranks if rank < k]
        if ranks:
            rows[number] = (
                len(ranks) / len(case.places),
                1 / (ranks[0] + 1),
                discounts[ranks].sum() / discounts[: len(case.places)].sum(),
            )
    return Scores(*rows.T)


def evaluate(
    cases: Sequence[Judged],
    search: Callable[[str, str], Sequence[int]],
    modes: Sequence[str],
    k: int,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Scores]:
    """
    The measures at `k` of every mode.

    search: called with (question, mode), returns passage ids, best first. on_case: told how many searches are done.
    """
    scores, done = {}, 0
    for mode in modes:
        rankings = []
        for judged in cases:
            rankings.append(search(judged.case.question, mode))
            done += 1
            on_case(done, len(cases) * len(modes))
        scores[mode] = score(cases, rankings, k)
    return scores


def summarise(cases: Sequence[Judged], scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """A row for each mode and language, and for all languages ('all'), with the measures as intervals."""
    languages = np.array([judged.case.language or "?" for judged in cases])
    named = sorted(set(languages))
    rows = []
    for language in [*named, "all"] if len(named) > 1 else named:
        chosen = np.ones(len(cases), bool) if language == "all" else languages == language
        for mode, found in scores.items():
            measures = {measure: vars(interval(found.of(measure)[chosen])) for measure in MEASURES}
            rows.append({"language": language, "mode": mode, "cases": int(chosen.sum()), **measures})
    return rows


def _case(row: Any) -> Case:
    if not isinstance(row, dict):
        raise TypeError("it is not an object")
    if unknown := set(row) - _CASE_KEYS:
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}; known are {', '.join(sorted(_CASE_KEYS))}")
    question = row["question"]
    if not isinstance(question, str) or not question.strip():
        raise ValueError("'question' is not a text")
    relevant = row["relevant"]
    if not isinstance(relevant, list) or not relevant:
        raise ValueError("'relevant' is not a list with at least one place")
    for place in relevant:
        if not isinstance(place, dict) or set(place) - _PLACE_KEYS or not place.get("document"):
            raise ValueError("a place is {'document', 'heading'?, 'quote'?}")
        if not all(isinstance(value, str) for value in place.values()):
            raise ValueError("a place holds texts")
    return Case(question, tuple(Place(**place) for place in relevant), str(row.get("language", "")))


def _first(ranking: Sequence[int], place: frozenset[int]) -> int | None:
    return next((rank for rank, passage in enumerate(ranking) if passage in place), None)


def _squeezed(text: str) -> str:
    return "".join(text.split())
