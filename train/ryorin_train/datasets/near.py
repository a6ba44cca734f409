"""
Texts that are nearly the same, found without comparing all pairs.

Two texts are alike by the Jaccard index of their character trigrams, in Japanese as in English; case, width, marks and
politeness aside (`ryorin_index.folds`). Texts that hold different numbers are never alike: 'within 30 days' and 'within
45 days' ask for different answers.

Candidates come from MinHash sketches (Broder 1997) by `datasketch`, and are then compared exactly. They are kept in our
own buckets and not in its MinHashLSH: of rows made from one template each is then a candidate of each, and 4,000 such
rows took 36 s of CPU, four times as many sixteen times that. Here, as in an LSH forest (Bawa, Condie and Ganesan 2005),
a bucket goes by the first 12, 8 or 5 values of a band, the most particular are looked into first, and both a bucket's
members and a text's candidates are bounded. A pair that is just alike enough, outside of such a crowd, is missed with a
probability of 0.00005; in a crowd a text is still compared with those most like it.
"""

from __future__ import annotations

import difflib
import re
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ryorin_index.folds import folded_text

ALIKE = 0.8  # the Jaccard index from which on texts are alike
SAME = 0.95  # a text this alike to an earlier one stands for nothing of its own
_BANDS = 25
_DEPTHS = (12, 8, 5)  # values of a band; of pairs 0.8 alike 1 - (1 - 0.8^5)^25 share a bucket of the last
_MEMBERS = 8  # of a bucket: the first ones
_CANDIDATES = 32  # compared exactly
_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_MARKS = re.compile(r"[\W_]+")
_NOT = re.compile(
    r"\b(?:not|no|never|none|cannot|without|non)\b|n't\b|ない|ません|なく|なかっ|ずに|不可|非|未",
    re.IGNORECASE,
)
_ASKED = re.compile(
    r"\b(?:what|which|who|whom|whose|when|where|why|how(?: (?:many|much|long|often|far))?|must|shall|should)\b"
)
_PREFIXES = ("un", "in", "im", "non", "dis", "ir", "il")

Hashes = NDArray[np.uint32]


