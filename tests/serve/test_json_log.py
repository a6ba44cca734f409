"""The server's log as lines of JSON: what is in it, and what never is."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from lazily import Lazily
from scripted_house import NO_CERTIFICATES, House, eventually

from ryorin_serve.json_log import ACCESS, log_json, redacted

openai = Lazily("openai")
KEY = "ryo-0123456789abSECRETsecretSECRETsecret_-42"


@pytest.fixture
def lines() -> Iterator[Any]:
    """What was logged so far, read."""
    loggers = [logging.getLogger(), logging.getLogger("ryorin")]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    stream = io.StringIO()
    log_json(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for logger, handlers, level in before:
        logger.handlers, logger.level = handlers, level
        logger.manager._clear_cache()  # type: ignore[attr-defined]


def requests_in(lines: Any, count: int) -> list[dict[str, Any]]:
    return eventually(lambda: found if len(found := [x for x in lines() if x["logger"] == ACCESS]) >= count else [])


def test_a_line_for_each_request_and_nothing_of_its_contents(house: House, lines):
    raw = house.client().chat.completions.with_raw_response.create(
        model="support", messages=[{"role": "user", "content": "my secret question"}]
    )
    httpx.get(f"{house.url}/v1/files?q=hidden", headers={"authorization": f"Bearer {KEY}"}, verify=NO_CERTIFICATES)
    httpx.get(f"{house.url}/health", verify=NO_CERTIFICATES)
    asked, refused = requests_in(lines, 2)
    assert (asked["tenant"], asked["method"], asked["path"], asked["status"]) == (
        ("support", "POST", "/v1/chat/completions", 200)
    )
    assert asked["request_id"] == raw.headers["x-request-id"] and asked["ms"] > 0
    assert house.keys["support"].startswith(asked["key"]) and asked["key"] != house.keys["support"]
    assert (refused["tenant"], refused["key"], refused["status"], refused["path"]) == (None, None, 401, "/v1/files")
    whole = json.dumps(lines())
    assert not [word for word in ("secret question", "30 days", "hidden", KEY, "/health") if word in whole]


def test_a_stream_is_logged_when_it_is_over(house: House, lines):
    house.engine.gate.clear()
    stream = house.client().chat.completions.create(
        model="support", messages=[{"role": "user", "content": "?"}], stream=True
    )
    next(iter(stream))
    assert not [line for line in lines() if line["logger"] == ACCESS]
    house.engine.gate.set()
    list(stream)
    assert requests_in(lines, 1)[0]["status"] == 200


def test_warnings_and_stack_traces_are_lines_without_keys(lines):
    try:
        raise ValueError(f"refused: Bearer {KEY}")
    except ValueError:
        logging.getLogger("ryorin.serve").exception("the key %s failed", KEY)
    logging.getLogger("another.library").info("chatter")
    (line,) = lines()
    assert (line["level"], line["logger"], line["message"]) == (
        ("ERROR", "ryorin.serve", "the key ryo-0123456789ab[redacted] failed")
    )
    assert "ValueError: refused: Bearer" in line["exception"] and "SECRET" not in json.dumps(line)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"key {KEY}.", "key ryo-0123456789ab[redacted]."),
        ("sk-proj-abcdefgh1234", "[redacted]"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer [redacted]"),
        ("postgresql://ryorin:hunter2@db/catalog", "postgresql://ryorin:[redacted]@db/catalog"),
        ("ryo-0123456789ab", "ryo-0123456789ab"),
        ("返品は30日以内です", "返品は30日以内です"),
    ],
)
def test_what_is_blotted_out(text: str, shown: str):
    assert redacted(text) == shown
