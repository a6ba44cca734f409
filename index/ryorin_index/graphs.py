"""
Graphs: approximate search among the vectors of one part, as positions; exact scores are the part's business.

HNSW (https://arxiv.org/abs/1603.09320) over codes of one byte a dimension. Between unit vectors the order by distance
is the order by cosine, and distances do not change when all vectors are moved or stretched alike; so the vectors are
centred, stretched to the range of a byte and compared as whole numbers, by FAISS's integer instructions. That takes
0.6 of the time of FAISS's own 8-bit codes (384 dimensions, AVX2), which are turned into floats at every comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ryorin_index.embed import Vectors

Positions = NDArray[np.int64]

# Candidates per wanted result, which are scored again with the exact vectors, and the least breadth: of 50 results, as
# hybrid search wants, 3 found 0.9955 and 2 0.987 (20,000 sentences).
REFINE = 3
RECALL = 0.993  # recall@10 aimed at; of 0.99 on questions to come there is little doubt then
BREADTHS = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 384, 512)
SAMPLE = 1000  # queries that recall is measured with
MEASURED_K = 10
LINKS, BUILD_BREADTH = 32, 100
_ADD_AT_ONCE = 65_536  # vectors: their codes pass through float32
_MIDDLE, _TOP = np.float32(128), np.float32(255)
_SAME = 1e-6  # scores that differ by less are one


@dataclass(frozen=True)
class Codes:
    """
    How vectors become bytes: centred, stretched, rounded.

    center: shape (dim,), float32. steps: of a code for one unit of a vector's component.
    """

    center: Vectors
    steps: np.float32

    @cached_property
    def _offset(self) -> Vectors:
        return np.asarray(
            _MIDDLE + 0.5 - self.center * self.steps, np.float32
        )  # FAISS cuts off what is behind the point

    def encode(self, vectors: Vectors) -> Vectors:
        """The codes as FAISS takes them. Shape: that of `vectors`, float32 from 0 up to and without 256."""
        codes = np.multiply(vectors, self.steps, dtype=np.float32)
        codes += self._offset
        np.maximum(codes, 0, out=codes)
        return np.minimum(codes, _TOP, out=codes)

    def to_bytes(self) -> bytes:
        """4 * (dim + 1) bytes."""
        return np.append(self.center, self.steps).astype("<f4").tobytes()


def codes_for(vectors: Vectors) -> Codes:
    """Codes that hold these vectors. Shape: (n, dim)."""
    center = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    widest = max(float((vectors.max(axis=0) - center).max()), float((center - vectors.min(axis=0)).max()), 1e-12)
    return Codes(center, np.float32((_MIDDLE - 1) / widest))


@dataclass(frozen=True)
class Graph:
    """
    index: FAISS's; its labels are positions. ef: vectors that a search keeps on its way, its breadth.
    recall: recall@10 that was measured with it.
    """

    index: Any
    codes: Codes
    ef: int
    recall: float

    @cached_property
    def _plain(self) -> Any:
        return _parameters(self.ef, None)

    def candidates(self, query: Vectors, top_k: int, selector: Any = None, thin: float = 1.0) -> Positions:
        """
        Positions to score exactly, at most `top_k` * `REFINE`.

        query: shape (dim,). selector: a FAISS selector of the positions that may be found, one in `thin`; so many times
        as broad is the search.
        """
        import faiss

        count = top_k * REFINE
        ef = max(math.ceil(self.ef * thin), count)
        parameters = self._plain if selector is None and ef == self.ef else _parameters(ef, selector)
        code = self.codes.encode(query)
        distances, found = np.empty(count, np.float32), np.empty(count, np.int64)
        # The method below FAISS's Python layer, which checks and copies what is known to be right here.
        self.index.search_c(
            1,
            faiss.swig_ptr(code),
            count,
            faiss.swig_ptr(distances),
            faiss.swig_ptr(found),
            parameters,
        )
        return found if found[-1] >= 0 else found[found >= 0]

    def to_bytes(self) -> bytes:
        """What `graph_from_bytes` reads."""
        import faiss

        return self.codes.to_bytes() + faiss.serialize_index(self.index).tobytes()


def graph_from_bytes(content: bytes, dimensions: int, ef: int, recall: float) -> Graph:
    """A graph as it was written. The content must be whole: FAISS trusts it."""
    import faiss

    head = np.frombuffer(content, "<f4", dimensions + 1)
    index = faiss.deserialize_index(np.frombuffer(content, np.uint8, offset=head.nbytes))
    return Graph(index, Codes(head[:-1], head[-1]), ef, recall)


def build_graph(vectors: Vectors) -> Graph | None:
    """
    A graph of all these vectors, as broad as it must be for `RECALL`; None when no breadth reaches it.

    vectors: shape (n, dim), unit length, oldest first. The queries that recall is measured with are the newest, before
    they are put into the graph: real ones, and equal to none in it.
    """
    import faiss

    older = len(vectors) - min(SAMPLE, len(vectors) // 4)
    codes = codes_for(vectors)
    kind: Any = faiss.ScalarQuantizer.QT_8bit_direct
    index = faiss.IndexHNSWSQ(vectors.shape[1], kind, LINKS, faiss.METRIC_L2)
    index.hnsw.efConstruction = BUILD_BREADTH
    graph = Graph(index, codes, 0, 0.0)
    _add(graph, vectors[:older])
    queries = vectors[older:]
    truth = faiss.knn(queries, vectors[:older], MEASURED_K, metric=faiss.METRIC_INNER_PRODUCT)[0]
    for ef in BREADTHS:
        recall = _recall(replace(graph, ef=ef), queries, vectors, truth)
        if recall >= RECALL:
            _add(graph, queries)
            return replace(graph, ef=ef, recall=round(recall, 4))
    return None


def _add(graph: Graph, vectors: Vectors) -> None:
    for at in range(0, len(vectors), _ADD_AT_ONCE):
        graph.index.add(graph.codes.encode(vectors[at : at + _ADD_AT_ONCE]))


def _recall(graph: Graph, queries: Vectors, vectors: Vectors, truth: Vectors) -> float:
    """Recall@10 of searches as `Part` makes them. truth: the exact best scores, shape (n_queries, 10)."""
    count = MEASURED_K * REFINE
    found = graph.index.search(graph.codes.encode(queries), count, params=_parameters(max(graph.ef, count), None))[1]
    scores = np.einsum("qcd,qd->qc", vectors[found], queries)
    right = ((scores >= truth[:, -1:] - _SAME) & (found >= 0)).sum(axis=1)
    return float(np.minimum(right, MEASURED_K).mean() / MEASURED_K)


def _parameters(ef: int, selector: Any) -> Any:
    import faiss

    parameters = faiss.SearchParametersHNSW()  # type: ignore[attr-defined]
    parameters.efSearch = ef
    parameters.sel = selector
    return parameters
