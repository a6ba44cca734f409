"""
In which order passages stand in a prompt, so that prompts begin alike.

vLLM keeps what it computed for the beginning of a prompt and uses it for the next prompt that begins the same. The
constant text is the same for all of a release; behind it, passages in the order of their relevance rarely begin alike,
though few passages answer most questions. A release with `order="shared"` has those first that recent prompts began
with: the longest beginning that can be made of the passages at hand, then the rest by how often they were used, so that
beginnings to come are alike too (as an FP-tree orders items: Han, Pei and Yin, 2000).
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence

MOST_PROMPTS = 512  # remembered of a release; an engine's cache forgets as well
MOST_RELEASES = 256


class Prefixes:
    """The recent prompts of one release, as sequences of passages. Not safe to share between threads."""

    def __init__(self, most: int = MOST_PROMPTS) -> None:
        self._most = most
        self._prompts: OrderedDict[tuple[int, ...], None] = OrderedDict()  # the last used comes last
        self._beginnings: Counter[tuple[int, ...]] = Counter()  # of how many of them
        self._used: Counter[int] = Counter()  # in how many of them a passage stands

    def ordered(self, ids: Sequence[int], weights: Sequence[int]) -> list[int]:
        """
        The places of `ids` (distinct, best first) in their new order, which is remembered.

        weights: of each id what it is worth to find it in the cache: its length.
        """
        weight = dict(zip(ids, weights, strict=True))
        beginning = self._longest((), frozenset(ids), weight)[1]
        rest = [each for each in ids if each not in beginning]
        rest.sort(key=lambda each: -self._used[each])  # stable: equally used ones by relevance
        order = (*beginning, *rest)
        self._remember(order)
        place = {each: at for at, each in enumerate(ids)}
        return [place[each] for each in order]

    def _longest(
        self, begun: tuple[int, ...], left: frozenset[int], weight: dict[int, int]
    ) -> tuple[int, tuple[int, ...]]:
        """The heaviest known beginning that goes on from `begun` with some of `left`, and its weight beyond `begun`."""
        best: tuple[int, tuple[int, ...]] = (0, begun)
        for each in left:
            further = (*begun, each)
            if further in self._beginnings:
                more, whole = self._longest(further, left - {each}, weight)
                if (weight[each] + more, self._beginnings[whole]) > (best[0], self._beginnings[best[1]]):
                    best = (weight[each] + more, whole)
        return best

    def _remember(self, order: tuple[int, ...]) -> None:
        if order in self._prompts:
            self._prompts.move_to_end(order)
            return
        self._prompts[order] = None
        self._count(order, 1)
        if len(self._prompts) > self._most:
            forgotten, _ = self._prompts.popitem(last=False)
            self._count(forgotten, -1)

    def _count(self, order: tuple[int, ...], by: int) -> None:
        for end in range(1, len(order) + 1):
            self._beginnings[order[:end]] += by
            if not self._beginnings[order[:end]]:
                del self._beginnings[order[:end]]
        for each in order:
            self._used[each] += by
            if not self._used[each]:
                del self._used[each]


class Layout:
    """Orders passages, each release's by itself. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._releases: OrderedDict[str, Prefixes] = OrderedDict()

    def ordered(self, release_id: str, ids: Sequence[int], weights: Sequence[int]) -> list[int]:
        """As `Prefixes.ordered`, among the release's own."""
        with self._lock:
            prefixes = self._releases.setdefault(release_id, Prefixes())
            self._releases.move_to_end(release_id)
            if len(self._releases) > MOST_RELEASES:
                self._releases.popitem(last=False)
            return prefixes.ordered(ids, weights)
