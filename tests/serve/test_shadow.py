"""Shadows: answered once more and logged; never shown, never in the way, and gone with the server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_house import House, built, eventually

from ryorin.catalog.tables import RequestLog
from ryorin.catalog.tenants import get_tenant
from ryorin.traffic import traffic_status
from ryorin_serve import app, relay, shadow

QUESTION = [{"role": "user", "content": "How long does a refund take?"}]
ANSWER = "Refunds take 30 days [2]."
ADAPTER = "support-0123456789ab"


@pytest.fixture(autouse=True)
def counted_anew(monkeypatch):
    monkeypatch.setattr(relay, "COUNTED_S", 0.0)


def ask(house: House, stream: bool = False, **more: Any) -> str:
    answer = house.client().chat.completions.create(model="support", messages=QUESTION, stream=stream, **more)
    if not stream:
        return answer.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer)


def pair(house: House, count: int = 2) -> tuple[RequestLog, RequestLog]:
    """The row of the answer and that of its shadow."""
    rows = house.logs(count)
    (unseen,) = [row for row in rows if row.part == "shadow"]
    (shown,) = [row for row in rows if row.id == unseen.shadow_of]
    return shown, unseen


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_request_is_answered_once_more_and_only_logged(house: House, stream: bool):
    house.adapter_folder(ADAPTER)
    house.shadow(house.release("support", system="Shadow.", adapter=ADAPTER, promote=False))
    house.engine.script = lambda body: "From the shadow [1]." if body["model"] == ADAPTER else ANSWER
    assert ask(house, stream, temperature=0.5, user="u") == ANSWER
    shown, unseen = pair(house)
    live, again = house.engine.requests
    assert (live["model"], again["model"], again["temperature"]) == ("ryorin-base", ADAPTER, 0.5)
    assert again["messages"][0]["content"].startswith("Shadow.") and "stream" not in again
    assert (shown.part, shown.answer, shown.shadow_of) == ("live", ANSWER, None)
    assert (unseen.answer, unseen.status, unseen.messages) == ("From the shadow [1].", "ok", QUESTION)
    assert [passage["passage_id"] for passage in unseen.passages] == [1, 2, 3]
    assert (unseen.tenant_id, unseen.key_id, unseen.completion_tokens) == (shown.tenant_id, shown.key_id, 4)
    assert unseen.release_id != shown.release_id and unseen.total_ms > 0


def test_a_share_of_the_askers_is_shadowed_and_a_named_version_never(house: House):
    version = house.release("support", system="Shadow.", promote=False)
    house.shadow(version, 0.5)
    house.client().chat.completions.create(model="support@1", messages=QUESTION)
    for outside in house.askers(version, 0.5, inside=False):
        ask(house, user=outside)
    (inside,) = house.askers(version, 0.5, inside=True, count=1)
    ask(house, user=inside)
    rows = house.logs(5)
    assert [row.part for row in rows] == ["pinned", "live", "live", "live", "shadow"]
    assert rows[4].shadow_of == rows[3].id


def test_what_goes_wrong_in_a_shadow_is_in_its_row_alone(house: House):
    folder = house.adapter_folder(ADAPTER)
    house.shadow(house.release("support", adapter=ADAPTER, promote=False))
    (folder / "adapter_model.safetensors").write_bytes(b"altered")
    assert ask(house) == ANSWER
    shown, unseen = pair(house)
    assert (shown.status, shown.reason) == ("ok", None)
    assert unseen.status == "error" and "not what was trained" in unseen.reason
    with house.catalog.session() as session:
        live, status = traffic_status(session, get_tenant(session, "support"), 3600)
    assert (live.requests, live.errors, status.part, status.requests, status.errors) == (1, 0, "shadow", 1, 1)


def test_a_bug_in_a_shadow_reaches_nobody(house: House, monkeypatch):
    house.shadow(house.release("support", promote=False))
    search = house.shelf.search
    calls: list[int] = []

    def searched(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return search(*given, **named) if len(calls) == 1 else 1 / 0

    monkeypatch.setattr(house.shelf, "search", searched)
    assert ask(house) == ANSWER
    _, unseen = pair(house)
    assert unseen.status == "error" and unseen.reason.startswith("ZeroDivisionError")


def test_a_shadow_waits_while_requests_wait_in_the_engine_and_is_dropped_in_the_end(house: House, monkeypatch):
    house.shadow(house.release("support", promote=False))
    house.engine.waiting = 3
    assert ask(house) == ANSWER
    house.logs(1)
    eventually(lambda: house.engine.counted > 2)
    assert len(house.engine.requests) == 1
    house.engine.waiting = 0
    _, unseen = pair(house)
    assert unseen.status == "ok"
    monkeypatch.setattr(shadow, "PATIENCE_S", 0.0)
    house.engine.waiting = 3
    ask(house, user="another")
    dropped = eventually(lambda: [row for row in house.logs(4) if row.status == "dropped"])[0]
    assert (dropped.reason, dropped.answer, dropped.messages) == ("3 requests waited in the engine", "", [])
    assert dropped.shadow_of in {row.id for row in house.logs(4) if row.messages == QUESTION}


def test_no_more_than_so_many_wait_and_nobody_waits_for_them(house: House, monkeypatch):
    monkeypatch.setattr(shadow, "BACKLOG", 3)
    house.adapter_folder(ADAPTER)
    house.shadow(house.release("support", adapter=ADAPTER, promote=False))
    house.engine.load_delay_s = 30.0  # the shadows stand still; the live release needs no adapter
    for _ in range(5):
        assert ask(house) == ANSWER
    rows = house.logs(7)
    assert [row.status for row in rows if row.part == "shadow"] == ["dropped", "dropped"]
    assert rows[-1].reason == "3 shadows wait already"
    house.engine.stop()


@pytest.fixture
def small_house(tmp_path, empty_sqlite, options, monkeypatch) -> Iterator[House]:
    """A house where each request costs, as on a CPU."""
    monkeypatch.setattr(shadow, "QUIET_S", 0.05)
    with built(tmp_path / "home", empty_sqlite, options, shadows_beside=False) as house:
        yield house


def test_on_a_cpu_a_shadow_waits_for_all_that_are_being_answered(small_house: House):
    house = small_house
    house.shadow(house.release("support", system="Shadow.", promote=False))
    house.adapter_folder(ADAPTER)
    slow = house.release("support", adapter=ADAPTER, promote=False)
    house.engine.load_delay_s = 0.7
    with ThreadPoolExecutor(1) as threads:
        client = house.client()
        asked = threads.submit(client.chat.completions.create, model=f"support@{slow}", messages=QUESTION)
        eventually(lambda: house.engine.loading)
        assert ask(house) == ANSWER  # its shadow could begin now, were the other not on its way
        asked.result()
    pair(house, 3)
    assert ADAPTER in [body["model"] for body in house.engine.requests[:2]]
    assert house.engine.requests[2]["messages"][0]["content"].startswith("Shadow.")


def test_on_a_cpu_quiet_begins_when_the_last_answer_is_complete(small_house: House, monkeypatch):
    house = small_house
    house.shadow(house.release("support", system="Shadow.", promote=False))
    now, looked = [0.0], []

    def monotonic() -> float:
        looked.append(now[0])
        return now[0]

    monkeypatch.setattr(shadow, "time", SimpleNamespace(monotonic=monotonic, perf_counter=time.perf_counter))
    monkeypatch.setattr(shadow, "QUIET_S", 5.0)
    house.engine.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(ask, house)
        eventually(lambda: house.engine.requests)
        now[0] = 10.0  # the answer takes longer than the quiet must last
        house.engine.gate.set()
        assert asked.result() == ANSWER
    eventually(lambda: looked.count(10.0) > 10)
    assert len(house.engine.requests) == 1
    now[0] = 20.0
    _, unseen = pair(house)
    assert unseen.status == "ok"


def test_on_a_cpu_a_shadow_is_broken_off_when_somebody_asks_and_begun_anew(small_house: House):
    house = small_house
    house.shadow(house.release("support", system="Shadow.", promote=False))

    def systems() -> list[str]:
        return [body["messages"][0]["content"].partition("\n")[0] for body in house.engine.requests]

    live = "You are the support desk."
    house.engine.pieces = ["Yes."]  # a stream of one piece goes by the gate, a whole answer does not
    house.engine.gate.clear()
    assert ask(house, stream=True) == "Yes."
    eventually(lambda: len(house.engine.requests) == 2)
    assert ask(house, stream=True, user="another") == "Yes."
    assert house.engine.closed_early.wait(30)
    house.engine.gate.set()
    rows = house.logs(4)
    assert systems() == [live, "Shadow.", live, "Shadow.", "Shadow."]
    assert [row.status for row in rows if row.part == "shadow"] == ["ok", "ok"]


@pytest.mark.parametrize(("load_s", "patience_s", "status"), [(0.4, 30.0, "ok"), (30.0, 0.1, "cancelled")])
def test_shadows_end_before_the_server_does(
    tmp_path, empty_sqlite, options, monkeypatch, load_s: float, patience_s: float, status: str
):
    monkeypatch.setattr(app, "UNWIND_S", patience_s)
    with built(tmp_path / "home", empty_sqlite, options) as house:
        house.adapter_folder(ADAPTER)
        house.shadow(house.release("support", adapter=ADAPTER, promote=False))
        house.engine.load_delay_s = load_s
        assert ask(house) == ANSWER
    with house.catalog.session() as session:
        (row,) = session.query(RequestLog).filter_by(part="shadow")
    assert (row.status, row.answer) == (status, ANSWER if status == "ok" else "")
    house.catalog.close()


def test_an_answer_that_failed_is_not_shadowed(house: House):
    house.shadow(house.release("support", promote=False))
    house.engine.cut_after = 2
    with pytest.raises(Exception, match="stopped in the middle"):
        ask(house, stream=True)
    house.engine.cut_after = None
    ask(house)
    rows = house.logs(3)
    assert [(row.part, row.status) for row in rows[:2]] == [("live", "error"), ("live", "ok")]
    assert rows[2].shadow_of == rows[1].id
