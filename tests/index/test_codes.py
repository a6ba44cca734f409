"""Codes: what they find among vectors as real embedders make them, whatever may not be found; files keep them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ryorin_index import codes
from ryorin_index.codes import Codes, codes_from_bytes, make_codes
from ryorin_index.embed import Vectors
from ryorin_index.parts import Part, make_part

COUNT, QUERIES, DIMENSIONS = 1500, 60, 48


def crowded_vectors() -> Vectors:
    """As E5's: far from zero on one side, all near to each other, and one dimension much wider than the others."""
    draw = np.random.default_rng(3)
    inner = draw.standard_normal((COUNT + QUERIES, 10)) @ draw.standard_normal((10, DIMENSIONS))
    inner[:, 5] *= 6
    vectors = inner + 25 * draw.standard_normal(DIMENSIONS)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def coded() -> tuple[Part, Part, Codes, Vectors]:
    """A part that is searched exactly, the same by its codes, these, and questions."""
    vectors, queries = np.split(crowded_vectors(), [COUNT])
    made = make_codes(vectors)
    assert made is not None
    exact = make_part(np.arange(COUNT), vectors)
    return exact, replace(exact, codes=made), made, queries


def test_codes_find_what_exact_search_finds_among_crowded_vectors() -> None:
    exact, ours, made, queries = coded()
    assert (exact.vectors[:50] @ exact.vectors[:50].T).min() > 0.7
    assert made.recall >= codes.RECALL and made.candidates <= codes.MOST_CANDIDATES
    read = replace(exact, codes=codes_from_bytes(made.to_bytes(), made.candidates, made.recall))
    found = 0
    for query in queries:
        scores, ids = ours.search(query, 10)
        again = read.search(query, 10)
        assert np.array_equal(scores, again[0]) and np.array_equal(ids, again[1])
        assert np.allclose(scores, exact.vectors[ids] @ query, atol=1e-6)
        found += len(set(ids.tolist()) & set(exact.search(query, 10)[1].tolist()))
    assert found >= 0.98 * 10 * QUERIES


@pytest.mark.parametrize("kept", ["the nearest are dead", "every other", "the farthest quarter"])
def test_what_may_not_be_found_leaves_no_result_out(kept: str) -> None:
    exact, ours, _, queries = coded()
    found = 0
    for query in queries:
        far_first = np.argsort(exact.vectors @ query)
        if kept == "the nearest are dead":
            gone = np.sort(far_first[-200:])
            mine, best = ours.without(gone).search(query, 10), exact.without(gone).search(query, 10)
        else:
            allowed = np.arange(0, COUNT, 2) if kept == "every other" else np.sort(far_first[: COUNT // 4])
            mine, best = ours.search(query, 10, allowed), exact.search(query, 10, allowed)
            assert set(mine[1].tolist()) <= set(allowed.tolist())
        assert len(mine[1]) == 10
        found += len(set(mine[1].tolist()) & set(best[1].tolist()))
    assert found >= 0.98 * 10 * QUERIES


def test_more_results_than_candidates_are_exact() -> None:
    exact, ours, _, queries = coded()
    mine, best = ours.search(queries[0], COUNT), exact.search(queries[0], COUNT)
    assert np.allclose(mine[0], best[0], atol=1e-6) and len(set(mine[1].tolist())) == COUNT


def test_no_codes_where_none_are_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random vectors have no nearest that stand out: the best ten by codes are not the best ten."""
    draw = np.random.default_rng(1).standard_normal((COUNT, 256), dtype=np.float32)
    monkeypatch.setattr(codes, "MOST_CANDIDATES", 12)
    assert make_codes(draw / np.linalg.norm(draw, axis=1, keepdims=True)) is None


def test_vectors_that_cannot_be_cut_into_codes_stay_exact() -> None:
    draw = np.random.default_rng(1).standard_normal((100, 7), dtype=np.float32)
    assert make_codes(draw / np.linalg.norm(draw, axis=1, keepdims=True)) is None
