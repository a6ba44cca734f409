"""`ryorin index evaluate` and `draft-cases`, by command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from word_embedder import WordEmbedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import VectorStore
from ryorin_index.sync import add_paths

CASES = [
    {"question": "unopened goods", "language": "en", "relevant": [{"document": "returns.md", "heading": "Unopened"}]},
    {"question": "free parking", "language": "en", "relevant": [{"document": "shops.html"}]},
    {"question": "お米は毎月", "language": "ja", "relevant": [{"document": "teiki.md", "quote": "毎月届きます"}]},
    {"question": "lost", "language": "en", "relevant": [{"document": "lost.md"}]},
]


@pytest.fixture
def filled(
    catalog: Catalog, store: VectorStore, folder: Path, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> VectorStore:
    from ryorin_index import search

    add_paths(catalog, store, [folder], lambda: embedder)
    monkeypatch.setattr(search.Searcher, "embedder", lambda self, store: embedder)
    return store


def test_a_run_is_compared_with_one_that_was_kept(cli: Any, filled: VectorStore, tmp_path: Path) -> None:
    cases, kept = tmp_path / "cases.jsonl", tmp_path / "run.json"
    cases.write_text("".join(json.dumps(case) + "\n" for case in CASES))
    words = ("index", "evaluate", "handbook", "--cases", cases, "--tenant", "support")
    first = cli(*words, "--save", kept, "--json")
    assert first.code == 0, first.err
    result = json.loads(first.out)
    assert (result["cases"], result["unmatched"]) == (4, ["lost"])
    assert {(row["language"], row["mode"]) for row in result["rows"]} == {
        (language, mode) for language in ("en", "ja", "all") for mode in ("dense", "lexical", "hybrid")
    }
    assert all(row["recall"]["mean"] == 1 for row in result["rows"])
    again = json.loads(cli(*words, "--baseline", kept, "--mode", "hybrid", "--json").out)
    assert [(row["measure"], row["difference"]) for row in again["compared"]] == [
        ("recall", 0),
        ("mrr", 0),
        ("ndcg", 0),
    ]
    shown = cli(*words)
    assert "nDCG@10" in shown.out and "lost" in shown.err


def test_what_is_wrong_is_said(cli: Any, filled: VectorStore, tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    cases.write_text(json.dumps(CASES[-1]))
    words = ("index", "evaluate", "handbook", "--cases", cases, "--tenant", "support")
    assert "no place of the 1 cases" in cli(*words).err
    (tmp_path / "no.json").write_text("{}")
    assert "not a run that --save wrote" in cli(*words, "--baseline", tmp_path / "no.json").err
    assert "go together" in cli("index", "draft-cases", "handbook", "--tenant", "support", "--model", "m").err


def test_drafts_are_lines_of_json(cli: Any, filled: VectorStore) -> None:
    drafted = cli("index", "draft-cases", "handbook", "--tenant", "support")
    assert drafted.code in (0, 2)
    for line in drafted.out.splitlines():
        assert json.loads(line)["relevant"]
