"""Questions that only make sense after those before them: what is searched for, and what happens when nobody says."""

from __future__ import annotations

import threading

import pytest
from lazily import Lazily
from scripted_house import House, eventually
from sqlalchemy import select
from test_gateway import ask
from test_layout import with_retrieval

from ryorin.catalog.tables import Usage, VectorStore
from ryorin.prompt import REWRITING
from ryorin.release import Retrieval
from ryorin_serve import answering

openai = Lazily("openai")

FOLLOWING = [
    {"role": "user", "content": "Can I return a lamp?"},
    {"role": "assistant", "content": "Yes, unused."},
    {"role": "user", "content": "And how long do I have? <|im_end|>"},
]
REWRITTEN = "How long may a lamp be returned?"


@pytest.fixture
def rewriting(house: House) -> House:
    with_retrieval(house, Retrieval(query="rewritten"))
    house.engine.script = lambda body: f' "{REWRITTEN}"\n' if is_rewriting(body) else "In 30 days [1]."
    return house


def is_rewriting(body: dict) -> bool:
    return body["messages"][0]["content"] == REWRITING


def searched(house: House) -> list[str]:
    return [query for _, _, query, _ in house.shelf.queries]


def test_a_question_that_refers_to_another_is_searched_for_in_words_that_stand_alone(rewriting: House):
    answer = ask(rewriting, messages=FOLLOWING)
    asked, answered = rewriting.engine.requests
    assert searched(rewriting) == [REWRITTEN]
    assert asked["model"] == "ryorin-base" and asked["cache_salt"] == answered["cache_salt"]
    said = asked["messages"][1]["content"]
    assert "user: Can I return a lamp?\nassistant: Yes, unused." in said
    assert "Last question: And how long do I have?" in said and "<|im_end|>" not in said
    assert answered["messages"][1:] == [*FOLLOWING[:2], answered["messages"][3]], "the conversation stays as it was"
    assert answer.choices[0].message.context["intent"] == REWRITTEN


def test_one_question_is_not_rewritten(rewriting: House):
    answer = ask(rewriting)
    assert searched(rewriting) == ["How long does a refund take?"] and len(rewriting.engine.requests) == 1
    assert "intent" not in answer.choices[0].message.context


def test_a_long_question_stands_alone(rewriting: House):
    long = "An error says: " + "x" * 600 + " What now?"
    ask(rewriting, messages=[*FOLLOWING[:2], {"role": "user", "content": long}])
    assert searched(rewriting) == [long] and len(rewriting.engine.requests) == 1


def test_nothing_is_rewritten_where_nothing_is_searched_or_the_release_does_not_ask(rewriting: House):
    ask(rewriting, messages=FOLLOWING, extra_body={"retrieval": {"off": True}})
    with_retrieval(rewriting, Retrieval())
    ask(rewriting, messages=FOLLOWING)
    assert not any(map(is_rewriting, rewriting.engine.requests))
    assert searched(rewriting) == [FOLLOWING[-1]["content"]]


@pytest.mark.parametrize("said", ["", '""', "slowly"])
def test_without_an_answer_the_question_is_searched_for_as_it_is(rewriting: House, monkeypatch, said: str):
    monkeypatch.setattr(answering, "REWRITE_S", 0.3)

    def script(body: dict) -> str:
        if is_rewriting(body):
            rewriting.engine.gate.clear() if said == "slowly" else None
            return said
        return "In 30 days [1]."

    rewriting.engine.script = script
    if said == "slowly":
        rewriting.engine.gate.clear()
        threading.Timer(0.6, rewriting.engine.gate.set).start()
    assert ask(rewriting, messages=FOLLOWING).choices[0].message.content
    assert searched(rewriting) == [FOLLOWING[-1]["content"]]


def test_a_response_says_what_was_searched_for(rewriting: House):
    with rewriting.catalog.session() as session:
        (store,) = session.scalars(select(VectorStore.id).where(VectorStore.tenant_id == rewriting.ids["support"]))
    search = {"type": "file_search", "vector_store_ids": [store]}
    answer = rewriting.client().responses.create(model="support", input=FOLLOWING, tools=[search])
    assert [item.queries for item in answer.output if item.type == "file_search_call"] == [[REWRITTEN]]
    assert searched(rewriting) == [REWRITTEN]


def test_a_shadow_rewrites_by_its_own_release(house: House):
    house.engine.script = lambda body: REWRITTEN if is_rewriting(body) else "In 30 days [1]."
    with_retrieval(house, Retrieval(query="rewritten"))
    with_retrieval(house, Retrieval())
    house.shadow(2)
    ask(house, messages=FOLLOWING)
    rows = house.logs(2)
    assert {row.part for row in rows} == {"live", "shadow"}
    eventually(lambda: searched(house) == [FOLLOWING[-1]["content"], REWRITTEN])


def test_its_tokens_are_counted(rewriting: House):
    ask(rewriting, messages=FOLLOWING)
    ask(rewriting)
    counted = []

    def look() -> bool:
        with rewriting.catalog.session() as session:
            counted[:] = [sum(row.tokens for row in session.query(Usage) if len(row.window) == len("2026-11"))]
        return counted[0] == 3 * 15

    eventually(look)
