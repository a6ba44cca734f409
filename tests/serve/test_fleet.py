"""Several engines behind one gateway: who answers, what is loaded where, and what happens when one dies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from lazily import Lazily
from scripted_house import NO_CERTIFICATES, Engine, House, built, eventually

from ryorin.errors import Unavailable
from ryorin.rollout import Rollout
from ryorin_serve import adapters, presence
from ryorin_serve.fleet import COOLDOWN_S, Fleet
from ryorin_serve.options import ServeOptions

openai = Lazily("openai")

QUESTION = [{"role": "user", "content": "How long does a refund take?"}]
ADAPTER, OTHER = "support-0123456789ab", "support-ba9876543210"


@pytest.fixture
def house(tmp_path: Path, empty_sqlite: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(presence, "LIVES_S", 0.02)
    with built(tmp_path / "home", empty_sqlite, ServeOptions(max_model_len=400), replicas=2) as house:
        yield house


def ask(house: House, **more: Any) -> Any:
    return house.client().chat.completions.create(model="support", messages=QUESTION, **more)


def asked(house: House) -> list[int]:
    return [len(engine.requests) for engine in house.engines]


def favourite(house: House) -> tuple[Engine, Engine]:
    """The engine that answers the tenant's questions while there is little to do, and the other one."""
    ask(house)
    first, second = sorted(house.engines, key=lambda engine: -len(engine.requests))
    assert (len(first.requests), len(second.requests)) == (1, 0)
    return first, second


# Who answers


def test_a_tenants_questions_stay_with_one_engine_while_it_has_room(house: House):
    first, second = favourite(house)
    for _ in range(5):
        ask(house)
    assert (len(first.requests), len(second.requests)) == (6, 0)


def test_many_at_once_spread(house: House):
    for engine in house.engines:
        engine.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, house) for _ in range(8)]
        eventually(lambda: sum(asked(house)) == 8)
        assert min(asked(house)) >= 3, "neither has more than a quarter above its share"
        for engine in house.engines:
            engine.gate.set()
        assert all(answer.result().choices[0].message.content for answer in answers)
    for engine in house.engines:
        engine.requests.clear()
    ask(house)
    assert sorted(asked(house)) == [0, 1], "no request is counted any longer"


def handle(state: str = "ready") -> Any:
    return SimpleNamespace(state=state, generation=1, retry_after_s=3.0, url="http://nowhere")


def fleet_of(*engines: Any) -> Fleet:
    return Fleet(engines, None, None)  # type: ignore[arg-type]


def test_an_engine_that_goes_takes_only_its_own_keys_along():
    engines = [handle() for _ in range(4)]
    fleet, keys = fleet_of(*engines), [f"tenant-{n}" for n in range(400)]
    before = {key: fleet.choose(key).engine for key in keys}
    assert all(60 <= count <= 140 for count in Counter(map(id, before.values())).values()), "evenly, as lots fall"
    engines[2].state = "down"
    after = {key: fleet.choose(key).engine for key in keys}
    moved = {key for key in keys if after[key] is not before[key]}
    assert moved == {key for key in keys if before[key] is engines[2]}
    assert len({id(after[key]) for key in moved}) == 3, "they do not all go to the same"
    engines[2].state = "ready"
    assert {key: fleet.choose(key).engine for key in keys} == before


