"""An engine that somebody else runs, as the gateway looks at it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from scripted_house import Engine
from test_engine import until

from ryorin_serve import external
from ryorin_serve.engine import EngineFailed
from ryorin_serve.external import LOOKS_MISSED, ExternalEngine


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(external, "LOOK_S", 0.02)


@pytest.fixture
def there() -> Iterator[Engine]:
    engine = Engine()
    engine.start()
    yield engine
    engine.stop()


def watched(
    there: Engine, work: Callable[[ExternalEngine], Awaitable[None]], *, key: str = "engine-key", tokens: int = 400
) -> list[str]:
    """Do `work` with the engine while it is looked at; what was said."""
    said: list[str] = []

    async def run() -> None:
        engine = ExternalEngine(f"{there.url}/", key, "ryorin-base", tokens, on_event=said.append)
        engine.start()
        try:
            await work(engine)
        finally:
            await engine.stop()
            await engine.stop()

    asyncio.run(run())
    return said


def test_one_that_is_there_is_ready(there: Engine):
    async def work(engine: ExternalEngine) -> None:
        assert engine.state == "starting"
        await engine.first_ready()
        assert (engine.state, engine.generation, engine.url) == ("ready", 1, there.url)

    assert watched(there, work) == [f"the engine at {there.url} is ready"]


@pytest.mark.parametrize(
    ("key", "served_as", "tokens", "why"),
    [
        ("another-key", "ryorin-base", 400, "refuses the key of RYORIN_ENGINE_KEY"),
        ("engine-key", "qwen", 400, "serves qwen, not ryorin-base; start it with 'ryorin engine'"),
        ("engine-key", "ryorin-base", 401, "takes 400 tokens, the gateway sends up to 401"),
    ],
)
def test_one_that_cannot_be_used_is_an_error_that_says_why(there: Engine, key, served_as, tokens, why):
    there.served_as = served_as

    async def work(engine: ExternalEngine) -> None:
        with pytest.raises(EngineFailed, match=why):
            await engine.first_ready()
        assert engine.state == "down"

    watched(there, work, key=key, tokens=tokens)


def test_one_that_is_put_right_is_taken(there: Engine):
    there.served_as = "qwen"

    async def work(engine: ExternalEngine) -> None:
        with pytest.raises(EngineFailed):
            await engine.first_ready()
        there.served_as = "ryorin-base"
        await until(lambda: engine.state == "ready")
        assert engine.generation == 1

    watched(there, work)


def test_one_that_does_not_answer_yet_is_waited_for(there: Engine):
    there.health = 503

    async def work(engine: ExternalEngine) -> None:
        await asyncio.sleep(0.1)
        assert engine.state == "starting"
        there.health = 200
        await engine.first_ready()

    said = watched(there, work)
    assert "answers /health with 503" in said[0] and len(said) == 2, "not with every look"


def test_one_that_went_away_and_came_back_is_another(there: Engine):
    async def work(engine: ExternalEngine) -> None:
        await engine.first_ready()
        there.health = 503
        await until(lambda: engine.state == "down")
        there.health = 200
        await until(lambda: engine.state == "ready")
        assert engine.generation == 2

    said = watched(there, work)
    assert [line.partition(" at ")[0] for line in said] == ["the engine", "waiting for the engine", "the engine"]


def test_a_single_missed_look_is_nothing(there: Engine, monkeypatch: pytest.MonkeyPatch):
    async def work(engine: ExternalEngine) -> None:
        await engine.first_ready()
        looks = 0
        trouble = engine._trouble

        async def some_missed(http):
            nonlocal looks
            looks += 1
            return OSError("no answer") if looks % LOOKS_MISSED else await trouble(http)

        monkeypatch.setattr(engine, "_trouble", some_missed)
        await until(lambda: looks > 4 * LOOKS_MISSED)
        assert (engine.state, engine.generation) == ("ready", 1)

    watched(there, work)


def test_one_that_came_back_as_another_model_is_not_asked(there: Engine):
    async def work(engine: ExternalEngine) -> None:
        await engine.first_ready()
        there.health = 503
        await until(lambda: engine.state == "down")
        there.served_as, there.health = "qwen", 200
        await asyncio.sleep(0.1)
        assert engine.state == "down"
        there.served_as = "ryorin-base"
        await until(lambda: engine.state == "ready")

    watched(there, work)
