"""Retrieval evaluation: measures against independent ones, cases that are wrong, drafting."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from long_runs import LONG
from word_embedder import WordEmbedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import VectorStore
from ryorin.errors import InvalidInput
from ryorin_index.draft import draft_cases
from ryorin_index.evaluate import (
    Case,
    Judged,
    Place,
    evaluate,
    judge,
    load_cases,
    score,
    summarise,
)
from ryorin_index.sync import add_paths


def judged(*places: set[int], language: str = "en") -> Judged:
    return Judged(Case("Q", tuple(Place("a.md") for _ in places), language), tuple(map(frozenset, places)))


def test_measures_of_a_ranking_by_hand() -> None:
    found = score([judged({1}, {5, 6})], [[9, 5, 6, 1]], k=10)
    assert found.recall[0] == 1
    assert found.mrr[0] == 1 / 2
    gain = 1 / math.log2(3) + 1 / math.log2(5)  # found at ranks 2 and 4; the second passage of a place counts nothing
    assert found.ndcg[0] == pytest.approx(gain / (1 + 1 / math.log2(3)))


def test_what_lies_beyond_k_is_not_found() -> None:
    found = score([judged({1}), judged({1}), judged({1})], [[2, 3, 1], [], [1]], k=2)
    assert found.recall.tolist() == found.mrr.tolist() == found.ndcg.tolist() == [0, 0, 1]


@pytest.mark.skipif(not LONG, reason="loads scikit-learn: RYORIN_LONG_TESTS=1")
@given(st.lists(st.booleans(), min_size=2, max_size=12).filter(any), st.integers(1, 12))
def test_ndcg_is_that_of_scikit_learn(right: list[bool], k: int) -> None:
    from sklearn.metrics import ndcg_score

    places = [{number} for number, good in enumerate(right) if good]
    ranking = list(range(len(right)))
    expected = ndcg_score([np.array(right, float)], [-np.arange(len(right), dtype=float)], k=k)
    assert score([judged(*places)], [ranking], k).ndcg[0] == pytest.approx(expected)


@given(
    st.lists(st.integers(0, 8), unique=True, max_size=9), st.lists(st.sets(st.integers(0, 8), min_size=1), min_size=1)
)
def test_measures_lie_between_0_and_1(ranking: list[int], places: list[set[int]]) -> None:
    found = score([judged(*places)], [ranking], 5)
    for values in (found.recall, found.mrr, found.ndcg):
        assert 0 <= values[0] <= 1 + 1e-12


def test_rows_are_by_language_and_for_all() -> None:
    cases = [judged({1}), judged({1}, language="ja"), judged({2}, language="ja")]
    rows = summarise(cases, evaluate(cases, lambda question, mode: [1], ["dense"], 3))
    assert [(row["language"], row["cases"], row["recall"]["mean"]) for row in rows] == [
        ("en", 1, 1.0),
        ("ja", 2, 0.5),
        ("all", 3, pytest.approx(2 / 3)),
    ]


def test_cases_find_their_passages_however_documents_are_cut(
    catalog: Catalog, store: VectorStore, folder: Path, embedder: WordEmbedder
) -> None:
    add_paths(catalog, store, [folder], lambda: embedder)
    cases = [
        Case("unopened?", (Place("returns.md", heading="Unopened"),)),
        Case("30 days?", (Place("returns.md", quote="within  30\ndays"),)),
        Case("お米は？", (Place("teiki.md"),)),
        Case("gone?", (Place("returns.md", quote="99 days"),)),
        Case("elsewhere?", (Place("other.md"),)),
    ]
    with catalog.session() as session:
        found, unmatched = judge(session, store, cases)
    assert [case.case.question for case in found] == ["unopened?", "30 days?", "お米は？"]
    assert found[0].places == found[1].places
    assert [case.question for case in unmatched] == ["gone?", "elsewhere?"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "not an object"),
        ('{"relevant": [{"document": "a"}]}', "no 'question'"),
        ('{"question": " ", "relevant": [{"document": "a"}]}', "not a text"),
        ('{"question": "Q", "relevant": []}', "at least one place"),
        ('{"question": "Q", "relevant": [{"heading": "a"}]}', "a place is"),
        ('{"question": "Q", "relevant": [{"document": "a", "page": 3}]}', "a place is"),
        ('{"question": "Q", "relevant": [{"document": 3}]}', "holds texts"),
        ('{"question": "Q", "relevant": [{"document": "a"}], "answer": 3}', "unknown field 'answer'"),
    ],
)
def test_cases_that_are_wrong_name_their_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"question": "Q", "relevant": [{"document": "a.md"}]}\n\n' + line + "\n")
    with pytest.raises(InvalidInput, match="line 3") as raised:
        load_cases(path)
    assert reason in str(raised.value)


def test_a_file_without_cases(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text("\n")
    with pytest.raises(InvalidInput, match="has no cases"):
        load_cases(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_cases(path)


def test_drafted_cases_are_cases_of_the_store(
    catalog: Catalog, store: VectorStore, tmp_path: Path, embedder: WordEmbedder
) -> None:
    draw = random.Random(1)
    for number in range(4):
        words = " ".join(draw.choices(["oak", "cedar", "kettle", "lamp", "return", "repair", "order", "gift"], k=30))
        (tmp_path / f"{number}.md").write_text(f"# Guide {number}\n\n## Part {number}\n\n{words}.\n\n## Short\n\nNo.\n")
    (tmp_path / "plain.txt").write_text("定期便は毎月お届けします。" * 9)
    add_paths(catalog, store, [tmp_path], lambda: embedder)
    with catalog.session() as session:
        rows = list(draft_cases(session, store, 10))
        asked = list(draft_cases(session, store, 2, ask=lambda instruction: f" Which?\n({'Part' in instruction}) "))
    assert {row["question"] for row in rows if row["drafted"] == "heading"} == {f"Part {number}" for number in range(4)}
    assert [row["drafted"] for row in rows].count("words") == 1
    assert len(asked) == 2 and all(row["question"].startswith("Which? (") for row in asked)
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with catalog.session() as session:
        found, unmatched = judge(session, store, load_cases(path))
    assert (len(found), unmatched) == (5, [])


def test_a_store_without_text_drafts_nothing(catalog: Catalog, store: VectorStore) -> None:
    with catalog.session() as session, pytest.raises(InvalidInput, match="no passage of 60 characters"):
        list(draft_cases(session, store, 3))
