"""A question is waited for from its arrival to the first text of its answer, however it ends."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import openai
import pytest
from scripted_house import House, built, eventually

ASKED: dict[str, Any] = {"model": "support", "messages": [{"role": "user", "content": "When are refunds paid?"}]}


@pytest.fixture
def entered(house: House, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many waited each time somebody came, themselves included."""
    times: list[int] = []
    enter = house.foreground.enter

    def counted() -> Callable[[], None]:
        leave = enter()
        times.append(house.foreground.waiting)
        return leave

    monkeypatch.setattr(house.foreground, "enter", counted)
    return times


def test_a_stream_is_waited_for_until_its_first_text(house: House) -> None:
    house.engine.pieces = ["", "Refunds", " take 30 days."]
    house.engine.gate.clear()
    stream = house.client().chat.completions.create(**ASKED, stream=True)
    next(stream)  # the role, without text
    assert house.foreground.waiting == 1
    house.engine.gate.set()
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            assert house.foreground.waiting == 0


def test_of_two_who_wait_each_counts(house: House) -> None:
    house.engine.pieces = ["", "Refunds"]
    house.engine.gate.clear()
    streams = [house.client().chat.completions.create(**ASKED, stream=True) for _ in range(2)]
    for stream in streams:
        next(stream)
    assert house.foreground.waiting == 2
    house.engine.gate.set()
    for stream in streams:
        list(stream)
    eventually(lambda: house.foreground.waiting == 0)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_whole_answer_is_waited_for_until_it_is_there(house: House, api: str) -> None:
    house.engine.gate.clear()
    client = house.client()
    with ThreadPoolExecutor(1) as threads:
        if api == "chat":
            asked: Any = threads.submit(client.chat.completions.create, **ASKED)
        else:
            asked = threads.submit(client.responses.create, model="support", input="When?", store=False)
        eventually(lambda: house.engine.requests)
        assert house.foreground.waiting == 1
        house.engine.gate.set()
        asked.result(30)
    eventually(lambda: house.foreground.waiting == 0)


def test_who_waits_for_a_place_is_waited_for(tmp_path: Any, empty_sqlite: Any, options: Any) -> None:
    with built(tmp_path / "small", empty_sqlite, replace(options, max_running=1)) as house:
        house.engine.gate.clear()
        first = house.client().chat.completions.create(**ASKED, stream=True)
        next(first)
        next(first)
        assert house.foreground.waiting == 0
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(house.client().chat.completions.create, **ASKED)
            eventually(lambda: house.foreground.waiting == 1)
            assert len(house.engine.requests) == 1
            house.engine.gate.set()
            list(first)
            asked.result(30)
        eventually(lambda: house.foreground.waiting == 0)


def test_who_left_is_not_waited_for(house: House) -> None:
    house.engine.gate.clear()
    house.engine.pieces = ["", "Refunds"]
    stream = house.client().chat.completions.create(**ASKED, stream=True)
    next(stream)
    assert house.foreground.waiting == 1
    stream.close()
    eventually(lambda: house.foreground.waiting == 0)


def test_who_was_refused_or_got_no_answer_is_not_waited_for(house: House, entered: list[int]) -> None:
    client = house.client()
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**ASKED | {"model": "support@99"})
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**ASKED | {"messages": [{"role": "user", "content": "long " * 500}]})
    house.engine.refuse = (500, "no")
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(**ASKED)
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(**ASKED, stream=True)
    house.engine.refuse, house.engine.cut_after = None, 1
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(**ASKED, stream=True))
    eventually(lambda: house.foreground.waiting == 0)
    assert entered == [1, 1, 1, 1, 1]


def test_calls_of_tools_are_waited_for_to_their_end_at_most(house: House, entered: list[int]) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    house.engine.deltas = [{"role": "assistant", "content": None}, {"tool_calls": [call]}]
    list(house.client().chat.completions.create(**ASKED, stream=True))
    eventually(lambda: house.foreground.waiting == 0)
    assert entered == [1]
