"""Rows get the passages that are served: kinds and their shares, the right passage, citations, what is left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tiny import PROMPT
from word_embedder import WordEmbedder, fake_embedder

from ryorin.catalog.tables import VectorStore
from ryorin.catalog.tenants import create_tenant, get_tenant
from ryorin.errors import InvalidInput, RowError
from ryorin.prompt import Message, Prompt, render
from ryorin.release import Retrieval
from ryorin.window import Window
from ryorin_index.ingest import Incoming, put_document
from ryorin_index.search import Searcher
from ryorin_index.store import create_store
from ryorin_train.data import Example
from ryorin_train.datasets.formats import load
from ryorin_train.ground.regime import Refusals, Regime, refusals_of
from ryorin_train.ground.run import Report, ground
from ryorin_train.ground.shares import Shares

NO = "That is not in the documents."
REFUSALS = Refusals({"": NO, "ja": "資料に記載がありません。"})
DOCUMENTS = {
    "returns.md": "# Returns\n\nUnopened goods go back within 30 days.\n",
    "copy.md": "# Returns\n\nUnopened goods go back within 30 days.\n",
    "opened.md": "# Opened goods\n\nOpened tableware goes back within 14 days, opened goods of cloth never.\n",
    "shipping.md": "# Shipping\n\nShipping to the islands takes 9 days.\n",
    "gifts.md": "# Gifts\n\nGift wrapping costs 300 yen and goods are wrapped by hand.\n",
    "teiki.md": "# 定期便\n\nお米は毎月10日に届きます。\n",
}
RIGHT, WRONG, NONE = Shares(1, 0, 0), Shares(0, 1, 0), Shares(0, 0, 1)


def row(question: str, answer: str, source: str | None = None, **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": said, **({"source": source} if source else {}), **more}


ISLANDS = row("How long does shipping to the islands take?", 'It says "Shipping to the islands takes 9 days" [1].')
UNOPENED = row("May unopened goods go back?", "Yes, within 30 days [1].", "returns.md")
RICE = row("お米はいつ届きますか。", "「お米は毎月10日に届きます」 [1]", "teiki.md")


def words(messages: list[Message]) -> int:
    return sum(len(message["content"].split()) for message in messages)


@dataclass
class Grounds:
    """A store of six documents, and the rows that are put on it."""

    catalog: Any
    store: VectorStore
    folder: Path
    embedder: WordEmbedder
    prompt: Prompt = PROMPT
    window: Window = field(default_factory=Window)
    retrieval: Retrieval = field(default_factory=lambda: Retrieval(top_k=3))

    def made(
        self,
        rows: Sequence[dict[str, Any]],
        shares: Shares = RIGHT,
        refusals: Refusals | None = REFUSALS,
        seed: int = 0,
        **changes: Any,
    ) -> tuple[list[Example], Report]:
        path = self.folder / "rows.jsonl"
        path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows), encoding="utf-8")
        regime = Regime(self.store.tenant_id, (self.store.id,), self.retrieval, self.prompt, self.window, words)
        searcher = Searcher(self.catalog, lambda _: self.embedder)
        try:
            return ground(
                self.catalog,
                searcher,
                replace(regime, **changes),
                path.name,
                load(path).rows,
                shares,
                refusals,
                seed,
            )
        finally:
            searcher.close()

    def one(self, given: dict[str, Any], shares: Shares = RIGHT, **changes: Any) -> Example:
        rows, report = self.made([given], shares, **changes)
        assert not report.left_out
        (made,) = rows
        return made

    def reason(self, given: dict[str, Any], shares: Shares = RIGHT, **changes: Any) -> str:
        rows, report = self.made([given], shares, **changes)
        assert not rows
        ((line, reason),) = report.left_out
        assert line == 1
        return reason


@pytest.fixture
def grounds(sqlite: Any, tmp_path: Path) -> Grounds:
    embedder = WordEmbedder()
    with sqlite.session() as session:
        store = create_store(session, create_tenant(session, "support"), "handbook", fake_embedder())
    for name, text in DOCUMENTS.items():
        put_document(sqlite, store, Incoming(name, name, text.encode()), lambda: embedder)
    return Grounds(sqlite, store, tmp_path, embedder)


def texts(made: Example) -> list[str]:
    return [passage.text for passage in made.passages or ()]


def cited(made: Example) -> str:
    """The passage that the answer's marker names."""
    answer = made.messages[-1]["content"]
    (number,) = [n for n in range(1, 9) if f"[{n}]" in answer]
    return texts(made)[number - 1]


