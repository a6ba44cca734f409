"""
Codes: approximate search among the vectors of one part, as positions; exact scores are the part's business.

Product quantization in four bits (Jégou et al., 2011, https://doi.org/10.1109/TPAMI.2010.57), scanned whole from
registers (André et al., 2015, https://doi.org/10.14778/2856318.2856324; FAISS's "fast scan"). Four dimensions become
four bits, so a search reads 1/32 of the vectors, in one stream; the best are scored again with the vectors themselves,
as many as measured recall asks for. At 100,000 vectors that took half to two thirds of the time of a graph (HNSW),
which leaps through memory, and an inverted file lost more by the lists it left out than it saved (docs/log.md).

Between unit vectors the order by distance is the order by cosine. By distance a code's error counts as much as query
and vector differ, by inner product as much as the query is long: where all vectors lie near to each other, as E5's do,
the best are not among hundreds of candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ryorin_index.embed import Vectors

Positions = NDArray[np.int64]

RECALL = 0.993  # recall@10 aimed at; of 0.99 on questions to come there is little doubt then
# Of the hundredth of the questions that find least: copies that differ by a word lie so near to each other that codes
# hardly tell them apart, and a mean over all would not show it.
LEAST_RECALL = 0.8
SAMPLE = 1000  # queries that recall is measured with
MEASURED_K = 10
# Candidates of ten results, at most, by dimensions of a code: where coarse codes need many, finer ones take less time.
MOST_CANDIDATES = {4: 200}
MOST_CANDIDATES_OF_OTHERS = 800
MOST_CODES = 256  # of a vector: FAISS adds up what each may add, 255, in 16 bits
TRAINED_WITH = 4096  # vectors; FAISS takes no more for 16 centroids
LEAST_VECTORS = 64
EXACT_SHARE = 8  # exact search is as fast as scoring one in so many again
_BLOCK = 64  # vectors that FAISS compares at once; 32, 96 and 128 took as long or longer
_SLACKS = (1.25, 5.0)  # candidates more than the share that may be found asks for; the second where that was not enough
_SAME = 1e-6  # scores that differ by less are one


@dataclass(frozen=True)
class Codes:
    """
    index: FAISS's, of all vectors in their order. candidates: positions to score again for ten results, or fewer.
    recall: recall@10 that was measured with them.
    """

    index: Any
    candidates: int
    recall: float

    def nearest(
        self, query: Vectors, top_k: int, bits: NDArray[np.uint8] | None = None, thin: float = 1.0
    ) -> Positions:
        """
        Positions to score exactly, ascending, as they lie in memory; fewer than `top_k` when exact search is better.

        query: shape (dim,), float32. bits: one for each position, which may be found if it is set, one in `thin`. Among
        the approximate best of all stand the approximate best of these; enough of them must be left. Recall is a little
        less than measured where just the nearest may not be found.
        """
        wanted = math.ceil(self.candidates * max(top_k, MEASURED_K) / MEASURED_K)
        for slack in _SLACKS:
            count = wanted if bits is None else math.ceil(wanted * thin * slack)
            if count * EXACT_SHARE * thin > self.index.ntotal:
                break
            found = self._best(query, count)
            if bits is None:
                return found
            found = found[(bits[found >> 3] >> (found & 7)) & 1 > 0]
            if len(found) >= wanted:
                return found
        return np.empty(0, np.int64)

    def _best(self, query: Vectors, count: int) -> Positions:
        """The approximate best `count` of all, ascending."""
        import faiss

        distances, found = np.empty(count, np.float32), np.empty(count, np.int64)
        # The method below FAISS's Python layer, which checks and copies what is known to be right here.
        self.index.search_c(1, faiss.swig_ptr(query), count, faiss.swig_ptr(distances), faiss.swig_ptr(found))
        found.sort()
        return found[found >= 0]

    def to_bytes(self) -> bytes:
        """What `codes_from_bytes` reads."""
        import faiss

        return bytes(faiss.serialize_index(self.index).tobytes())


def codes_from_bytes(content: bytes, candidates: int, recall: float) -> Codes:
    """Codes as they were written. The content must be whole: FAISS trusts it."""
    import faiss

    return Codes(faiss.deserialize_index(np.frombuffer(content, np.uint8)), candidates, recall)


def make_codes(vectors: Vectors) -> Codes | None:
    """
    Codes of all these vectors, with as many candidates as `RECALL` asks for; None when no codes reach it.

    vectors: shape (n, dim), float32, unit length, oldest first. The queries that recall is measured with are the
    newest, before they are put in: real ones, and equal to none there.
    """
    import faiss

    count, dimensions = vectors.shape
    if count < LEAST_VECTORS:
        return None
    older = count - min(SAMPLE, count // 4)
    queries = vectors[older:]
    truth = faiss.knn(queries, vectors[:older], MEASURED_K, metric=faiss.METRIC_INNER_PRODUCT)[0]
    for width in _widths(dimensions):
        index = faiss.IndexPQFastScan(dimensions, dimensions // width, 4, faiss.METRIC_L2, _BLOCK)
        index.train(np.ascontiguousarray(vectors[: older : -(-older // TRAINED_WITH)]))
        index.add(vectors[:older])
        most = MOST_CANDIDATES.get(width, MOST_CANDIDATES_OF_OTHERS)
        recalls = _recalls(index, queries, vectors, truth, min(most, older))
        candidates = _fewest(recalls)
        if candidates is not None:
            index.add(queries)
            return Codes(index, candidates, round(float(recalls[:, candidates - 1].mean()), 4))
    return None


def _fewest(recalls: Vectors) -> int | None:
    """The fewest candidates with which `RECALL` and `LEAST_RECALL` are reached; None if they are not."""
    worst = np.sort(recalls, axis=0)[: math.ceil(len(recalls) / 100)].mean(axis=0)
    enough = np.flatnonzero((recalls.mean(axis=0) >= RECALL) & (worst >= LEAST_RECALL))
    return int(enough[0]) + 1 if len(enough) else None


def _widths(dimensions: int) -> list[int]:
    """Dimensions of a code, coarser ones first: from four down, or the least that makes no more than `MOST_CODES`."""
    possible = [width for width in range(16, 1, -1) if dimensions % width == 0 and dimensions // width <= MOST_CODES]
    return [width for width in possible if width <= 4] or possible[-1:]


def _recalls(index: Any, queries: Vectors, vectors: Vectors, truth: Vectors, most: int) -> Vectors:
    """
    Each query's recall@10 with 1 to `most` candidates. Shape: (n_queries, most).

    truth: the exact best scores, shape (n_queries, 10).
    """
    found = np.ascontiguousarray(index.search(queries, most)[1])
    scores = exact_scores(queries, vectors, np.maximum(found, 0))
    right = np.cumsum((scores >= truth[:, -1:] - _SAME) & (found >= 0), axis=1, dtype=np.int32)
    return np.asarray(np.minimum(right, MEASURED_K) / MEASURED_K, np.float32)


def exact_scores(queries: Vectors, vectors: Vectors, positions: Positions) -> Vectors:
    """
    Inner products of each query with the vectors at its positions, without a copy of these.

    queries: (n, dim), vectors: (…, dim), both float32 and contiguous. positions: (n, m), contiguous. Shape: (n, m).
    """
    import faiss

    scores = np.empty(positions.shape, np.float32)
    faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]
        faiss.swig_ptr(scores),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(positions),
        vectors.shape[1],
        *positions.shape,
    )
    return scores
