"""The passages of the stores that hold what an answer rests on, and those that say the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import or_, select

from ryorin.catalog.tables import Document, Passage
from ryorin_index.evaluate import Place
from ryorin_index.folds import folded_text
from ryorin_train.ground.claims import Claim, Turn, claims_of
from ryorin_train.judging.attribution import Needed, needed_passages
from ryorin_train.judging.cases import Case, Expected
from ryorin_train.judging.tone import Spoken

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ryorin_index.search import Hit

LOOKUP_BATCH = 500  # parameters of one statement


@dataclass(frozen=True)
class Stored:
    """A passage as it is stored. filename: its document's."""

    id: int
    document_id: str
    filename: str
    fold_key: str
    text: str

    @cached_property
    def folded(self) -> str:
        """Its text as copies are told by."""
        return folded_text(self.text)


@dataclass(frozen=True)
class Right:
    """
    The passages that meet a claim, one of which is enough, and those of other documents that say the same.

    by_source: whether the row's source names their document.
    """

    claim: Claim
    passages: tuple[Stored, ...]
    copies: tuple[Stored, ...]
    by_source: bool

    @cached_property
    def ids(self) -> frozenset[int]:
        """Of the passages and their copies."""
        return frozenset(passage.id for passage in (*self.passages, *self.copies))

    @property
    def documents(self) -> dict[str, str]:
        """The documents of its passages: id → file name."""
        return {passage.document_id: passage.filename for passage in self.passages}

    def held_by(self, hit: Hit) -> bool:
        """Whether a hit is one of the passages, or has one in its surroundings."""
        if hit.passage_id in self.ids:
            return True
        around = hit.context
        return around is not None and any(
            passage.document_id == hit.document_id and passage.text in around
            for passage in (*self.passages, *self.copies)
        )

    def said_by(self, hit: Hit) -> bool:
        """Whether a hit tells what the passages tell: it holds the text of one, or all that the answer quotes."""
        text = hit.prompt_passage.text
        folded = folded_text(text)
        if any(passage.folded and passage.folded in folded for passage in self.passages):
            return True
        spoken = Spoken(text)
        facts = self.claim.facts
        return bool(facts) and all(any(spoken.says(wording) for wording in fact) for fact in facts)

    def of_document(self, document_id: str) -> Right:
        """The same in one document; its copies in others stay copies."""
        mine = tuple(passage for passage in self.passages if passage.document_id == document_id)
        keys = {passage.fold_key for passage in mine} - {""}
        others = tuple(
            passage
            for passage in (*self.passages, *self.copies)
            if passage.document_id != document_id and passage.fold_key in keys
        )
        return Right(self.claim, mine, others, self.by_source)


def find_right(
    session: Session, tenant_id: str, store_ids: Sequence[str], turns: Sequence[Turn]
) -> list[list[Right] | str]:
    """For each answer the passages it needs, a `Right` for each claim; or, in words, why it cannot be told."""
    places = _named_documents(session, tenant_id, store_ids, turns)
    claims = [claims_of(turn, places) for turn in turns]
    cases = [
        Case(turn.line, turn.history, attempt)
        for turn, made in zip(turns, claims, strict=True)
        if not isinstance(made, str)
        for claim in made
        for attempt in claim.attempts
    ]
    needed = iter(needed_passages(session, tenant_id, store_ids, cases))
    chosen: list[list[tuple[Claim, Expected, Needed]] | str] = []
    for turn, made in zip(turns, claims, strict=True):
        if isinstance(made, str):
            chosen.append(made)
            continue
        met: list[tuple[Claim, Expected, Needed]] = []
        reasons: list[str] = []
        for claim in made:
            tried = [(claim, attempt, next(needed)) for attempt in claim.attempts]
            meeting = [each for each in tried if not each[2].missing]
            met += meeting[:1]
            reasons += [] if meeting else tried[0][2].missing
        if reasons and turn.row.source is not None and turn.row.source not in places:
            reasons.insert(0, f"the stores have no document {turn.row.source!r}")
        chosen.append("; ".join(reasons) or met)
    ids = {number for each in chosen if not isinstance(each, str) for _, _, one in each for number in _of(one)}
    stored = _stored(session, tenant_id, store_ids, Passage.id, ids)
    keys = {passage.fold_key for passage in stored.values()} - {""}
    alike: dict[str, list[Stored]] = {}
    for passage in _stored(session, tenant_id, store_ids, Passage.fold_key, keys).values():
        alike.setdefault(passage.fold_key, []).append(passage)
    return [each if isinstance(each, str) else [_right(*one, stored, alike) for one in each] for each in chosen]


def passages_of_documents(session: Session, tenant_id: str, document_ids: Iterable[str]) -> set[int]:
    """The ids of all passages of documents."""
    query = select(Passage.id).where(Passage.tenant_id == tenant_id, Passage.document_id.in_(list(document_ids)))
    return set(session.scalars(query))


def _named_documents(
    session: Session, tenant_id: str, store_ids: Sequence[str], turns: Sequence[Turn]
) -> dict[str, Place]:
    """The sources that name a document, by its source, its file name, or a title that no other document has."""
    names = {turn.row.source for turn in turns if turn.row.source is not None}
    query = select(Document.source, Document.filename, Document.title).where(
        Document.tenant_id == tenant_id, Document.store_id.in_(store_ids)
    )
    found: dict[str, Place] = {}
    titled: dict[str, list[str]] = {}
    for batch in _batches(sorted(names)):
        named = or_(Document.source.in_(batch), Document.filename.in_(batch), Document.title.in_(batch))
        for source, filename, title in session.execute(query.where(named)):
            found.update({name: Place(name) for name in (source, filename) if name in names})
            titled.setdefault(title, []).append(source)
    return {name: Place(sources[0]) for name, sources in titled.items() if name in names and len(sources) == 1} | found


def _right(
    claim: Claim, expected: Expected, needed: Needed, stored: Mapping[int, Stored], alike: Mapping[str, list[Stored]]
) -> Right:
    passages = tuple(stored[number] for number in sorted(_of(needed)) if number in stored)
    mine = {passage.id for passage in passages}
    keys = dict.fromkeys(passage.fold_key for passage in passages if passage.fold_key)
    copies = tuple(copy for key in keys for copy in alike[key] if copy.id not in mine)
    return Right(claim, passages, copies, expected.documents is not None)


def _of(needed: Needed) -> frozenset[int]:
    """The passages of what an attempt needs: each expects one document or one passage."""
    return needed.places[0] if needed.places else frozenset()


def _stored(
    session: Session, tenant_id: str, store_ids: Sequence[str], column: Any, values: Iterable[Any]
) -> dict[int, Stored]:
    """The passages of which a column has one of these values, by their ids."""
    found = {}
    for batch in _batches(sorted(values)):
        rows = session.execute(
            select(Passage.id, Passage.document_id, Document.filename, Passage.fold_key, Passage.text)
            .join(Document, Document.id == Passage.document_id)
            .where(Passage.tenant_id == tenant_id, Passage.store_id.in_(store_ids), column.in_(batch))
        )
        found.update({row.id: Stored(*row) for row in rows})
    return found


def _batches(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (values[at : at + LOOKUP_BATCH] for at in range(0, len(values), LOOKUP_BATCH))
