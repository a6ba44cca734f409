"""
What an answer rests on: the document its row names, the words it quotes, the amounts it states.

An answer that cites several passages makes a claim for each: what stands nearest to a marker belongs to it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ryorin.prompt import MARKER, Message
from ryorin_index.evaluate import Place
from ryorin_train.data import Example
from ryorin_train.judging.cases import Expected, plain
from ryorin_train.judging.tone import Spoken
from ryorin_train.lint.grounding import amounts_in, quotes_in
from ryorin_train.lint.turns import Said

TELLING_WIDTH = 20  # columns of a quote that tells its passage by itself; 'at most 30 days' does not


@dataclass(frozen=True)
class Turn:
    """
    One learned answer of a row.

    number: which of the row's learned answers it is, from 0, of `count`. place: of the answer among the messages.
    history: what was said before it.
    """

    row: Example
    number: int
    count: int
    place: int
    history: tuple[Message, ...]

    @property
    def line(self) -> int:
        """The row's line."""
        return self.row.line

    @property
    def answer(self) -> str:
        """What is learned."""
        return self.row.messages[self.place]["content"]

    @property
    def content(self) -> object:
        """What choices are made by: all but its place in the file."""
        return [self.row.content, self.number]

    @property
    def free(self) -> bool:
        """Whether its row says, by an empty list of passages, that it needs no documents."""
        return self.row.passages == ()

    def told(self, answers: Mapping[int, str]) -> Turn:
        """The same with other answers before it, by their places."""
        history = [
            Message(role=message["role"], content=answers.get(place, message["content"]))
            for place, message in enumerate(self.history)
        ]
        return replace(self, history=tuple(history))


@dataclass(frozen=True)
class Claim:
    """
    One passage that an answer needs.

    marker: its number in the answer; None where the answer cites nothing. facts: the words that it must say, each in
    its wordings. attempts: what is expected of it, the surest first; the first that is found in the stores counts.
    """

    marker: int | None
    facts: tuple[tuple[str, ...], ...]
    attempts: tuple[Expected, ...]

    @property
    def telling(self) -> bool:
        """Whether one of its facts is long enough to stand in few passages: more than an amount."""
        return any(_width(fact[0]) >= TELLING_WIDTH for fact in self.facts)


def turns_in(rows: Sequence[Example]) -> list[Turn]:
    """The learned answers of rows, in order."""
    found = []
    for row in rows:
        places = [place for place, learned in enumerate(row.learned) if learned]
        found += [Turn(row, number, len(places), place, row.messages[:place]) for number, place in enumerate(places)]
    return found


def markers_in(answer: str) -> list[int]:
    """The different citation numbers of an answer, in order."""
    return list(dict.fromkeys(int(match[1]) for match in MARKER.finditer(answer)))


def claims_of(turn: Turn, places: Mapping[str, Place]) -> list[Claim] | str:
    """
    The passages that an answer needs, or why that cannot be told.

    places: of the sources that name a document of the stores.
    """
    before = Spoken("\n".join(message["content"] for message in turn.history))
    quotes = _new(quotes_in(Said(turn.answer)), before)
    amounts = _new(amounts_in(turn.answer), before)
    place = places.get(turn.row.source or "")
    markers = markers_in(turn.answer)
    if len(markers) < 2:
        return _named(turn, [_claim(markers[0] if markers else None, quotes, amounts, place)])
    claims = []
    for marker in markers:
        mine = [[text for text in texts if _nearest(turn.answer, text) == marker] for texts in (quotes, amounts)]
        if not any(mine):
            return (
                f"it cites {len(markers)} passages and nothing beside [{marker}] tells which that is; quote the "
                "passage there, or give each answer one citation"
            )
        claims.append(_claim(marker, mine[0], mine[1], place))
    return claims


def _new(texts: Sequence[str], before: Spoken) -> list[str]:
    """The texts that were not said before the answer; all of them where all were, as of a limit that is met exactly."""
    different = list(dict.fromkeys(texts))
    return [text for text in different if not before.says(text)] or different


def _named(turn: Turn, claims: list[Claim]) -> list[Claim] | str:
    if claims[0].attempts:
        return claims
    if turn.row.source is None:
        return "it names no source and its answer quotes nothing, so its passage cannot be told; give the row a source"
    return (
        f"the stores have no document {turn.row.source!r}, and the answer quotes nothing by which its passage could be "
        "found"
    )


def _claim(marker: int | None, quotes: Sequence[str], amounts: Sequence[str], place: Place | None) -> Claim:
    facts = tuple(_wordings(text) for text in quotes or amounts)
    attempts: tuple[Expected, ...]
    if place is None:
        attempts = (Expected(facts=facts),) if facts else ()
    elif quotes:
        attempts = (Expected(facts=facts, documents=(place,)),)
    else:  # an amount may have been computed; then the document is all there is
        bare = Expected(documents=(place,))
        attempts = (Expected(facts=facts, documents=(place,)), bare) if facts else (bare,)
    return Claim(marker, facts, attempts)


def _width(text: str) -> int:
    """Its columns on a terminal: a Japanese letter says about as much as two Latin ones."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _wordings(text: str) -> tuple[str, ...]:
    bare = text.rstrip(".。")
    return (text,) if bare == text or not bare else (text, bare)


def _nearest(answer: str, text: str) -> int | None:
    """The marker that stands nearest to a text of the answer; the one behind it where two are as near."""
    at = -1
    for form in (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]):
        if at < 0:
            at, length = answer.find(form), len(form)
    if at < 0:  # written in another width
        wide = plain(answer)
        return _nearest(wide, text) if wide != answer else None

    def distance(start: int, end: int) -> int:
        return max(start - (at + length), at - end, 0) * 2 + (start < at)

    return min(((distance(*match.span()), int(match[1])) for match in MARKER.finditer(answer)), default=(0, None))[1]