def test_no_engine_gets_more_than_a_quarter_above_its_share():
    fleet = fleet_of(*(handle() for _ in range(4)))
    for n in range(1, 101):
        fleet.choose("one busy tenant").in_flight += 1
        assert max(each.in_flight for each in fleet.ready) <= -(-n * 5 // 16)
    assert sum(each.in_flight for each in fleet.ready) == 100


def test_one_that_failed_is_passed_over_for_a_while(monkeypatch: pytest.MonkeyPatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    fleet = fleet_of(handle(), handle())
    first = fleet.choose("support")
    first.failed()
    other = fleet.choose("support")
    assert other is not first
    other.failed()
    assert fleet.choose("support") is first, "better one that failed than none"
    now += COOLDOWN_S + 0.1
    assert fleet.choose("support") is first
    with pytest.raises(Unavailable):
        fleet.choose("support", without=fleet.ready)


# When one dies


def test_an_engine_that_died_costs_no_answer(house: House):
    first, second = favourite(house)
    first.stop()
    assert ask(house).choices[0].message.content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in ask(house, stream=True) if chunk.choices)
    assert len(second.requests) == 2
    assert {row.status for row in house.logs(3)} == {"ok"}


def test_a_request_does_not_go_through_all_engines(tmp_path: Path, empty_sqlite: Path):
    with built(tmp_path / "home", empty_sqlite, ServeOptions(max_model_len=400), replicas=4) as house:
        for engine in house.engines:
            engine.refuse = (500, "EngineDeadError")
        with pytest.raises(openai.InternalServerError) as caught:
            ask(house)
        assert caught.value.status_code == 503 and caught.value.code == "engine_unavailable"
        assert sorted(asked(house)) == [0, 0, 1, 1]


def test_a_request_that_is_refused_is_not_asked_again(house: House):
    for engine in house.engines:
        engine.refuse = (400, "no such thing")
    with pytest.raises(openai.BadRequestError, match="no such thing"):
        ask(house)
    assert sorted(asked(house)) == [0, 1]


def test_questions_whose_clients_left_are_not_counted(house: House):
    for engine in house.engines:
        engine.gate.clear()
    for _ in range(4):
        stream = ask(house, stream=True)
        next(iter(stream))
        stream.close()
    house.logs(4)
    for engine in house.engines:
        engine.gate.set()
        engine.requests.clear()
    for _ in range(4):
        ask(house)
    assert sorted(asked(house)) == [0, 4], "none of them is in flight: all go to the favourite"


def test_a_stream_that_breaks_is_told_and_the_next_question_goes_elsewhere(house: House):
    first, second = favourite(house)
    first.cut_after = 2
    with pytest.raises(openai.APIError, match="stopped in the middle"):
        list(ask(house, stream=True))
    ask(house)
    assert (len(first.requests), len(second.requests)) == (2, 1)


def test_the_gateway_is_ready_while_one_engine_is(house: House):
    def health() -> tuple[int, str]:
        answer = httpx.get(f"{house.url}/health", verify=NO_CERTIFICATES)
        return answer.status_code, answer.json()["engine"]

    house.engines[0].state = "down"
    assert health() == (200, "ready")
    house.engines[1].state = "starting"
    assert health() == (503, "starting")
    with pytest.raises(openai.InternalServerError, match="engine is starting") as caught:
        ask(house)
    assert caught.value.response.headers["retry-after"] == "8", "as the first of them says"


# What they hold


def test_a_promotion_loads_into_every_engine(house: House):
    house.adapter_folder(ADAPTER)
    Rollout(house.catalog, wait_s=30).promote("support", house.release("support", adapter=ADAPTER, promote=False))
    assert [engine.loads for engine in house.engines] == [[ADAPTER], [ADAPTER]]


def test_an_engine_that_comes_back_gets_what_has_traffic_before_it_is_asked(house: House):
    house.adapter_folder(ADAPTER)
    house.release("support", adapter=ADAPTER)
    house.adapter_folder(OTHER)
    house.release("support", adapter=OTHER, promote=False)
    house.engines[1].restart()
    eventually(lambda: house.engines[1].adapters == {ADAPTER})
    assert asked(house) == [0, 0]


def test_an_adapter_that_nobody_uses_is_let_go(house: House, monkeypatch: pytest.MonkeyPatch):
    for name in (ADAPTER, OTHER):
        house.adapter_folder(name)
        house.release("support", adapter=name)
        ask(house)
    holding = [engine for engine in house.engines if OTHER in engine.adapters]
    monkeypatch.setattr(presence, "LET_GO_EVERY_S", 0.05)
    time.sleep(0.2)
    assert any(ADAPTER in engine.adapters for engine in house.engines), "it was asked for a moment ago"
    monkeypatch.setattr(adapters, "IDLE_S", 0.1)
    eventually(lambda: not any(ADAPTER in engine.adapters for engine in house.engines))
    assert all(OTHER in engine.adapters for engine in holding), "it is live"
    house.client().chat.completions.create(model="support@2", messages=QUESTION)  # is loaded again
