"""Graphs: what they find among vectors as real embedders make them, and that files keep them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ryorin_index import graphs
from ryorin_index.embed import Vectors
from ryorin_index.graphs import build_graph, graph_from_bytes
from ryorin_index.parts import make_part

COUNT, QUERIES, DIMENSIONS = 1500, 60, 48


def crowded_vectors() -> Vectors:
    """As E5's: far from zero on one side, all near to each other, and one dimension much wider than the others."""
    draw = np.random.default_rng(3)
    inner = draw.standard_normal((COUNT + QUERIES, 10)) @ draw.standard_normal((10, DIMENSIONS))
    inner[:, 5] *= 6
    vectors = inner + 25 * draw.standard_normal(DIMENSIONS)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_a_graph_finds_what_exact_search_finds_among_crowded_vectors() -> None:
    vectors, queries = np.split(crowded_vectors(), [COUNT])
    assert (vectors[:50] @ vectors[:50].T).min() > 0.7
    graph = build_graph(vectors)
    assert graph is not None and graph.recall >= graphs.RECALL
    exact = make_part(np.arange(COUNT), vectors)
    ours = replace(exact, graph=graph)
    read = replace(exact, graph=graph_from_bytes(graph.to_bytes(), DIMENSIONS, graph.ef, graph.recall))
    found = 0
    for query in queries:
        scores, ids = ours.search(query, 10)
        again = read.search(query, 10)
        assert np.array_equal(scores, again[0]) and np.array_equal(ids, again[1])
        assert np.allclose(scores, vectors[ids] @ query, atol=1e-6)
        found += len(set(ids.tolist()) & set(exact.search(query, 10)[1].tolist()))
    assert found >= 0.98 * 10 * QUERIES


def test_a_question_beyond_the_range_of_the_codes_is_taken_to_its_edge() -> None:
    vectors, _ = np.split(crowded_vectors(), [COUNT])
    graph = build_graph(vectors)
    assert graph is not None
    far = np.asarray(-vectors.mean(axis=0), np.float32)
    codes = graph.codes.encode(np.stack([far, 100 * far, *vectors]))
    assert codes.min() >= 0 and codes.max() < 256 and codes[2:].min() >= 1
    steps = np.abs(np.floor(codes[2:]) - 128 - (vectors - graph.codes.center) * graph.codes.steps)
    assert steps.max() <= 0.501  # rounded, so that no error of a code is larger than half a step


def test_no_graph_where_none_is_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest of random vectors lie nowhere; a narrow search with nothing scored again misses them."""
    draw = np.random.default_rng(1).standard_normal((COUNT, 256), dtype=np.float32)
    monkeypatch.setattr(graphs, "BREADTHS", (10,))
    monkeypatch.setattr(graphs, "REFINE", 1)
    assert build_graph(draw / np.linalg.norm(draw, axis=1, keepdims=True)) is None
