"""
Codes: approximate search among the vectors of one part, as positions; exact scores are the part's business.

Product quantization in four bits (Jégou et al., 2011, https://doi.org/10.1109/TPAMI.2010.57), scanned whole from
registers (André et al., 2015, https://doi.org/10.14778/2856318.2856324; FAISS's "fast scan"). Four dimensions become
four bits, so a search reads 1/32 of the vectors, in one stream; the best are scored again with the vectors themselves,
as many as measured recall asks for. At 100,000 vectors that took half the time of a graph (HNSW), which leaps through
memory, and an inverted file lost more by the lists it left out than it saved (docs/log.md).

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
SAMPLE = 1000  # queries that recall is measured with
MEASURED_K = 10
MOST_CANDIDATES = 200  # of ten results; beyond, finer codes take less time
WIDTHS = (4, 2)  # dimensions of a code, coarser ones first
TRAINED_WITH = 20_000  # vectors at most; 16 centroids do not get better by more
_BLOCK = 64  # vectors that FAISS compares at once; 32 and 96 took longer (AVX2)
_SLACK = 1.25  # candidates more than the share that may be found asks for
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
        the approximate best of all stand the approximate best of these, so what was measured of recall holds if enough
        of them are left.
        """
        import faiss

        wanted = math.ceil(self.candidates * max(top_k, MEASURED_K) / MEASURED_K)
        count = wanted if bits is None else math.ceil(wanted * thin * _SLACK)
        if count > self.index.ntotal:
            return np.empty(0, np.int64)
        distances, found = np.empty(count, np.float32), np.empty(count, np.int64)
        # The method below FAISS's Python layer, which checks and copies what is known to be right here.
        self.index.search_c(1, faiss.swig_ptr(query), count, faiss.swig_ptr(distances), faiss.swig_ptr(found))
        found.sort()
        if bits is None:
            return found
        found = found[(bits[found >> 3] >> (found & 7)) & 1 > 0]
        return found if len(found) >= wanted else found[:0]

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
    older = count - min(SAMPLE, count // 4)
    queries = vectors[older:]
    truth = faiss.knn(queries, vectors[:older], MEASURED_K, metric=faiss.METRIC_INNER_PRODUCT)[0]
    for width in WIDTHS:
        if dimensions % width:
            continue
        index = faiss.IndexPQFastScan(dimensions, dimensions // width, 4, faiss.METRIC_L2, _BLOCK)
        index.train(np.ascontiguousarray(vectors[: older : -(-older // TRAINED_WITH)]))
        index.add(vectors[:older])
        recalls = _recalls(index, queries, vectors, truth)
        if len(recalls) and recalls[-1] >= RECALL:
            index.add(queries)
            candidates = int(np.argmax(recalls >= RECALL)) + 1
            return Codes(index, candidates, round(float(recalls[candidates - 1]), 4))
    return None


def _recalls(index: Any, queries: Vectors, vectors: Vectors, truth: Vectors) -> Vectors:
    """Recall@10 by the number of candidates, from 1. truth: the exact best scores, shape (n_queries, 10)."""
    found = index.search(queries, min(MOST_CANDIDATES, index.ntotal))[1]
    scores = np.einsum("qcd,qd->qc", vectors[found], queries)
    right = np.cumsum((scores >= truth[:, -1:] - _SAME) & (found >= 0), axis=1)
    return np.asarray(np.minimum(right, MEASURED_K).mean(axis=0) / MEASURED_K, np.float32)
