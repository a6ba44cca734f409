"""
BM25 over a handful of passages in memory: those that are newer than the lexical index on disk.

The formula and its constants are tantivy's (Robertson and Zaragoza 2009, https://doi.org/10.1561/1500000019; k1 = 1.2,
b = 0.75; lengths rounded down as in Lucene's SmallFloat), so that the two lists can be merged by score.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

K1, B = 1.2, 0.75
FIELDS = ("title", "text")


def _decoded_length(code: int) -> int:
    """Lucene's byte4ToInt: exact up to 40, then three bits of mantissa (SmallFloat.java)."""
    code -= 24
    if code < 0:
        return code + 24
    return 24 + (code if code < 8 else ((code & 7) | 8) << ((code >> 3) - 1))


_LENGTHS = [_decoded_length(code) for code in range(256)]


@dataclass(frozen=True)
class Statistics:
    """
    What BM25 has to know of all passages.

    passages: how many there are. with_word: (field, word) → how many have it. mean_words: field → words of one.
    """

    passages: int
    with_word: Mapping[tuple[str, str], int]
    mean_words: Mapping[str, float]

    def idf(self, field: str, word: str) -> float:
        """How much a word tells."""
        with_word = self.with_word.get((field, word), 0)
        return math.log(1 + (self.passages - with_word + 0.5) / (with_word + 0.5))


class Tail:
    """Passages in memory by their words. Not safe to share between threads: the lexical index holds its lock."""

    def __init__(self) -> None:
        self._postings: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
        self._words: dict[int, dict[str, Counter[str]]] = {}
        self._lengths: dict[int, dict[str, int]] = {}
        self.total_words = dict.fromkeys(FIELDS, 0)

    def __len__(self) -> int:
        return len(self._words)

    def __contains__(self, passage_id: int) -> bool:
        return passage_id in self._words

    def add(self, passage_id: int, words: Mapping[str, Sequence[str]]) -> None:
        """Take a passage in. words: of each field, in any order."""
        self.discard(passage_id)
        counted = {field: Counter(words[field]) for field in FIELDS}
        self._words[passage_id] = counted
        self._lengths[passage_id] = {field: len(words[field]) for field in FIELDS}
        for field, counts in counted.items():
            self.total_words[field] += len(words[field])
            for word, times in counts.items():
                self._postings[field, word][passage_id] = times

    def discard(self, passage_id: int) -> None:
        """Take a passage out, if it is in."""
        for field, counts in self._words.pop(passage_id, {}).items():
            self.total_words[field] -= self._lengths[passage_id][field]
            for word in counts:
                postings = self._postings[field, word]
                del postings[passage_id]
                if not postings:
                    del self._postings[field, word]
        self._lengths.pop(passage_id, None)

    def with_word(self, field: str, word: str) -> int:
        """How many of the passages have the word."""
        return len(self._postings.get((field, word), ()))

    def scores(self, words: Sequence[str], weights: Mapping[str, float], known: Statistics) -> dict[int, float]:
        """Passage id → BM25, the fields' sums weighted. words: distinct."""
        found: dict[int, float] = defaultdict(float)
        for field in FIELDS:
            mean = known.mean_words[field] or 1.0
            for word in words:
                postings = self._postings.get((field, word))
                if not postings:
                    continue
                weight = weights[field] * known.idf(field, word) * (K1 + 1)
                for passage_id, times in postings.items():
                    length = _LENGTHS[bisect_right(_LENGTHS, self._lengths[passage_id][field]) - 1]
                    found[passage_id] += weight * times / (times + K1 * (1 - B + B * length / mean))
        return dict(found)
