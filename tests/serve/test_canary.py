"""Canary and shadow as a client and the engine see them: who gets which release, and what never reaches the client."""

from __future__ import annotations

from typing import Any

import pytest
from lazily import Lazily
from scripted_house import House
from sqlalchemy import update

from ryorin.catalog.tables import Adapter, Release
from ryorin.catalog.tenants import get_tenant
from ryorin.release import get_release, promote
from ryorin.traffic import traffic_status
from ryorin_serve import traffic

openai = Lazily("openai")

QUESTION = [{"role": "user", "content": "How long does a refund take?"}]
ANSWER = "Refunds take 30 days [2]."
ADAPTER = "support-0123456789ab"


def ask(house: House, model: str = "support", messages: Any = None, **more: Any) -> Any:
    return house.client().chat.completions.create(model=model, messages=messages or QUESTION, **more)


def system_of(house: House, place: int = -1) -> str:
    return house.engine.requests[place]["messages"][0]["content"].partition("\n")[0]


def test_the_same_asker_gets_the_same_release_and_a_larger_share_keeps_whom_it_had(house: House):
    version = house.release("support", system="Canary.", promote=False)
    small = house.askers(version, 0.3, inside=True)
    large = [asker for asker in house.askers(version, 0.6, inside=True, count=20) if asker not in small][:2]
    none = house.askers(version, 0.6, inside=False)

    def answered_by_the_canary() -> set[str]:
        found = set()
        for user in (*small, *large, *none):
            ask(house, user=user)
            if system_of(house) == "Canary.":
                found.add(user)
        return found

    house.canary(version, 0.3)
    first = answered_by_the_canary()
    assert first == {*small, *house.askers(version, 0.3, inside=True, count=20)} & {*small, *large, *none}
    assert answered_by_the_canary() == first
    house.canary(version, 0.6)
    assert answered_by_the_canary() == {*small, *large}
    rows = house.logs(18)
    with house.catalog.session() as session:
        canary = get_release(session, get_tenant(session, "support"), version).id
    assert {row.part for row in rows if row.release_id == canary} == {"canary"}
    assert {row.part for row in rows if row.release_id != canary} == {"live"}


def test_a_conversation_stays_with_its_release_when_nobody_is_named(house: House):
    version = house.release("support", system="Canary.", promote=False)
    house.canary(version, 0.5)
    for inside, system in ((True, "Canary."), (False, "You are the support desk.")):
        for question in house.askers(version, 0.5, "conversation", inside=inside):
            messages = [{"role": "user", "content": question}]
            ask(house, messages=messages)
            assert system_of(house) == system
            ask(
                house,
                messages=[*messages, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "So?"}],
            )
            assert system_of(house) == system


@pytest.mark.parametrize("field", ["safety_identifier", "user", "prompt_cache_key"])
def test_who_asks_is_taken_from_the_fields_that_name_him(house: House, field: str):
    version = house.release("support", system="Canary.", promote=False)
    house.canary(version, 0.5)
    for inside, system in ((True, "Canary."), (False, "You are the support desk.")):
        for asker in house.askers(version, 0.5, field, inside=inside):
            for question in ("One", "Another"):
                ask(house, messages=[{"role": "user", "content": question}], extra_body={field: asker})
                assert system_of(house) == system


def test_a_version_that_is_named_is_no_matter_of_shares(house: House):
    version = house.release("support", system="Canary.", promote=False)
    house.canary(version, 0.999999)
    ask(house, model="support@1")
    assert system_of(house) == "You are the support desk."
    ask(house, model=f"support@{version}")
    assert system_of(house) == "Canary."
    assert [row.part for row in house.logs(2)] == ["pinned", "pinned"]


def test_another_tenants_traffic_is_not_split(house: House):
    house.canary(house.release("support", system="Canary.", promote=False), 0.999999)
    house.client("people").chat.completions.create(model="people", messages=QUESTION)
    assert system_of(house) == "You are the people desk."


@pytest.mark.parametrize("stream", [False, True])
def test_a_canary_that_cannot_be_loaded_costs_no_answer(house: House, stream: bool):
    folder = house.adapter_folder(ADAPTER)
    version = house.release("support", system="Canary.", adapter=ADAPTER, promote=False)
    house.canary(version, 0.999999)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(b"altered")

    def text() -> str:
        if not stream:
            return ask(house).choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in ask(house, stream=True))

    assert text() == ANSWER and text() == ANSWER
    assert system_of(house) == "You are the support desk." and not house.engine.loads
    weights.write_bytes(b"weights")
    assert text() == ANSWER and not house.engine.loads  # it is left alone for a while
    rows = house.logs(3)
    assert {row.part for row in rows} == {"live"} and {row.status for row in rows} == {"ok"}
    assert all("not what was trained" in row.reason for row in rows)
    with house.catalog.session() as session:
        status = traffic_status(session, get_tenant(session, "support"), 3600)
    assert [(one.part, one.requests, one.passed) for one in status] == [("live", 3, 0), ("canary", 0, 3)]


def test_a_canary_that_is_mended_answers_again(house: House, monkeypatch):
    monkeypatch.setattr(traffic, "LEFT_ALONE_S", 0.0)
    house.adapter_folder(ADAPTER)
    house.canary(house.release("support", system="Canary.", adapter=ADAPTER, promote=False), 0.999999)
    house.engine.refuse_load = (400, "the rank is above the limit")
    ask(house)
    assert system_of(house) == "You are the support desk."
    house.engine.refuse_load = None
    ask(house)
    assert (system_of(house), house.engine.requests[-1]["model"]) == ("Canary.", ADAPTER)
    passed, answered = house.logs(2)
    assert "rank is above" in passed.reason and (answered.part, answered.passed_release_id) == ("canary", None)


def test_a_canary_of_another_base_or_a_deleted_adapter_costs_no_answer(house: House):
    house.adapter_folder(ADAPTER)
    house.canary(house.release("support", adapter=ADAPTER, system="Canary.", promote=False), 0.999999)
    with house.catalog.session() as session:
        session.execute(update(Adapter).values(deleted_at=1.0))
    assert ask(house).choices[0].message.content == ANSWER
    with house.catalog.session() as session:
        session.execute(update(Adapter).values(deleted_at=None))
        session.execute(update(Release).where(Release.version == 2).values(base_digest="f" * 64))
    assert ask(house).choices[0].message.content == ANSWER
    deleted, based = house.logs(2)
    assert "was deleted" in deleted.reason and "base model" in based.reason


def test_a_bad_request_is_the_clients_fault_and_not_the_canarys(house: House):
    house.canary(house.release("support", system="Canary.", promote=False), 0.999999)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(house, messages=[{"role": "user", "content": "word " * 500}])
    assert caught.value.code == "context_length_exceeded"
    ask(house)
    assert system_of(house) == "Canary."


def test_promoting_the_canary_gives_it_all_traffic(house: House):
    version = house.release("support", system="Canary.", promote=False)
    house.canary(version, 0.01)
    with house.catalog.session() as session:
        tenant = get_tenant(session, "support")
        promote(session, tenant, get_release(session, tenant, version))
    for n in range(5):
        ask(house, user=f"user {n}")
        assert system_of(house) == "Canary."
    assert {row.part for row in house.logs(5)} == {"live"}