def shingles(text: str, setting: str = "") -> Hashes:
    """A text's trigrams, each hashed with all its numbers and its setting. Shape: (n_different,), uint32, sorted."""
    folded = folded_text(text)
    numbers = ",".join(_NUMBER.findall(folded))
    letters = _MARKS.sub("", folded)
    points = np.frombuffer(letters.encode("utf-32-le", errors="surrogatepass"), np.uint32).astype(np.uint64)
    if len(points) < 3:
        points = np.pad(points, (0, 3 - len(points)))
    salt = np.uint64(zlib.crc32(f"{numbers}\0{setting}".encode()) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    mixed = ((points[:-2] * np.uint64(0x9E3779B1) + points[1:-1]) * np.uint64(0x85EBCA6B) + points[2:]) ^ salt
    mixed *= np.uint64(0x9E3779B97F4A7C15)  # the golden ratio's multiplier (Knuth, volume 3, 6.4): wraps around
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def likeness(one: Hashes, other: Hashes) -> float:
    """The Jaccard index of two texts' trigrams, 0 to 1."""
    if len(one) > len(other):
        one, other = other, one
    places = np.searchsorted(other, one)
    common = int(np.count_nonzero(other[np.minimum(places, len(other) - 1)] == one))
    return common / (len(one) + len(other) - common)


def near_pairs(
    texts: Sequence[str],
    settings: Sequence[str] | None = None,
    on_text: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[int, int]]:
    """
    Pairs (later, earlier) of indexes of texts that are alike; enough of them to connect all that are alike.

    A text is compared with those before it only: texts that are added at the end change no earlier pair. settings: of
    each text what it stands in; texts of different settings are never alike. on_text: told how many are done.
    """
    from datasketch import MinHash  # type: ignore[import-untyped]

    empty = MinHash(num_perm=_BANDS * _DEPTHS[0], hashfunc=int)
    buckets: dict[bytes, list[int]] = {}
    first: dict[bytes, int] = {}
    known: dict[int, Hashes] = {}
    pairs: list[tuple[int, int]] = []
    for number, text in enumerate(texts):
        on_text(number, len(texts))
        hashes = shingles(text, settings[number] if settings else "")
        equal = first.setdefault(hashes.tobytes(), number)
        if equal != number:
            pairs.append((number, equal))
            continue
        sketch = empty.copy()
        sketch.update_batch(hashes.tolist())
        keys = _keys(sketch.hashvalues)
        candidates: dict[int, None] = {}
        for key in keys:
            if len(candidates) >= _CANDIDATES:
                break
            candidates.update(dict.fromkeys(buckets.get(key, ())))
        nearest = 0.0
        for candidate in candidates:
            found = likeness(hashes, known[candidate])
            if found >= ALIKE:
                pairs.append((number, candidate))
            nearest = max(nearest, found)
        if nearest < SAME:
            known[number] = hashes
            for key in keys:
                members = buckets.setdefault(key, [])
                if len(members) < _MEMBERS:
                    members.append(number)
    return pairs


def _keys(sketch: NDArray[Any]) -> list[bytes]:
    """The buckets a sketch falls into, the most particular first."""
    values = sketch.astype(np.uint32).reshape(_BANDS, _DEPTHS[0])
    return [bytes((band, depth)) + values[band, :depth].tobytes() for depth in _DEPTHS for band in range(_BANDS)]


class Components:
    """Items joined into groups; a group is known by its first item (union-find, Tarjan 1975)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def first(self, item: int) -> int:
        """The first item of the item's group."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        """Make the groups of two items one."""
        one, other = self.first(one), self.first(other)
        self._parent[max(one, other)] = min(one, other)

    def groups(self) -> list[list[int]]:
        """The groups, each with its items in order, by their first items."""
        found: dict[int, list[int]] = {}
        for item in range(len(self._parent)):
            found.setdefault(self.first(item), []).append(item)
        return list(found.values())


def wording_key(text: str) -> str:
    """
    A key of questions that differ in function words, politeness and order only; '' when too little is left.

    What is asked for (who, when, how many), a negation and a duty (must, should) are part of it.
    """
    words, rest = _bag(text)
    return f"{' '.join(words)} | {rest}" if len(words) > 1 else ""


def asks_the_same(one: str, other: str) -> bool:
    """
    Whether two texts that are alike differ in wording only: function words, politeness, a typing error.

    'opened' and 'unopened', 'can' and 'cannot', two numbers or two things tell texts apart.
    """
    (words, rest), (others, other_rest) = _bag(one), _bag(other)
    if rest != other_rest:
        return False
    left, right = list(words), list(others)
    for word in words:
        if word in right:
            left.remove(word)
            right.remove(word)
    return len(left) == len(right) and all(map(_is_typo, left, right))


@lru_cache(maxsize=4096)
def _bag(text: str) -> tuple[tuple[str, ...], str]:
    """The content words of a text, sorted, and the rest of what it asks: question words, negations, duties."""
    from ryorin_index.words import words_of

    folded = folded_text(text)
    asked = sorted({match[0] for match in _ASKED.finditer(folded)})
    return tuple(sorted(words_of(folded))), f"{' '.join(asked)} {len(_NOT.findall(folded))}"


def _is_typo(one: str, other: str) -> bool:
    """Whether words are one word but for a letter; a prefix that turns the meaning and a digit are no typing errors."""
    shorter, longer = sorted((one, other), key=len)
    if len(shorter) < 5 or any(letter.isdigit() for letter in one + other):
        return False
    if any(longer == prefix + shorter for prefix in _PREFIXES):
        return False
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() >= 0.85
