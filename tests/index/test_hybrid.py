"""Hybrid search: modes, filters before the search, folding, variety, reranking, context, several queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from long_runs import LONG
from sqlalchemy import select
from word_embedder import WordEmbedder, fake_embedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Passage, Tenant, VectorStore
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin.filters import parse_filter
from ryorin.models.folders import reranker_digest
from ryorin.release import Retrieval
from ryorin_index.fusion import RRF_K, diversify, fuse
from ryorin_index.ingest import Incoming, delete_documents, put_document
from ryorin_index.search import Searcher


def put(catalog: Catalog, store: VectorStore, name: str, text: str, **attributes: Any) -> str:
    incoming = Incoming(source=name, filename=name, data=text.encode(), attributes=attributes)
    return put_document(catalog, store, incoming, WordEmbedder).document_id


@pytest.fixture
def searcher(catalog: Catalog) -> Searcher:
    return Searcher(catalog, lambda _: WordEmbedder())


def names(searcher: Searcher, store: VectorStore, query: str, **how: Any) -> list[str]:
    hits = searcher.search(store.tenant_id, [store.id], query, retrieval=Retrieval(**{"top_k": 10, **how}))
    return [hit.filename for hit in hits]


def test_fusion_is_the_sum_of_reciprocal_ranks() -> None:
    fused = fuse([(1.0, [7, 8, 9]), (0.5, [9, 5]), (0.0, [1])])
    assert fused == pytest.approx({
        9: 1 / (RRF_K + 3) + 0.5 / (RRF_K + 1), 7: 1 / (RRF_K + 1), 8: 1 / (RRF_K + 2), 5: 0.5 / (RRF_K + 2)
    })  # fmt: skip
    assert list(fused) == [9, 7, 8, 5]
    assert list(fuse([(1.0, [3]), (1.0, [2])])) == [2, 3]


def test_variety_passes_over_what_is_the_same() -> None:
    east, north = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    vectors = {1: east, 2: east, 3: north}
    relevance = {1: 1.0, 2: 0.9, 3: 0.1}
    assert diversify(relevance, vectors, 2, 0.3) == [1, 3]
    assert diversify(relevance, vectors, 2, 1.0) == [1, 2]
    assert diversify({}, {}, 2, 0.5) == []


def test_each_side_finds_what_it_can(catalog: Catalog, store: VectorStore, searcher: Searcher) -> None:
    put(catalog, store, "inflected.txt", "The policies were returned")
    put(catalog, store, "plain.txt", "A policy about kettles")
    assert names(searcher, store, "returning policy", mode="lexical") == ["inflected.txt", "plain.txt"]
    assert names(searcher, store, "returning policy", mode="dense", top_k=1) == ["plain.txt"]
    assert set(names(searcher, store, "returning policy")) == {"inflected.txt", "plain.txt"}
    assert names(searcher, store, "zebra", mode="lexical") == []


def test_the_explanation_adds_up(catalog: Catalog, store: VectorStore, searcher: Searcher) -> None:
    for number in range(6):
        put(catalog, store, f"{number}.txt", f"lamp {'oak ' * number} number {number}")
    how = Retrieval(top_k=6, dense_weight=2.0, lexical_weight=0.5)
    hits = searcher.search(store.tenant_id, [store.id], "oak lamp", retrieval=how)
    assert len(hits) == 6
    for hit in hits:
        note = hit.explanation
        assert note is not None and note.dense_rank and note.lexical_rank and note.bm25
        assert note.fused == pytest.approx(2.0 / (60 + note.dense_rank) + 0.5 / (60 + note.lexical_rank))
        assert note.cosine == hit.score and not note.filtered
    fused = [hit.explanation.fused for hit in hits if hit.explanation]
    assert fused == sorted(fused, reverse=True)
    for weight, mode in (({"lexical_weight": 0.0}, "dense"), ({"dense_weight": 0.0}, "lexical")):
        alone = names(searcher, store, "oak lamp", mode=mode)
        assert names(searcher, store, "oak lamp", **weight) == alone


def test_the_floor_holds_for_what_words_found(catalog: Catalog, store: VectorStore, searcher: Searcher) -> None:
    put(catalog, store, "far.txt", "policies " + " ".join(f"word{n}" for n in range(40)))
    hit = searcher.search(store.tenant_id, [store.id], "policy", retrieval=Retrieval(mode="lexical"))[0]
    assert hit.explanation is not None and hit.explanation.dense_rank is None
    near = replace(Retrieval(mode="lexical"), score_floor=hit.score + 0.01)
    assert searcher.search(store.tenant_id, [store.id], "policy", retrieval=near) == []


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_a_filter_chooses_before_the_search(
    catalog: Catalog, store: VectorStore, searcher: Searcher, mode: str
) -> None:
    """One percent of the passages, and worse than all others: still all that were asked for."""
    loud = "".join(f"## Part {number}\n\noak lamp\n\n" for number in range(198))
    put(catalog, store, "loud.md", f"# Loud\n\n{loud}", team="loud")
    for number in range(2):
        put(catalog, store, f"quiet{number}.txt", "oak lamp " + "filler " * 9 + str(number), team="quiet", year=number)
    quiet = {"type": "eq", "key": "team", "value": "quiet"}
    assert set(names(searcher, store, "oak lamp", mode=mode, top_k=2, filters=quiet)) == {"quiet0.txt", "quiet1.txt"}
    both = searcher.search(
        store.tenant_id,
        [store.id],
        "oak lamp",
        retrieval=Retrieval(mode=mode, filters=quiet),
        chosen=parse_filter({"type": "gte", "key": "year", "value": 1}),
    )
    assert [hit.filename for hit in both] == ["quiet1.txt"]
    assert both[0].attributes == {"team": "quiet", "year": 1}
    assert both[0].explanation is not None and both[0].explanation.filtered
    named = {"type": "in", "key": "filename", "value": ["loud.md"]}
    assert names(searcher, store, "oak lamp", mode=mode, filters=named) == ["loud.md"] * 10
    nobody = {"type": "eq", "key": "team", "value": "nobody"}
    assert names(searcher, store, "oak lamp", mode=mode, filters=nobody) == []


def test_filters_follow_edits(catalog: Catalog, store: VectorStore, searcher: Searcher) -> None:
    red = {"type": "eq", "key": "colour", "value": "red"}
    put(catalog, store, "a.txt", "oak lamp", colour="red")
    put(catalog, store, "b.txt", "oak lamp too", colour="blue")
    assert names(searcher, store, "oak", filters=red) == ["a.txt"]
    put(catalog, store, "b.txt", "oak lamp too", colour="red")  # the same bytes, other attributes
    assert set(names(searcher, store, "oak", filters=red)) == {"a.txt", "b.txt"}
    put(catalog, store, "c.txt", "oak chair", colour="red")
    with catalog.session() as session:
        gone = session.scalars(select(Document).where(Document.store_id == store.id, Document.source == "a.txt")).one()
        delete_documents(session, store, [gone])
    assert set(names(searcher, store, "oak", filters=red)) == {"b.txt", "c.txt"}


def test_what_says_the_same_is_shown_once(catalog: Catalog, store: VectorStore, searcher: Searcher) -> None:
    put(catalog, store, "a.txt", "oak lamp")
    put(catalog, store, "b.txt", "oak lamp copy")
    put(catalog, store, "c.txt", "oak lamp something else")
    with catalog.session() as session:
        for passage in session.scalars(select(Passage)):
            passage.fold_key = "" if "else" in passage.text else "same"
    hits = searcher.search(store.tenant_id, [store.id], "oak lamp", 5)
    assert [hit.filename for hit in hits] == ["a.txt", "c.txt"]
    with catalog.session() as session:
        copy = session.scalars(select(Passage).where(Passage.text == "oak lamp copy")).one()
    assert hits[0].explanation is not None
    assert hits[0].explanation.folded == ((copy.id, copy.document_id),)


def test_copies_do_not_use_up_the_answer(sqlite_store: tuple[Catalog, VectorStore]) -> None:
    """More copies than candidates, all better than what is left."""
    catalog, store = sqlite_store
    copies = "".join(f"## Part\n\noak lamp {number}\n\n" for number in range(120))
    put(catalog, store, "copies.md", f"# Copies\n\n{copies}")
    put(catalog, store, "other.txt", "oak lamp with many other words around it")
    with catalog.session() as session:
        for passage in session.scalars(select(Passage)):
            passage.fold_key = "" if "other" in passage.text else "same"
    assert len(names(Searcher(catalog, lambda _: WordEmbedder()), store, "oak lamp", top_k=2)) == 2


def test_variety_in_a_search(catalog: Catalog, store: VectorStore, searcher: Searcher) -> None:
    for number in range(3):
        put(catalog, store, f"same{number}.txt", f"oak oak lamp lamp {'oak ' * number}")
    put(catalog, store, "other.txt", "oak kettle porcelain teapot")
    assert "other.txt" not in names(searcher, store, "oak lamp", top_k=2)
    assert "other.txt" in names(searcher, store, "oak lamp", top_k=2, mmr=0.2)


class Longest:
    """Prefers long texts."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        return [float(len(text)) for text in texts]


