"""Codes: what they find among vectors as real embedders make them, whatever may not be found; files keep them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
    assert made.recall >= codes.RECALL and made.candidates <= codes.MOST_CANDIDATES[4]
    read = replace(exact, codes=codes_from_bytes(made.to_bytes(), made.candidates, made.recall))
    found = 0
    for query in queries:
        scores, ids = ours.search(query, 10)
        again = read.search(query, 10)
        assert np.array_equal(scores, again[0]) and np.array_equal(ids, again[1])
        assert np.allclose(scores, exact.vectors[ids] @ query, atol=1e-6)
        found += len(set(ids.tolist()) & set(exact.search(query, 10)[1].tolist()))
    assert found >= 0.98 * 10 * QUERIES


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each search since came by codes; else they left it to exact search."""
    taken: list[bool] = []
    nearest = Codes.nearest

    def seen(self: Codes, query: Vectors, top_k: int, *more: Any) -> Any:
        found = nearest(self, query, top_k, *more)
        taken.append(len(found) >= top_k)
        return found

    monkeypatch.setattr(Codes, "nearest", seen)
    monkeypatch.setattr(codes, "EXACT_SHARE", 1)  # as in a part that is a hundred times as large
    return taken


@pytest.mark.parametrize("share", [0.95, 0.6, 0.35])
@pytest.mark.parametrize("how", ["dead", "filtered", "both"])
def test_what_may_not_be_found_leaves_no_result_out(share: float, how: str, ways: list[bool]) -> None:
    exact, ours, _, queries = coded()
    kept = np.flatnonzero(np.random.default_rng(5).random(COUNT) < share)
    gone = np.setdiff1d(np.arange(COUNT), kept)
    some = gone[:: 2 if how == "both" else 1]
    dead, allowed = (
        some if how != "filtered" else gone[:0],
        None if how == "dead" else np.setdiff1d(np.arange(COUNT), gone[1::2] if how == "both" else gone),
    )
    found = 0
    for query in queries:
        mine = ours.without(dead).search(query, 10, allowed)
        best = exact.without(dead).search(query, 10, allowed)
        assert len(mine[1]) == 10 and set(mine[1].tolist()) <= set(kept.tolist())
        found += len(set(mine[1].tolist()) & set(best[1].tolist()))
    assert found >= 0.98 * 10 * QUERIES
    assert sum(ways) >= 0.9 * QUERIES


def test_where_the_nearest_may_not_be_found_codes_look_further_and_then_leave_it_to_exact_search(
    ways: list[bool],
) -> None:
    exact, ours, made, queries = coded()
    for gone, by_codes in ((made.candidates * 2, True), (COUNT * 3 // 5, False)):
        found = 0
        for query in queries:
            allowed = np.sort(np.argsort(-(exact.vectors @ query))[gone:])
            mine, best = ours.search(query, 10, allowed), exact.search(query, 10, allowed)
            found += len(set(mine[1].tolist()) & set(best[1].tolist()))
        assert ways == [by_codes] * QUERIES
        # What is left lies farther away and closer together, and codes tell it apart a little worse.
        assert found >= (0.95 if by_codes else 1) * 10 * QUERIES
        ways.clear()


def test_few_that_live_are_scored_and_no_codes_read(ways: list[bool]) -> None:
    exact, ours, _, queries = coded()
    dead = np.arange(COUNT - COUNT // 10)
    for query in queries:
        mine, best = ours.without(dead).search(query, 10), exact.without(dead).search(query, 10)
        assert np.array_equal(mine[1], best[1]) and np.allclose(mine[0], best[0], atol=1e-6)
    assert not ways


def test_a_cluster_whose_questions_find_little_is_not_hidden_by_the_mean() -> None:
    recalls = np.ones((1000, 40), np.float32)
    recalls[:6] = np.linspace(0, 1, 40)  # six of a thousand, among near copies: the mean is 0.994 with nothing found
    candidates = codes._fewest(recalls)
    assert recalls.mean(axis=0)[0] >= codes.RECALL
    assert candidates is not None and 20 <= candidates < 40
    assert codes._fewest(recalls[:, :10]) is None
    assert codes._fewest(np.ones((50, 10), np.float32)) == 1
    assert codes._fewest(np.full((50, 10), 0.99, np.float32)) is None


def test_more_results_than_candidates_are_exact() -> None:
    exact, ours, _, queries = coded()
    mine, best = ours.search(queries[0], COUNT), exact.search(queries[0], COUNT)
    assert np.allclose(mine[0], best[0], atol=1e-6) and len(set(mine[1].tolist())) == COUNT


def test_no_codes_where_none_are_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random vectors have no nearest that stand out: the best ten by codes are not the best ten."""
    draw = np.random.default_rng(1).standard_normal((COUNT, 256), dtype=np.float32)
    monkeypatch.setattr(codes, "MOST_CANDIDATES", {})
    monkeypatch.setattr(codes, "MOST_CANDIDATES_OF_OTHERS", 12)
    assert make_codes(draw / np.linalg.norm(draw, axis=1, keepdims=True)) is None


@pytest.mark.parametrize(
    ("dimensions", "widths"),
    [
        (384, [4, 3, 2]),
        (512, [4, 2]),
        (768, [4, 3]),
        (1024, [4]),
        (1536, [6]),
        (3072, [12]),
        (7, [7]),
        (17, []),
        (1, []),
    ],
)
def test_a_vector_has_no_more_codes_than_can_be_added_up(dimensions: int, widths: list[int]) -> None:
    assert codes._widths(dimensions) == widths


@pytest.mark.parametrize("shape", [(0, 8), (20, 8), (63, 8), (100, 17)])
def test_vectors_too_few_or_not_to_be_cut_into_codes_stay_exact(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    assert make_codes(draw / np.linalg.norm(draw, axis=1, keepdims=True)) is None


def test_what_the_codes_of_many_dimensions_add_up_to_does_not_overflow() -> None:
    """Of opposite clusters each code is as far as it can be: FAISS adds up the most there is."""
    draw = np.random.default_rng(2)
    middle = draw.choice([-1.0, 1.0], 1536)
    vectors = np.concatenate([middle, -middle]).reshape(2, 1536).repeat(400, axis=0)
    vectors = vectors + 0.1 * draw.standard_normal(vectors.shape)
    vectors = np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)[draw.permutation(800)]
    made = make_codes(vectors)
    assert made is not None
    distances, found = made.index.search(vectors[:8], 800)
    for query, told, places in zip(vectors, distances, found, strict=False):
        assert np.abs(told - ((vectors[places] - query) ** 2).sum(axis=1)).max() < 0.1