@pytest.mark.parametrize("given", [ISLANDS, UNOPENED, RICE])
def test_the_right_passage_stands_among_what_is_found_and_its_citation_moves_to_it(
    grounds: Grounds, given: dict[str, Any]
) -> None:
    made = grounds.one(given)
    assert len(texts(made)) == 3  # with distractors
    assert ("9 days" in cited(made)) or ("30 days" in cited(made)) or ("毎月10日" in cited(made))
    before = given["messages"][-1]["content"]
    assert made.messages[-1]["content"].split("[")[0] == before.split("[")[0]
    assert made.learned == (False, True)
    searched = Searcher(grounds.catalog, lambda _: grounds.embedder)
    found = searched.search(
        grounds.store.tenant_id, [grounds.store.id], given["messages"][0]["content"], retrieval=grounds.retrieval
    )
    searched.close()
    assert texts(made) == [hit.text for hit in found]


def test_passages_come_in_any_order_where_the_release_orders_them_for_the_cache(grounds: Grounds) -> None:
    best = [grounds.one(given) for given in (ISLANDS, UNOPENED, RICE)]
    grounds.retrieval = Retrieval(top_k=3, order="shared")
    orders = [[grounds.one(given, seed=seed) for given in (ISLANDS, UNOPENED, RICE)] for seed in range(3)]
    for made in orders:
        for first, other in zip(best, made, strict=True):
            assert sorted(texts(first)) == sorted(texts(other))
            assert cited(first) == cited(other), "the citation moves with its passage"
    assert len({tuple(texts(made[0])) for made in [best, *orders]}) > 1
    again = [grounds.one(given, seed=2) for given in (ISLANDS, UNOPENED, RICE)]
    assert list(map(texts, again)) == list(map(texts, orders[2])), "by the seed alone"


def test_only_wrong_passages_and_the_refusal(grounds: Grounds) -> None:
    made = grounds.one(UNOPENED, WRONG)
    assert len(texts(made)) == 3 and made.messages[-1]["content"] == NO
    assert not any("30 days" in text for text in texts(made))  # nor of the document that says the same
    assert grounds.one(RICE, WRONG).messages[-1]["content"] == "資料に記載がありません。"


def test_nothing_found_and_the_refusal(grounds: Grounds) -> None:
    made = grounds.one(UNOPENED, NONE)
    assert made.passages == () and made.messages[-1]["content"] == NO


def test_a_right_passage_that_retrieval_missed_is_put_in(grounds: Grounds) -> None:
    given = row("What about gift wrapping, goods, tableware and cloth?", "Up to 9 days [1].", "shipping.md")
    rows, report = grounds.made([given], retrieval=Retrieval(top_k=2))
    assert (report.retrieved, report.put_in) == (0, 1)
    assert len(texts(rows[0])) == 2 and "9 days" in cited(rows[0])


def test_kinds_come_in_their_shares_and_stay_when_rows_are_added(grounds: Grounds) -> None:
    rows = [
        row(f"Question {n}: may unopened goods go back?", "Yes, within 30 days [1].", "returns.md") for n in range(80)
    ]
    shares = Shares(0.5, 0.25, 0.25)
    some, _ = grounds.made(rows[:40], shares)
    more, report = grounds.made(rows, shares)
    assert [each.content for each in more[:40]] == [each.content for each in some]
    again, _ = grounds.made(rows, shares)
    assert [each.content for each in again] == [each.content for each in more]
    other, _ = grounds.made(rows, shares, seed=1)
    assert [each.content for each in other] != [each.content for each in more]
    assert sum(report.made.values()) == report.rows_out == 80 and report.rows == report.answers == 80
    assert 28 <= report.made["right"] <= 52 and 10 <= report.made["wrong"] <= 30 and 10 <= report.made["none"] <= 30
    kinds = {"right": 0, "wrong": 0, "none": 0}
    for each in more:
        kinds["none" if each.passages == () else "wrong" if each.messages[-1]["content"] == NO else "right"] += 1
    assert kinds == dict(report.made)


def test_an_answer_that_refuses_or_needs_no_documents_stays(grounds: Grounds) -> None:
    rows, report = grounds.made([row("Is there a car park?", NO), row("Thank you!", "You are welcome.", passages=[])])
    assert [each.messages[-1]["content"] for each in rows] == [NO, "You are welcome."]
    assert dict(report.as_they_are) == {"refusing": 1, "free": 1} and report.rows_out == 2
    assert len(texts(rows[0])) == 3


def test_several_passages_are_each_cited_where_they_stand(grounds: Grounds) -> None:
    said = '"Shipping to the islands takes 9 days" [2] and "Gift wrapping costs 300 yen" [1].'
    made = grounds.one(row("Shipping to the islands of wrapped gifts?", said))
    answer = made.messages[-1]["content"]
    for quoted in ("9 days", "300 yen"):
        number = int(answer.split(quoted)[1].split("[")[1][0])
        assert quoted in texts(made)[number - 1]