def test_a_reranker_has_the_last_word(catalog: Catalog, store: VectorStore) -> None:
    searcher = Searcher(catalog, lambda _: WordEmbedder(), lambda name, digest: Longest())
    put(catalog, store, "short.txt", "oak lamp")
    put(catalog, store, "long.txt", "oak lamp " + "and many more words " * 5)
    assert names(searcher, store, "oak lamp", top_k=1) == ["short.txt"]
    hits = searcher.search(store.tenant_id, [store.id], "oak lamp", retrieval=Retrieval(top_k=1, reranker="any"))
    assert [hit.filename for hit in hits] == ["long.txt"]
    assert hits[0].explanation is not None and hits[0].explanation.rerank == len(f"{hits[0].title}\n{hits[0].text}")


def test_another_model_in_the_rerankers_place_is_refused(
    sqlite_store: tuple[Catalog, VectorStore], tmp_path: Path
) -> None:
    catalog, store = sqlite_store
    put(catalog, store, "a.txt", "oak lamp")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "transformers_version": "4"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    pinned = reranker_digest(tmp_path)
    how = Retrieval(reranker=str(tmp_path), reranker_digest=pinned)
    warm = Searcher(catalog, lambda _: WordEmbedder(), lambda name, digest: Longest())
    assert warm.search(store.tenant_id, [store.id], "oak", retrieval=how)
    (tmp_path / "config.json").write_text('{"transformers_version": "5", "model_type": "bert"}')
    (tmp_path / "README.md").write_text("the same model, saved anew")
    assert reranker_digest(tmp_path) == pinned
    (tmp_path / "pytorch_model.bin").write_bytes(b"other weights")
    now = reranker_digest(tmp_path)
    with pytest.raises(Conflict, match=f"is {now[:12]}, the release was made with {pinned[:12]}.*release create"):
        Searcher(catalog, lambda _: WordEmbedder()).search(store.tenant_id, [store.id], "oak", retrieval=how)
    assert warm.search(store.tenant_id, [store.id], "oak", retrieval=how)  # what was loaded is the one that was pinned


