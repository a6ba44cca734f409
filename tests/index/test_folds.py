"""Folding: the same words fold however they are written; no fact is ever folded away. Languages of passages."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long_runs import turns
from sqlalchemy import select
from word_embedder import WordEmbedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Passage, Tenant, VectorStore
from ryorin.errors import InvalidInput
from ryorin_index.chunking import Chunking
from ryorin_index.context import widen
from ryorin_index.folds import fold_key
from ryorin_index.ingest import Incoming, put_document, remove_documents
from ryorin_index.language import document_language, passage_language

ENGLISH = "Unopened goods from {} can be sent back within {} days; we {} pay the post of {} yen."
JAPANESE = "{}の商品は、ご購入から{}日以内であれば返品{}。送料は{}円です。"
NAMES = [
    "Kyoto",
    "Osaka",
    "Aoi",
    "Plan A",
    "Plan B",
    "plan",
    "'Aoi'",
    "東京店",
    "大阪店",
    "C",
    "C++",
    "C#",
    "snake_case",
    "snake",
]
NUMBERS = [
    "3",
    "30",
    "45",
    "3.0",
    "3.5",
    ".5",
    "5",
    "-5",
    "1,000",
    "1000",
    "1.000",
    "三十",
    "三、四",
    "三四",
    "10²",
    "102",
]
NEGATIONS = ["do", "do not", "never", "only", "may", "must", "will not", "will", "cannot", "can"]
NEGATIONS_JA = ["できます", "できません", "できない", "不可です", "可能です", "できますか", "できました"]


@settings(max_examples=turns(100, 5000))
@given(data=st.data())
def test_what_differs_in_a_fact_never_folds(data: st.DataObject) -> None:
    template, places = data.draw(
        st.sampled_from(
            [(ENGLISH, (NAMES, NUMBERS, NEGATIONS, NUMBERS)), (JAPANESE, (NAMES, NUMBERS, NEGATIONS_JA, NUMBERS))]
        )
    )
    first = [data.draw(st.sampled_from(values)) for values in places]
    second = list(first)
    at = data.draw(st.integers(0, 3))
    second[at] = data.draw(st.sampled_from(places[at]))
    same = [value.replace("'", "") for value in first] == [value.replace("'", "") for value in second]
    assert (fold_key("A", template.format(*first)) == fold_key("A", template.format(*second))) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Goods go back within 30 days.", "goods  go\nback within 30 days"),
        ("Please don't send the goods back!", "Do not send goods back."),
        ("It can't be **returned**.", "It cannot be returned"),
        ("- one\n- two", "• one\n• two"),
        ("| Size | Yen |\n|---|---|\n| S | 500 |", "Size | Yen\nS | 500"),
        ("ＡＢＣ株式会社　ｶﾀﾛｸﾞ 30日", "ABC株式会社カタログ30日"),
        ("返品は、できます。ご連絡下さい。", "返品はできます ご連絡くださいませ！"),
        ("「定期便」を解約出来ます。", "定期便を解約できます"),
    ],
)
def test_ways_of_writing_fold(one: str, other: str) -> None:
    assert fold_key("Heading", one) == fold_key("HEADING", other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Opened goods.", "Unopened goods."),
        ("It can be returned?", "It can be returned."),
        ("返品できますか？", "返品できます。"),
        ("red", "blue"),
        ("5 > 3", "5 < 3"),
        ("50%", "50"),
        ("$5", "€5"),
        ("A or B", "A and B"),
        ("before", "after"),
        ("2*3", "2 3"),
        ("5 yen", "(5) yen"),
        ("1 2", "12"),
        ("三、四日", "三四日"),
        ("第1条", "第2条"),
        ("月曜", "火曜"),
    ],
)
def test_other_words_do_not_fold(one: str, other: str) -> None:
    assert fold_key("", one) != fold_key("", other)
    assert fold_key(one, "The same text.") != fold_key(other, "The same text.")


@given(st.text(alphabet="aB 1.,-'あ漢、。\n", max_size=60), st.sampled_from(["upper", "space", "lines"]))
def test_case_and_white_space_always_fold(text: str, change: str) -> None:
    changed = {"upper": text.upper(), "space": text.replace(" ", "  "), "lines": f"  {text} \n"}[change]
    assert fold_key("", text) == fold_key("", changed)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("未開封の商品は三十日以内に返品できます。", "ja"),
        ("Unopened goods go back within thirty days of the day of purchase.", "en"),
        ("Die ungeöffnete Ware kann innerhalb von dreißig Tagen zurückgegeben werden.", "de"),
        ("未开封的商品可以在购买后三十天内退货，请保留收据并联系我们的客户服务中心办理手续。", "zh"),
    ],
)
def test_languages_are_told(text: str, language: str) -> None:
    assert document_language(text) == language
    assert passage_language(text, "xx") == language


def test_what_does_not_tell_has_the_document_s_language() -> None:
    for text in ("30", "| S | 500 |", "東京都港区", "OK.", ""):
        assert passage_language(text, "ja") == "ja"


def put(
    catalog: Catalog, store: VectorStore, name: str, text: str, chunking: Chunking | None = None
) -> tuple[str, int]:
    embedder = WordEmbedder()
    incoming = Incoming(f"/{name}", name, text.encode(), chunking=chunking)
    outcome = put_document(catalog, store, incoming, lambda: embedder)
    return outcome.change, outcome.embedded


def rows(catalog: Catalog, store: VectorStore) -> dict[str, list[Passage]]:
    with catalog.session() as session:
        found = session.execute(
            select(Document.filename, Passage)
            .join(Document)
            .where(Passage.store_id == store.id)
            .order_by(Passage.ordinal)
        ).all()
    return {name: [passage for each, passage in found if each == name] for name, _ in found}


def test_passages_know_their_tokens_language_and_fold(catalog: Catalog, store: VectorStore) -> None:
    notice = "## Notice\n\nPlease keep the receipt of your purchase."
    put(catalog, store, "a.md", f"# Returns\n\nGoods go back.\n\n{notice}")
    put(
        catalog,
        store,
        "b.md",
        f"# Repairs\n\n{notice.replace('Please keep the', 'Keep')}\n\n## 返品\n\nお米は返品できません。",
    )
    found = rows(catalog, store)
    assert found["a.md"][1].fold_key == found["b.md"][0].fold_key != found["a.md"][0].fold_key
    assert [passage.language for passage in found["b.md"]] == ["en", "ja"]
    assert all(passage.tokens > 2 and len(passage.fold_key) == 32 for each in found.values() for passage in each)
    with catalog.session() as session:
        languages = {each.filename: each.language for each in session.scalars(select(Document))}
    assert languages == {"a.md": "en", "b.md": "ja"}  # Japanese where there is some
    before = found["b.md"][0].fold_key
    remove_documents(catalog, store, ["a.md"])
    assert rows(catalog, store)["b.md"][0].fold_key == before


def test_other_sizes_cut_a_document_anew(catalog: Catalog, store: VectorStore) -> None:
    text = "# Days\n\n## Short\n\nOne.\n\n## Long\n\n" + "".join(
        f"On day {day} the shop opens at nine. " for day in range(60)
    )
    assert put(catalog, store, "days.md", text)[0] == "added"
    assert put(catalog, store, "days.md", text) == ("unchanged", 0)
    before = rows(catalog, store)["days.md"]
    change, embedded = put(catalog, store, "days.md", text, Chunking(100, 20))
    after = rows(catalog, store)["days.md"]
    assert change == "changed" and len(after) > len(before) and embedded == len(after) - 1
    assert after[0].id == before[0].id and max(passage.tokens for passage in after) <= 100
    assert put(catalog, store, "days.md", text, Chunking(100, 20)) == ("unchanged", 0)
    assert put(catalog, store, "days.md", text) == ("changed", 0)  # the vectors of the earlier cut are there
    with catalog.session() as session:
        session.get_one(VectorStore, store.id).chunking = {"max_tokens": 7}
        session.flush()
        with pytest.raises(InvalidInput, match="max_tokens is 7"):
            put_document(catalog, session.get_one(VectorStore, store.id), Incoming("/x", "x.md", b"x"), WordEmbedder)
        session.rollback()


def test_context_grows_within_the_document_and_the_section(
    catalog: Catalog, store: VectorStore, tenant: Tenant
) -> None:
    long = "".join(f"On day {day} the shop opens at nine. " for day in range(60))
    text = f"# Days 日々\n\nFirst.\n\n## Long\n\n{long}\n\n## Last\n\nEnd."
    put(catalog, store, "days.md", text, Chunking(100, 20))
    put(catalog, store, "other.md", "# Other\n\nWords.")
    passages = rows(catalog, store)["days.md"]
    lone = rows(catalog, store)["other.md"][0]
    assert len(passages) > 6
    with catalog.session() as session:
        near = widen(session, tenant.id, [passages[2].id, lone.id, 10**9], "neighbours", 1000)
        assert set(near) == {passages[2].id, lone.id} and near[lone.id][2] == "Words."
        start, end, part = near[passages[2].id]
        assert (start, end) == (passages[1].start, passages[3].end) and part == text[start:end]
        both = widen(session, tenant.id, [passages[2].id, passages[3].id], "neighbours", 1000)
        assert both[passages[2].id] == both[passages[3].id]
        assert both[passages[2].id][:2] == (passages[1].start, passages[4].end)
        whole = widen(session, tenant.id, [passages[3].id], "section", 10_000)[passages[3].id]
        assert whole[2] == long.strip()
        tight = widen(session, tenant.id, [passages[3].id], "section", 250)[passages[3].id]
        assert passages[2].start <= tight[0] and tight[1] == passages[4].end
        assert widen(session, tenant.id, [passages[3].id], "section", 1)[passages[3].id][2] == passages[3].text
        assert widen(session, "another", [passages[3].id], "section", 1000) == {}


def test_the_command_sets_and_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from ryorin_index.cli import index

    monkeypatch.setenv("RYORIN_HOME", str(tmp_path))
    refused = CliRunner().invoke(index, ["create", "x", "--tenant", "t", "--max-tokens", "50"])
    assert isinstance(refused.exception, InvalidInput) and refused.exception.param == "max_tokens"
