"""
Filling passages with sentences: as many as fit, cut where the text parts best, with exact offsets.

A piece ends before the strongest place to cut in its last half (a paragraph before an item, an item before a sentence).
What is too long for a piece is cut within: at brackets' sentences, line ends, clauses, words, and at last at tokens.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from ryorin_index.chunking import Chunking
from ryorin_index.counting import TokenCounter
from ryorin_index.sentences import Cut, Strength, find_cuts, finer_cuts, whole_letter

# Some tokenizers take a word of any length for one unknown token; what is embedded and quoted is to end all the same.
CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Piece:
    """A part of a text, white space around it left out. tokens: of its text by itself."""

    start: int
    end: int
    tokens: int


def pack(text: str, start: int, end: int, chunking: Chunking, counter: TokenCounter) -> list[Piece]:
    """
    text[start:end] as pieces in order, each of `chunking.max_tokens` at most; nothing but white space is left out.

    Linear in the text's length, but for the choice among cuts, which is linear in those of one piece.
    """
    part = _Part(text, (counter.starts(text[start:end]) + start).tolist())
    spans = part.pieces(start, end, chunking.max_tokens, chunking.overlap_tokens)
    return _checked(part, spans, chunking.max_tokens, chunking.max_tokens, counter)


def pack_evenly(text: str, limit: int, counter: TokenCounter) -> list[Piece]:
    """A whole text as pieces of about the same number of tokens, `limit` at most, without overlap."""
    starts = counter.starts(text).tolist()
    part, tokens = _Part(text, starts), len(starts)
    budget = min(limit, -(-tokens // max(1, -(-tokens // limit))) * 5 // 4)
    return _checked(part, part.pieces(0, len(text), max(1, budget), 0), limit, max(1, budget), counter)


def longest_characters(max_tokens: int) -> int:
    """How many characters a passage of so many tokens has at most."""
    return max_tokens * CHARACTERS_PER_TOKEN


def strip_span(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the white space around it; an empty one when there is nothing else."""
    part = text[start:end]
    first = start + len(part) - len(part.lstrip())
    return first, max(first, start + len(part.rstrip()))


def _checked(
    part: _Part, spans: Sequence[tuple[int, int]], limit: int, budget: int, counter: TokenCounter
) -> list[Piece]:
    """
    The pieces with their tokens counted by themselves.

    That can be more than they had within the text, where a cut parted what was one token: such a piece is cut again.
    """
    found: list[Piece] = []
    for (start, end), tokens in zip(spans, counter.counts([part.text[at:to] for at, to in spans]), strict=True):
        if tokens <= limit or end - start == 1 or budget == 1:
            found.append(Piece(start, end, tokens))
        else:
            smaller = max(1, budget - (tokens - limit))
            found += _checked(part, part.pieces(start, end, smaller, 0), limit, smaller, counter)
    return found


class _Part:
    """A text of which the tokens' starts are known."""

    def __init__(self, text: str, starts: list[int]) -> None:
        self.text = text
        self._starts = starts

    def pieces(self, start: int, end: int, budget: int, overlap: int) -> list[tuple[int, int]]:
        """Spans of text[start:end] of `budget` tokens at most, sharing whole sentences of `overlap` tokens at most."""
        cuts = self._fine_cuts(start, end, budget)
        places = [at for at, _ in cuts] + [end]
        tokens = [bisect_left(self._starts, at) for at in places]
        found = []
        begin = done = 0
        while done < len(cuts):
            last = min(
                bisect_right(tokens, tokens[begin] + budget),
                bisect_right(places, places[begin] + longest_characters(budget)),
            )
            last = max(last - 1, done + 1)
            if last < len(cuts):
                half = bisect_left(tokens, tokens[begin] + budget // 2, done + 1, last)
                last = max(range(half, last + 1), key=lambda at: (cuts[at][1], at))
            span = strip_span(self.text, places[begin], places[last])
            if span[0] < span[1]:
                found.append(span)
            done = last
            if done < len(cuts):
                begin = self._overlap(cuts, places, tokens, begin, done, budget, overlap)
        return found

    def _overlap(
        self,
        cuts: Sequence[Cut],
        places: Sequence[int],
        tokens: Sequence[int],
        begin: int,
        done: int,
        budget: int,
        overlap: int,
    ) -> int:
        """The cut at which the piece after the one from `begin` to `done` begins; that piece has room for more."""
        first = max(
            bisect_left(tokens, tokens[done] - overlap, begin + 1, done),
            bisect_left(tokens, tokens[done + 1] - budget, begin + 1, done),
            bisect_left(places, places[done + 1] - longest_characters(budget), begin + 1, done),
        )
        return next((at for at in range(first, done) if cuts[at][1] >= Strength.SENTENCE), done)

    def _fine_cuts(self, start: int, end: int, budget: int) -> list[Cut]:
        """Cuts so near to each other that what lies between two is a piece at most."""
        cuts = find_cuts(self.text, start, end)
        found: list[Cut] = []
        for number, (at, strength) in enumerate(cuts):
            found.append((at, strength))
            to = cuts[number + 1][0] if number + 1 < len(cuts) else end
            self._refine(found, at, to, budget, Strength.INNER)
        return found

    def _refine(self, found: list[Cut], start: int, end: int, budget: int, strength: Strength) -> None:
        """Add cuts of `strength` and weaker ones to text[start:end], where it is too long."""
        if self._fits(start, end, budget):
            return
        if strength is Strength.LETTER:
            while not self._fits(start, end, budget):
                token = bisect_left(self._starts, start) + budget
                at = min(start + longest_characters(budget), self._starts[token] if token < len(self._starts) else end)
                start = whole_letter(self.text, max(at, start + 1), start)
                found.append((start, strength))
            return
        finer = finer_cuts(self.text, start, end, strength)
        weaker = Strength(strength - 1)
        at = start
        for to, _ in finer:
            self._refine(found, at, to, budget, weaker)
            found.append((to, strength))
            at = to
        self._refine(found, at, end, budget, weaker)

    def _fits(self, start: int, end: int, budget: int) -> bool:
        tokens = bisect_left(self._starts, end) - bisect_left(self._starts, start)
        return tokens <= budget and end - start <= longest_characters(budget)