@pytest.mark.skipif(not LONG, reason="loads sentence-transformers: RYORIN_LONG_TESTS=1")
def test_a_real_cross_encoder(sqlite_store: tuple[Catalog, VectorStore], tmp_path: Path) -> None:
    """A tiny one with random weights: its own scores decide."""
    catalog, store = sqlite_store
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path / "cross"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "oak", "lamp", "kettle", "tea", "chair"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("oak", "lamp", "kettle", "chair"):
        put(catalog, store, f"{name}.txt", f"{name} tea " * 3)
    hits = Searcher(catalog, lambda _: WordEmbedder()).search(
        store.tenant_id, [store.id], "tea", retrieval=Retrieval(top_k=4, reranker=str(folder))
    )
    model = CrossEncoder(str(folder), local_files_only=True)
    expected = model.predict([("tea", f"{hit.title}\n{hit.text}") for hit in hits], show_progress_bar=False)
    assert [hit.explanation.rerank for hit in hits if hit.explanation] == pytest.approx(expected.tolist(), abs=1e-5)
    assert list(expected) == sorted(expected, reverse=True)
    with pytest.raises(NotFound, match="cross-encoder"):
        Searcher(catalog, lambda _: WordEmbedder()).search(
            store.tenant_id, [store.id], "tea", retrieval=Retrieval(reranker=str(tmp_path))
        )


def test_context_is_what_stands_around(catalog: Catalog, store: VectorStore, searcher: Searcher) -> None:
    text = "# Lamps\n\n## Oak\n\nFirst oak.\n\n## Kettle\n\nSecond kettle.\n\n## Tea\n\nThird tea.\n"
    put(catalog, store, "a.md", text)

    def prompt(context: str) -> str:
        hits = searcher.search(
            store.tenant_id, [store.id], "second kettle", retrieval=Retrieval(top_k=1, context=context)
        )
        assert hits[0].text == "Second kettle."
        return hits[0].prompt_passage.text

    assert prompt("passage") == prompt("section") == "Second kettle."
    around = prompt("neighbours")
    assert around.startswith("First oak.") and around.endswith("Third tea.") and "Second kettle." in around


def test_several_queries_are_one_search(catalog: Catalog, store: VectorStore, searcher: Searcher) -> None:
    put(catalog, store, "oak.txt", "oak chair")
    put(catalog, store, "tea.txt", "tea kettle")
    put(catalog, store, "no.txt", "nothing here at all")
    hits = searcher.search_many(store.tenant_id, [store.id], ["oak", "kettle"], 2)
    assert {hit.filename for hit in hits} == {"oak.txt", "tea.txt"}
    alone = searcher.search(store.tenant_id, [store.id], "oak", 1)[0]
    assert next(hit for hit in hits if hit.filename == "oak.txt").score == pytest.approx(alone.score)
    with pytest.raises(InvalidInput, match="0 queries"):
        searcher.search_many(store.tenant_id, [store.id], [], 2)
    with pytest.raises(InvalidInput, match="empty"):
        searcher.search_many(store.tenant_id, [store.id], ["oak", " "], 2)


def test_words_are_kept_apart_by_store(
    catalog: Catalog, store: VectorStore, tenant: Tenant, searcher: Searcher
) -> None:
    from ryorin_index.store import create_store

    with catalog.session() as session:
        second = create_store(session, tenant, "second", fake_embedder())
    put(catalog, store, "a.txt", "oak lamp")
    put(catalog, second, "b.txt", "oak kettle")
    assert names(searcher, store, "oak", mode="lexical") == ["a.txt"]
    both = searcher.search(tenant.id, [store.id, second.id], "oak", 5, retrieval=Retrieval(mode="lexical"))
    assert {hit.filename for hit in both} == {"a.txt", "b.txt"}