def test_a_citation_is_put_into_the_field_for_one(grounds: Grounds) -> None:
    schema = {
        "type": "object",
        "properties": {"days": {"type": "integer"}, "citation": {"type": "string", "pattern": r"^\[\d+\]$"}},
    }
    given = row("How long does shipping to the islands take?", '{"days": 9, "citation": null}', "shipping.md")
    rows, report = grounds.made([given], prompt=Prompt(system=PROMPT.system, answer_schema=schema))
    assert dict(report.citations) == {"cited": 0, "placed": 1, "uncited": 0}
    assert "9 days" in cited(rows[0]) and json.loads(rows[0].messages[-1]["content"])["days"] == 9


def test_each_answer_of_a_conversation_gets_passages_of_its_own(grounds: Grounds) -> None:
    talk = {"messages": [*UNOPENED["messages"], *ISLANDS["messages"]]}
    talk["messages"][1] = {"role": "assistant", "content": 'Yes: "Unopened goods go back within 30 days" [1].'}
    rows, report = grounds.made([talk])
    assert (report.rows, report.answers, report.rows_out) == (1, 2, 2)
    assert [each.learned for each in rows] == [(False, True), (False, False, False, True)]
    assert "30 days" in cited(rows[0]) and "9 days" in cited(rows[1])
    assert rows[1].messages[1] == rows[0].messages[1]
    assert rows[0].source == rows[1].source is not None  # no split parts them


def test_passages_that_do_not_fit_give_way_and_the_right_one_stays(grounds: Grounds) -> None:
    whole = grounds.one(UNOPENED)
    least = words(render(PROMPT, whole.messages[:-1], []))
    window = Window(max_model_len=least + 16 + 25, max_answer_tokens=16)
    made = grounds.one(UNOPENED, window=window)
    assert 1 <= len(texts(made)) < 3 and "30 days" in cited(made)
    assert words(render(PROMPT, made.messages[:-1], made.passages)) <= window.max_model_len - 16
    reason = grounds.reason(UNOPENED, window=Window(max_model_len=least + 18, max_answer_tokens=16))
    assert reason == "its right passage does not fit into the window beside the conversation"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (row("How old is the shop?", "Old.", "history.md"), "the stores have no document 'history.md'"),
        (row("How old is the shop?", "Old."), "names no source and its answer quotes nothing"),
        (row("How old is the shop?", 'It is "as old as the hills in May".'), "as old as the hills in May"),
        (row("Thanks", "See [1].", passages=[]), "take one of the two out"),
        (row("Both?", "Yes [1], and no [2].", "returns.md"), r"nothing beside [1] tells which that is"),
    ],
)
def test_what_cannot_be_grounded_is_told_and_left_out(grounds: Grounds, given: dict[str, Any], reason: str) -> None:
    assert reason in grounds.reason(given)


def test_a_short_quote_of_several_documents_needs_a_source(grounds: Grounds) -> None:
    path = Incoming("late.md", "late.md", b"# Late\n\nLate goods: within 14 days.\n")
    put_document(grounds.catalog, grounds.store, path, lambda: grounds.embedder)
    given = row("Opened tableware and late goods?", 'It says "within 14 days" [1].')
    assert "give the row its source" in grounds.reason(given)
    assert "tableware" in cited(grounds.one({**given, "source": "opened.md"}))


def test_rows_that_have_passages_and_preferences_are_refused(grounds: Grounds) -> None:
    with pytest.raises(RowError, match="has passages already"):
        grounds.made([UNOPENED, row("a?", "b", passages=[{"title": "t", "text": "x"}])])
    pair = {
        "input": {"messages": [{"role": "user", "content": "a?"}]},
        "preferred_output": [{"role": "assistant", "content": "b"}],
        "non_preferred_output": [{"role": "assistant", "content": "c"}],
    }
    with pytest.raises(InvalidInput, match="holds preferences"):
        grounds.made([pair])


def test_refusals_must_be_said_where_rows_are_to_refuse(grounds: Grounds) -> None:
    with pytest.raises(InvalidInput, match="30% of the rows are to have no right passage"):
        grounds.made([UNOPENED], Shares(), refusals=None)
    assert grounds.made([UNOPENED], RIGHT, refusals=None)[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([" "], "a refusal is empty"),
        (["No.", "Not there."], "two refusals are for every language"),
        (["ja=ない", "ja=ありません"], "two refusals are for ja"),
        (["See [1]."], "it must cite none"),
        (["No."], "breaks the tenant's answer schema"),
    ],
)
def test_refusals_that_cannot_be(given: list[str], said: str) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    with pytest.raises(InvalidInput, match=said):
        refusals_of(given, Prompt(system="s", answer_schema=schema if said.startswith("breaks") else None))


