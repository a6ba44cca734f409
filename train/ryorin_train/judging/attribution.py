"""
Why an answer is wrong: knowledge, retrieval or behaviour. The loop that follows failures in the log uses it too.

- knowledge: the passage that answers is not in the release's stores: no such document, or one that does not say it.
- retrieval: it is in a store, and was not in the prompt: not found, or not among those that went in.
- behaviour: it was in the prompt, or none was needed, and the answer is wrong all the same.
- unclear: the case does not say which passage it needs, or nobody knows what was in the prompt.

A needed passage lies in an expected document, narrowed by its heading and quote where the case gives them, else by the
expected facts: of a document in which no passage states a fact, the passage that answers is missing. Without expected
documents it is any passage that states all facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from sqlalchemy import or_, select

from ryorin.catalog.tables import Document, Passage
from ryorin_index.context import widen
from ryorin_index.search import CONTEXT_TOKENS
from ryorin_train.judging.cases import Case, Expected
from ryorin_train.judging.grade import Grade
from ryorin_train.judging.tone import Spoken

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Cause = Literal["knowledge", "retrieval", "behaviour", "unclear"]
CAUSES: tuple[Cause, ...] = ("knowledge", "retrieval", "behaviour", "unclear")


@dataclass(frozen=True)
class Needed:
    """
    The passages that a case needs in its prompt.

    places: for each thing that is needed the passages that hold it, one of which is enough; none when the case needs
    no passage. missing: what no passage holds, in words. known: whether the case says what it needs.
    """

    places: tuple[frozenset[int], ...] = ()
    missing: tuple[str, ...] = ()
    known: bool = True


@dataclass(frozen=True)
class Given:
    """What a prompt held: ids of its passages, with those that lie in their surroundings, and all of its text."""

    ids: frozenset[int]
    text: str


@dataclass(frozen=True)
class Attribution:
    """The cause of a failure, and why it is that one, in words."""

    cause: Cause
    reason: str


@dataclass(frozen=True)
class _Row:
    id: int
    source: str
    filename: str
    heading: str
    text: str

    @cached_property
    def spoken(self) -> Spoken:
        """The text, ready for many facts."""
        return Spoken(self.text)


def attribute(grade: Grade, needed: Needed, given: Given | None) -> Attribution | None:
    """
    The cause of a wrong answer; None when it is right.

    given: what the prompt held; None when that is not known.
    """
    if grade.right:
        return None
    wrong = ", ".join(name for name in grade.wrong() if name != "tone")
    if needed.missing:
        return Attribution("knowledge", "; ".join(needed.missing))
    if not needed.known:
        return Attribution("unclear", f"{wrong} wrong; the case names neither documents nor facts")
    if not needed.places:
        return Attribution("behaviour", f"{wrong} wrong; no passage is needed for it")
    if given is None:
        return Attribution("unclear", f"{wrong} wrong; the log does not say which passages were in the prompt")
    absent = [place for place in needed.places if not place & given.ids]
    if absent:
        which = (
            "the needed passage"
            if len(needed.places) == 1
            else f"{len(absent)} of {len(needed.places)} needed passages"
        )
        return Attribution("retrieval", f"in the store and not in the prompt: {which}")
    return Attribution("behaviour", f"{wrong} wrong with the needed passage in the prompt")


def needed_passages(session: Session, tenant_id: str, store_ids: Sequence[str], cases: Sequence[Case]) -> list[Needed]:
    """What each case needs, among the tenant's passages in these stores as they are now."""
    everything = any(case.expected.facts and not case.expected.documents for case in cases)
    names = {place.document for case in cases for place in case.expected.documents or ()}
    query = (
        select(Passage.id, Document.source, Document.filename, Passage.heading, Passage.text)
        .join(Document, Document.id == Passage.document_id)
        .where(Passage.tenant_id == tenant_id, Passage.store_id.in_(store_ids))
    )
    if not everything:
        query = query.where(or_(Document.source.in_(names), Document.filename.in_(names)))
    rows = [_Row(*row) for row in session.execute(query)] if store_ids and (everything or names) else []
    by_name: dict[str, list[_Row]] = {}
    for row in rows:
        for name in {row.source, row.filename}:
            by_name.setdefault(name, []).append(row)
    return [_needed(case.expected, rows, by_name) for case in cases]


def given_passages(session: Session, tenant_id: str, passage_ids: Sequence[int], context: str) -> Given:
    """
    What a prompt with these passages held. context: of the release's retrieval: 'passage', 'neighbours' or 'section'.

    As the store is now: a passage that was deleted since is left out.
    """
    mine = select(Passage).where(Passage.tenant_id == tenant_id)
    hits = session.scalars(mine.where(Passage.id.in_(passage_ids))).all()
    if context not in ("neighbours", "section"):
        return Given(frozenset(hit.id for hit in hits), "\n".join(hit.text for hit in hits))
    spans = widen(session, tenant_id, passage_ids, "section" if context == "section" else "neighbours", CONTEXT_TOKENS)
    ids: set[int] = set()
    for hit in hits:
        start, end, _ = spans[hit.id]
        inside = select(Passage.id).where(
            Passage.tenant_id == tenant_id,
            Passage.document_id == hit.document_id,
            Passage.start >= start,
            Passage.end <= end,
        )
        ids.update(session.scalars(inside))
    return Given(frozenset(ids), "\n".join(text for _, _, text in spans.values()))


def _needed(expected: Expected, rows: Sequence[_Row], by_name: Mapping[str, list[_Row]]) -> Needed:
    if expected.refuse:
        return Needed()
    facts = expected.facts or ()
    if not expected.documents:
        if not facts:
            return Needed(known=expected.documents is not None)
        stating = _stating(rows, facts)
        if not stating:
            return Needed(missing=(f"no passage states {_quoted(facts)}",))
        return Needed((frozenset(stating),))
    found, missing = [], []
    for place in expected.documents:
        document = by_name.get(place.document, [])
        narrowed = [row for row in document if place.holds(row.source, row.filename, row.heading, row.text)]
        if not document:
            missing.append(f"{place.document} is not in the store")
        elif not narrowed:
            missing.append(f"{place.document} is in the store without the place that the case names")
        elif not place.quote and facts:
            # The facts may be spread over the documents: here count the passages that state any of them.
            stating = [row.id for row in narrowed if any(_states(row, fact) for fact in facts)]
            found.append(frozenset(stating or (row.id for row in narrowed)))
        else:
            found.append(frozenset(row.id for row in narrowed))
    if not missing and not any(place.quote for place in expected.documents):
        everything = [row for place in expected.documents for row in by_name[place.document]]
        names = ", ".join(dict.fromkeys(place.document for place in expected.documents))
        missing = [
            f"{names} does not state {_quoted([fact])}"
            for fact in facts
            if not any(_states(row, fact) for row in everything)
        ]
    return Needed(tuple(found), tuple(missing))


def _stating(rows: Iterable[_Row], facts: Sequence[tuple[str, ...]]) -> list[int]:
    return [row.id for row in rows if all(_states(row, fact) for fact in facts)]


def _states(row: _Row, fact: Sequence[str]) -> bool:
    return any(row.spoken.says(wording) for wording in fact)


def _quoted(facts: Sequence[tuple[str, ...]]) -> str:
    return " and ".join(repr(fact[0]) for fact in facts)
