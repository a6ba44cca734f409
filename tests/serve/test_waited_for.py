"""Training is told to give way from a question's arrival to the first text of its answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from scripted_house import House, eventually

from ryorin.foreground import Foreground

ASKED: dict[str, Any] = {"model": "support", "messages": [{"role": "user", "content": "When are refunds paid?"}]}


@pytest.fixture
def training(house: House) -> Iterator[Foreground]:
    """What training looks at."""
    with contextlib.closing(Foreground(house.catalog.settings.home)) as mark:
        yield mark


def test_of_a_stream_until_its_first_text(house: House, training: Foreground) -> None:
    house.engine.pieces = ["", "Refunds", " take 30 days."]
    house.engine.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        assert not training.is_waited_for()
        asked = threads.submit(house.client().chat.completions.create, **ASKED, stream=True)
        stream = asked.result(30)
        next(stream)  # the role, without text
        assert training.is_waited_for()
        house.engine.gate.set()
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                assert not training.is_waited_for()
    assert not training.is_waited_for()


def test_of_a_whole_answer_until_it_is_there(house: House, training: Foreground) -> None:
    house.engine.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(house.client().chat.completions.create, **ASKED)
        eventually(lambda: house.engine.requests)
        assert training.is_waited_for()
        house.engine.gate.set()
        asked.result(30)
    eventually(lambda: not training.is_waited_for())


def test_who_left_or_was_refused_or_got_no_answer_is_not_waited_for(house: House, training: Foreground) -> None:
    house.engine.gate.clear()
    house.engine.pieces = ["", "Refunds"]
    stream = house.client().chat.completions.create(**ASKED, stream=True)
    next(stream)
    assert training.is_waited_for()
    stream.close()
    eventually(lambda: not training.is_waited_for())
    house.engine.gate.set()
    with pytest.raises(openai.BadRequestError):
        house.client().chat.completions.create(**ASKED | {"max_tokens": 100_000})
    with pytest.raises(openai.NotFoundError):
        house.client().chat.completions.create(**ASKED | {"model": "support@99"})
    house.engine.refuse = (500, "no")
    with pytest.raises(openai.APIStatusError):
        house.client(max_retries=0).chat.completions.create(**ASKED)
    assert not training.is_waited_for()
