"""
Parts: immutable sets of vectors that are searched together, each exactly or by its codes.

A part knows its passages' ids, their vectors, and which of them are alive; it knows nothing of SQL or files. Nothing in
it changes after it was made, so searches of several threads share it without a lock; what removes or adds passages
makes a new part. A filter holds before the best are chosen, as a FAISS selector or by scanning the few passages that it
allows; where there are codes, among as many candidates more as it keeps out. Filtering the results would starve whoever
has 1% of the passages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ryorin_index.codes import Codes, exact_scores
from ryorin_index.embed import Vectors

Ids = NDArray[np.int64]
Scored = tuple[Vectors, Ids]
SORTED_WHOLE = 1000  # scores from which the best are picked out before they are sorted
SCAN_SHARE = 5  # where less than one in so many may be found, these are scanned


@dataclass(frozen=True)
class Part:
    """
    ids: shape (n,), ascending, which is by age. vectors: shape (n, dim), float32, unit length.
    live: shape (n,), bool; None when all are alive. name: the segment it was loaded from; empty in memory only.
    """

    ids: Ids
    vectors: Vectors
    live: NDArray[np.bool_] | None = None
    codes: Codes | None = None
    name: str = ""

    @property
    def size(self) -> int:
        """Passages, dead ones included."""
        return len(self.ids)

    @cached_property
    def alive(self) -> int:
        """Passages that searches may find."""
        return self.size if self.live is None else int(np.count_nonzero(self.live))

    @cached_property
    def _live_bits(self) -> NDArray[np.uint8] | None:
        return None if self.live is None else np.packbits(self.live, bitorder="little")

    def positions(self, ids: Ids) -> Ids:
        """Positions of those of `ids` that are here and alive, ascending by id when `ids` are."""
        if not self.size:
            return np.empty(0, np.int64)
        at = np.minimum(np.searchsorted(self.ids, ids), self.size - 1)
        at = at[self.ids[at] == ids]
        return at if self.live is None else at[self.live[at]]

    def without(self, ids: Ids) -> Part:
        """The same part with `ids` dead; itself when it has none of them."""
        gone = self.positions(ids)
        if not len(gone):
            return self
        live = np.ones(self.size, np.bool_) if self.live is None else self.live.copy()
        live[gone] = False
        return replace(self, live=live)

    def revived(self) -> Part:
        """The same part with nothing dead."""
        return self if self.live is None else replace(self, live=None)

    def living(self) -> tuple[Ids, Vectors]:
        """Ids and vectors of what is alive."""
        return (self.ids, self.vectors) if self.live is None else (self.ids[self.live], self.vectors[self.live])

    def search(self, query: Vectors, top_k: int, allowed: Ids | None = None) -> Scored:
        """
        The best `top_k` of the living that are among `allowed`, best first, with their exact scores.

        query: shape (dim,), float32, contiguous, unit length. allowed: distinct passage ids, ascending; None for all.
        """
        if allowed is None:
            if self.live is not None and self.alive * SCAN_SHARE <= self.size:
                return self._score(query, np.flatnonzero(self.live), top_k)
            return self._search(query, min(top_k, self.alive), self._live_bits, self.alive)
        at = self.positions(allowed)
        if len(at) * SCAN_SHARE <= self.size:
            return self._score(query, at, top_k)
        chosen = np.zeros(self.size, np.bool_)
        chosen[at] = True
        return self._search(query, min(top_k, len(at)), np.packbits(chosen, bitorder="little"), len(at))

    def _search(self, query: Vectors, top_k: int, bits: NDArray[np.uint8] | None, count: int) -> Scored:
        """Search what `bits` select, `count` passages."""
        import faiss

        if top_k < 1:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        if self.codes is not None:
            found = self.codes.nearest(query, top_k, bits, self.size / count)
            if len(found) >= top_k:
                return self._score(query, found, top_k)
        selector = None if bits is None else faiss.IDSelectorBitmap(self.size, faiss.swig_ptr(bits))
        scores, at = np.empty(top_k, np.float32), np.empty(top_k, np.int64)
        faiss.knn_inner_product(
            faiss.swig_ptr(query),
            faiss.swig_ptr(self.vectors),
            self.vectors.shape[1],
            1,
            self.size,
            top_k,
            faiss.swig_ptr(scores),
            faiss.swig_ptr(at),
            selector,
        )
        return scores, self.ids[at]

    def _score(self, query: Vectors, at: Ids, top_k: int) -> Scored:
        """The best of the passages at these positions, ascending, by their exact scores."""
        top_k = min(top_k, len(at))
        if not top_k:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        scores = exact_scores(query[None], self.vectors, at[None])[0]
        if len(at) > SORTED_WHOLE:
            best = np.argpartition(-scores, top_k - 1)[:top_k]
            at, scores = at[best], scores[best]
        order = (-scores).argsort(kind="stable")[:top_k]
        return scores[order], self.ids[at[order]]


def make_part(ids: Ids, vectors: Vectors, name: str = "") -> Part:
    """A part of passages in any order."""
    order = np.argsort(ids)
    return Part(ids[order], np.ascontiguousarray(vectors[order]), name=name)
