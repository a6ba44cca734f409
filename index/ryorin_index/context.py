"""
More of the text around passages that were found: what stands before and after them in their document.

A passage is short so that it is found; what a model reads may be longer. The text comes from the document by offsets,
so what two passages share stands in it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog.tables import Passage
from ryorin_index.texts import read_text

NEIGHBOURS = 1
Mode = Literal["neighbours", "section"]


@dataclass
class _Span:
    document_id: str
    start: int
    end: int
    passage_ids: list[int]


def widen(
    session: Session, tenant_id: str, passage_ids: Sequence[int], mode: Mode, max_tokens: int, around: int = NEIGHBOURS
) -> dict[int, tuple[int, int, str]]:
    """
    For each passage of the tenant the text around it: passage id → (start, end, text), offsets in its document's text.

    mode: 'neighbours' takes `around` passages before and after it, 'section' those of its heading path and page that
    follow each other. Both stay in the document and take no more than `max_tokens` of the embedder's tokens, the
    nearest first; the passage itself is always whole. Spans that overlap become one, which all their passages share.
    A passage that is gone is left out.
    """
    hits = session.scalars(select(Passage).where(Passage.tenant_id == tenant_id, Passage.id.in_(passage_ids))).all()
    spans = []
    for document_id in dict.fromkeys(hit.document_id for hit in hits):
        mine = [hit for hit in hits if hit.document_id == document_id]
        rows = _rows(session, tenant_id, document_id, mine, mode, around)
        spans += _merged([_grown(rows, hit, mode, max_tokens, around) for hit in mine])
    found: dict[int, tuple[int, int, str]] = {}
    for span in spans:
        if text := read_text(session, tenant_id, span.document_id)[span.start : span.end]:
            found.update((passage_id, (span.start, span.end, text)) for passage_id in span.passage_ids)
    return found


def _rows(
    session: Session, tenant_id: str, document_id: str, hits: Sequence[Passage], mode: Mode, around: int
) -> dict[int, Any]:
    """The passages of a document that may be taken: ordinal → row."""
    query = select(Passage.ordinal, Passage.start, Passage.end, Passage.tokens, Passage.heading, Passage.page).where(
        Passage.tenant_id == tenant_id, Passage.document_id == document_id
    )
    if mode == "section":
        query = query.where(Passage.heading.in_({hit.heading for hit in hits}))
    else:
        wanted = {hit.ordinal + step for hit in hits for step in range(-around, around + 1)}
        query = query.where(Passage.ordinal.in_(wanted))
    return {row.ordinal: row for row in session.execute(query)}


def _grown(rows: dict[int, Any], hit: Passage, mode: Mode, max_tokens: int, around: int) -> _Span:
    """The span of a passage and what is taken of its neighbours, by turns after it and before it."""
    first = last = hit.ordinal
    left = max_tokens - hit.tokens
    directions = [1, -1]
    while directions:
        direction = directions.pop(0)
        row = rows.get(last + 1 if direction > 0 else first - 1)
        if row is None or row.tokens > left:
            continue
        if mode == "section" and (row.heading, row.page) != (hit.heading, hit.page):
            continue
        if mode == "neighbours" and abs(row.ordinal - hit.ordinal) > around:
            continue
        left -= row.tokens
        first, last = min(first, row.ordinal), max(last, row.ordinal)
        directions.append(direction)
    start = rows[first].start if first in rows else hit.start
    end = rows[last].end if last in rows else hit.end
    return _Span(hit.document_id, start, end, [hit.id])


def _merged(spans: Sequence[_Span]) -> list[_Span]:
    """The spans of one document; those that overlap as one."""
    found: list[_Span] = []
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        if found and span.start < found[-1].end:
            found[-1].end = max(found[-1].end, span.end)
            found[-1].passage_ids += span.passage_ids
        else:
            found.append(span)
    return found
