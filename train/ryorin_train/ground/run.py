"""
Grounding a dataset: every learned answer becomes a row with the passages of its question, as it would be served.

A conversation of several learned answers becomes as many rows, since each was asked with passages of its own; what was
answered before stands in it as it was right to answer, and is not learned again. What cannot be grounded is told with
its line and the reason, and left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ryorin.catalog import Catalog
from ryorin.digests import SHORT, digest_of
from ryorin.errors import InvalidInput, RowError
from ryorin_index.retrieve import query_of
from ryorin_index.search import Searcher
from ryorin_train.data import Example, Row, raise_all
from ryorin_train.ground.citations import citing_fields
from ryorin_train.ground.claims import Turn, turns_in
from ryorin_train.ground.regime import Refusals, Regime
from ryorin_train.ground.rows import Grounder, Made, Unusable
from ryorin_train.ground.shares import KINDS, Kind, Shares
from ryorin_train.ground.stored import Right, find_right

FORESEEN = 256  # questions embedded in one call


@dataclass
class Report:
    """
    What became of the rows.

    rows, answers: that came in. made: rows by kind. as_they_are: answers that refuse or need no documents, which were
    kept. retrieved, put_in: right passages that retrieval found, and that it missed. by_source: answers whose passage
    was told by their row's source. nothing_else: rows of wrong passages for which nothing was found. citations: answers
    whose markers were moved, that were given one, that cite nothing. left_out: (line, reason).
    """

    rows: int = 0
    answers: int = 0
    made: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(KINDS, 0)))
    as_they_are: Counter[str] = field(default_factory=lambda: Counter(refusing=0, free=0))
    retrieved: int = 0
    put_in: int = 0
    by_source: int = 0
    nothing_else: int = 0
    citations: Counter[str] = field(default_factory=lambda: Counter(cited=0, placed=0, uncited=0))
    left_out: list[tuple[int, str]] = field(default_factory=list)

    @property
    def rows_out(self) -> int:
        """Rows that were made."""
        return sum(self.made.values()) + sum(self.as_they_are.values())

    def as_json(self) -> dict[str, Any]:
        """As a dataset's lineage keeps it."""
        return {
            "rows_in": self.rows,
            "answers_in": self.answers,
            "rows_out": self.rows_out,
            "made": dict(self.made),
            "as_they_are": dict(self.as_they_are),
            "right_passages": {"retrieved": self.retrieved, "put_in": self.put_in},
            "by_source": self.by_source,
            "wrong_found_nothing": self.nothing_else,
            "citations": dict(self.citations),
            "left_out": [{"line": line, "reason": reason} for line, reason in self.left_out],
        }


def ground(
    catalog: Catalog,
    searcher: Searcher,
    regime: Regime,
    name: str,
    rows: Sequence[Row],
    shares: Shares,
    refusals: Refusals | None,
    seed: int,
    on_answer: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Example], Report]:
    """
    The grounded rows in the order of the answers, and what became of them.

    name: of the data, for errors. refusals: None where the shares ask for none. on_answer: told how many of all answers
    are done. Raises RowErrors for rows that have passages already, InvalidInput for preferences and missing refusals.
    """
    examples = _examples(name, rows)
    if shares.refusing and refusals is None:
        raise InvalidInput(
            f"{shares.refusing:.0%} of the rows are to have no right passage: say with --refusal what is then answered "
            "(text, or @FILE), or take --right 1 --wrong 0 --none 0",
            param="refusal",
        )
    turns = turns_in(examples)
    with catalog.reading() as session:
        rights = find_right(session, regime.tenant_id, regime.store_ids, turns)
    fields = citing_fields((turn.answer for turn in turns), regime.prompt)
    grounder = Grounder(catalog, searcher, regime, refusals or Refusals({}), fields, seed)
    report = Report(rows=len(rows), answers=len(turns))
    made: list[Example] = []
    earlier: dict[int, str] = {}  # of the row at hand: place of an answer → how it was right to answer
    for done, (turn, right) in enumerate(_foreseen(searcher, regime, turns, rights), start=1):
        if turn.number == 0:
            earlier = {}
        turn = turn.told(earlier)
        kind = shares.kind_of(turn.content, seed)
        try:
            row = _row(grounder, turn, right, kind, report)
        except (Unusable, InvalidInput) as error:
            report.left_out.append((turn.line, str(error)))
        else:
            made.append(_example(turn, row, len(made) + 1))
            if turn.number + 1 < turn.count:
                earlier[turn.place] = _right_answer(grounder, turn, right, row)
        on_answer(done, len(turns))
    return made, report


def _examples(name: str, rows: Sequence[Row]) -> list[Example]:
    """The rows, all without passages."""
    examples = [row for row in rows if isinstance(row, Example)]
    if len(examples) < len(rows):
        raise InvalidInput(f"{name} holds preferences; questions with their right answers are grounded", param="data")
    raise_all(
        [
            RowError(name, row.line, "it has passages already; ground the rows without them, or train on it as it is")
            for row in examples
            if row.passages
        ]
    )
    return examples


def _foreseen(
    searcher: Searcher, regime: Regime, turns: Sequence[Turn], rights: Sequence[list[Right] | str]
) -> Iterator[tuple[Turn, list[Right] | str]]:
    """The answers with their right passages, their questions embedded many at a time."""
    for at in range(0, len(turns), FORESEEN):
        batch = turns[at : at + FORESEEN]
        queries = list(dict.fromkeys(query for turn in batch if (query := query_of(turn.history))))
        if queries:
            searcher.foresee(regime.tenant_id, regime.store_ids, queries)
        yield from zip(batch, rights[at : at + FORESEEN], strict=True)


def _row(grounder: Grounder, turn: Turn, right: list[Right] | str, kind: Kind, report: Report) -> Made:
    """The row of one answer, counted. Raises Unusable."""
    if not query_of(turn.history):
        raise Unusable("no question of a user stands before the answer")
    if turn.free or grounder.refuses(turn):
        made = grounder.as_found(turn, kind)
        report.as_they_are["free" if turn.free else "refusing"] += 1
        return made
    if isinstance(right, str):
        raise Unusable(right)
    if kind == "right":
        made = grounder.right(turn, right)
        report.put_in += made.put_in
        report.retrieved += len(right) - made.put_in
        report.citations[made.cited or "uncited"] += 1
    elif kind == "wrong":
        made = grounder.wrong(turn, right)
        report.nothing_else += not made.passages
    else:
        made = grounder.none(turn)
    report.made[kind] += 1
    report.by_source += all(each.by_source for each in right)
    return made


def _right_answer(grounder: Grounder, turn: Turn, right: list[Right] | str, row: Made) -> str:
    """How it was right to answer, with the citations it was served with: what a conversation goes on from."""
    if row.cited is not None or isinstance(right, str) or turn.free or grounder.refuses(turn):
        return row.answer
    try:
        return grounder.right(turn, right).answer
    except Unusable:
        return turn.answer


def _example(turn: Turn, made: Made, line: int) -> Example:
    """The row; its answer alone is learned. Rows of one conversation have one source, so that no split parts them."""
    source = turn.row.source
    if source is None and turn.count > 1:
        source = f"conversation {digest_of(turn.row.content)[:SHORT]}"
    messages = (*turn.history, {"role": "assistant", "content": made.answer})
    return Example(line, messages, (*[False] * len(turn.history), True), made.passages, source)  # type: ignore[arg-type]
