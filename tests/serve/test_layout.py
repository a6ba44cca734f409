"""The order of passages that prompts share beginnings by."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_house import House
from test_gateway import ask

from ryorin import release as releases
from ryorin.catalog import tenants
from ryorin.catalog.tables import Prompt, VectorStore
from ryorin.release import Retrieval
from ryorin_serve.layout import Layout, Prefixes


def ordered(prefixes: Prefixes, *ids: int) -> list[int]:
    return [ids[place] for place in prefixes.ordered(ids, [1] * len(ids))]


def test_a_prompt_begins_as_one_before_it_did():
    prefixes = Prefixes()
    assert ordered(prefixes, 1, 2, 3) == [1, 2, 3], "nothing is known: by relevance"
    assert ordered(prefixes, 3, 2, 1) == [1, 2, 3]
    assert ordered(prefixes, 4, 2, 1) == [1, 2, 4]
    assert ordered(prefixes, 9, 8, 7) == [9, 8, 7]


def test_the_heaviest_beginning_is_taken():
    prefixes = Prefixes()
    ordered(prefixes, 1, 2)
    ordered(prefixes, 5, 6)
    assert [(1, 5)[place] for place in prefixes.ordered((1, 5), (10, 900))] == [5, 1]
    assert [(1, 5)[place] for place in Prefixes().ordered((1, 5), (10, 900))] == [1, 5], "of what is known"


def test_of_what_no_prompt_begins_with_the_most_used_comes_first():
    prefixes = Prefixes()
    ordered(prefixes, 1, 7)
    ordered(prefixes, 2, 7)
    assert ordered(prefixes, 3, 4, 7) == [7, 3, 4]


def test_what_was_long_ago_is_forgotten():
    prefixes = Prefixes(most=2)
    ordered(prefixes, 1, 2)
    ordered(prefixes, 3, 4)
    ordered(prefixes, 5, 6)
    assert ordered(prefixes, 2, 1) == [2, 1], "(1, 2) is forgotten"
    assert ordered(prefixes, 6, 5) == [5, 6]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5, unique=True), max_size=40))
def test_nothing_is_lost_and_nothing_is_left_behind(asked: list[list[int]]):
    prefixes = Prefixes(most=8)
    for ids in asked:
        assert sorted(ordered(prefixes, *ids)) == sorted(ids)
    assert len(prefixes._prompts) <= 8
    assert sum(prefixes._used.values()) == sum(map(len, prefixes._prompts))
    assert all(count > 0 for count in prefixes._beginnings.values())
    assert {prompt[:end] for prompt in prefixes._prompts for end in range(1, len(prompt) + 1)} == set(
        prefixes._beginnings
    )


def test_releases_do_not_share():
    layout = Layout()
    assert layout.ordered("one", (1, 2), (1, 1)) == [0, 1]
    assert layout.ordered("one", (2, 1), (1, 1)) == [1, 0]
    assert layout.ordered("two", (2, 1), (1, 1)) == [0, 1]


def test_beginnings_are_looked_at_and_not_all_orders(monkeypatch: pytest.MonkeyPatch):
    looked = 0
    longest = Prefixes._longest

    def counted(*given: Any) -> Any:
        nonlocal looked
        looked += 1
        return longest(*given)

    draw, prefixes = random.Random(0), Prefixes(most=64)
    for _ in range(200):
        ordered(prefixes, *draw.sample(range(60), 50))
    monkeypatch.setattr(Prefixes, "_longest", counted)
    ordered(prefixes, *draw.sample(range(60), 50))
    assert looked <= 64 * 50, "no more than are remembered, of 50! orders"


def with_retrieval(house: House, retrieval: Retrieval) -> None:
    with house.catalog.session() as session:
        tenant = tenants.get_tenant(session, "support")
        made = releases.create_release(
            session,
            tenant,
            base_digest=house.base.digest,
            prompt=session.get_one(Prompt, tenant.prompt_id),
            stores=session.query(VectorStore).filter_by(tenant_id=tenant.id).all(),
            retrieval=retrieval,
        )
        releases.promote(session, tenant, made)


def test_a_release_says_whether_passages_are_ordered_so(house: House):
    def shown() -> str:
        return house.engine.requests[-1]["messages"][0]["content"]

    texts = [hit.text for hit in house.shelf.hits[house.ids["support"]]]
    with_retrieval(house, Retrieval(order="shared"))
    ask(house)
    house.shelf.hits[house.ids["support"]].reverse()
    ask(house)
    assert house.engine.requests[0]["messages"] == house.engine.requests[1]["messages"], "another relevance, one prompt"
    answer = ask(house)
    (citation,) = answer.choices[0].message.context["citations"]
    assert (citation["number"], citation["content"]) == (2, texts[1]), "[2] is what stood as [2] in the prompt"
    with_retrieval(house, Retrieval())
    ask(house)
    assert shown().index(texts[2]) < shown().index(texts[0])