def test_a_refusal_is_that_of_the_questions_language() -> None:
    told = refusals_of(["en=No.", "ja=ありません。"], PROMPT)
    assert (told.of("Where?"), told.of("どこですか")) == ("No.", "ありません。")
    assert refusals_of(["en=No."], PROMPT).of("どこですか") == "No."


@pytest.mark.parametrize(("shares", "said"), [((0.5, 0.2, 0.1), "add up to 0.8"), ((1.2, -0.2, 0), "--right is 1.2")])
def test_shares_that_cannot_be(shares: tuple[float, float, float], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Shares(*shares)


@pytest.fixture
def on_the_command_line(
    tenant: str, sqlite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Any
) -> Path:
    """The same documents in the home of a tenant with a prompt; returns a file of rows."""
    embedder = WordEmbedder()
    monkeypatch.setattr("ryorin_index.search.open_embedder", lambda _: embedder)
    monkeypatch.setattr("ryorin_index.search.embedder_of", lambda *_: fake_embedder())
    with sqlite.session() as session:
        store = create_store(session, get_tenant(session, tenant), "handbook", fake_embedder())
    for name, text in DOCUMENTS.items():
        put_document(sqlite, store, Incoming(name, name, text.encode()), lambda: embedder)
    (tmp_path / "no.txt").write_text(NO)
    rows = [row(f"{n}: may unopened goods go back?", "Yes, within 30 days [1].", "returns.md") for n in range(20)]
    return write_rows([*rows, row("How old is the shop?", "Old.", "history.md")])


def test_a_dataset_is_kept_with_how_it_was_made(cli: Any, on_the_command_line: Path, tmp_path: Path) -> None:
    options = ("--tenant", "support", "--refusal", f"@{tmp_path / 'no.txt'}")
    ran = cli("data", "ground", str(on_the_command_line), *options, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    grounded = told["grounded"]
    assert (grounded["rows_in"], grounded["rows_out"], told["rows"], told["new"]) == (21, 20, 20, True)
    (left,) = grounded["left_out"]
    assert left["line"] == 21 and "'history.md'" in left["reason"]
    assert grounded["stores"][0]["name"] == "handbook" and grounded["release"] is None
    assert sum(grounded["made"].values()) == 20 and grounded["shares"] == {"right": 0.7, "wrong": 0.2, "none": 0.1}
    again = cli("data", "ground", str(on_the_command_line), *options, "--json")
    assert json.loads(again.out)["digest"] == told["digest"] and json.loads(again.out)["new"] is False

    shown = cli("data", "show", told["digest"][:12], "--tenant", "support")
    assert "grounded in handbook at generation" in shown.out
    plain = cli("data", "ground", str(on_the_command_line), *options, "--right", "1", "--wrong", "0", "--none", "0")
    assert plain.code == 0 and "line 21: " in plain.err and "right passage: 20 rows" in plain.err
    out = tmp_path / "out.jsonl"
    assert cli("data", "export", plain.out.strip(), str(out), "--tenant", "support").code == 0
    exported = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(exported) == 20 and all("30 days" in str(each["passages"]) for each in exported)
    refused = cli("data", "ground", plain.out.strip(), *options)
    assert refused.code != 0 and "it has passages already" in refused.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "say with --refusal what is then answered"),
        (("--right", "0.9"), "add up to 1.2"),
        (("--refusal", "No.", "--store", "nowhere"), "nowhere"),
        (("--refusal", "No.", "--release", "7"), "7"),
        (("--refusal", "@nowhere.txt"), "nowhere.txt cannot be read"),
        (("--refusal", "No.", "--tenant", "nobody"), "nobody"),
    ],
)
def test_what_is_asked_for_in_vain(cli: Any, on_the_command_line: Path, options: tuple[str, ...], said: str) -> None:
    ran = cli("data", "ground", str(on_the_command_line), "--tenant", "support", *options)
    assert ran.code != 0 and said in ran.err and "Traceback" not in ran.err
    assert json.loads(cli("data", "list", "--tenant", "support", "--json").out) == []


def test_a_tenant_without_documents_is_told_so(cli: Any, tenant: str, write_rows: Any) -> None:
    ran = cli("data", "ground", str(write_rows([UNOPENED])), "--tenant", tenant, "--refusal", "No.")
    assert ran.code != 0 and "has no vector store" in ran.err
