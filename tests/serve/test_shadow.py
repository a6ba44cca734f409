"""Shadows: answered once more and logged; never shown, never in the way, and gone with the server."""

from __future__ import annotations

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


def test_a_shadow_is_dropped_while_requests_wait_in_the_engine(house: House):
    house.shadow(house.release("support", promote=False))
    house.engine.waiting = 3
    assert ask(house) == ANSWER
    shown, unseen = pair(house)
    assert (unseen.status, unseen.reason, unseen.answer) == ("dropped", "3 requests waited in the engine", "")
    assert (shown.messages, unseen.messages) == (QUESTION, [])
    assert len(house.engine.requests) == 1
    house.engine.waiting = 0
    ask(house)
    eventually(lambda: [row.status for row in house.logs(4) if row.part == "shadow"] == ["dropped", "ok"])


def test_no_more_than_so_many_at_once_and_nobody_waits_for_them(house: House):
    house.adapter_folder(ADAPTER)
    house.shadow(house.release("support", adapter=ADAPTER, promote=False))
    house.engine.load_delay_s = 30.0  # the shadows stand still; the live release needs no adapter
    for _ in range(shadow.AT_ONCE + 2):
        assert ask(house) == ANSWER
    rows = house.logs(shadow.AT_ONCE + 4)
    assert [row.status for row in rows if row.part == "shadow"] == ["dropped", "dropped"]
    assert "on their way already" in rows[-1].reason
    house.engine.stop()


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
