"""A second gateway that asks the first one's vLLM as an engine that runs elsewhere."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator

import httpx
import psutil
import pytest
from live_server import Server, ended, started

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def place_of(live: Server) -> tuple[str, str]:
    """Where the engine listens, and its key."""
    engine = psutil.Process(live.ready["engine_pids"][0])
    port = dict(itertools.pairwise(engine.cmdline()))["--port"]
    return f"http://127.0.0.1:{port}", engine.environ()["VLLM_API_KEY"]


@pytest.fixture
def second(live: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    url, key = place_of(live)
    monkeypatch.setenv("RYORIN_ENGINE_KEY", key)
    server = started(live.home, "--engine-url", url, "--max-model-len", "1024")
    try:
        assert server.process.stdout is not None
        server.ready, server.keys = json.loads(server.process.stdout.readline()), live.keys
        yield server
        assert ended(server, signal.SIGTERM) == 0
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def text(server: Server, model: str) -> str:
    answer = server.client(model.partition("@")[0]).chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=16
    )
    return str(answer.choices[0].message.content)


def test_it_answers_as_the_first_does_and_leaves_the_engine_running(live: Server, second: Server) -> None:
    assert second.ready["engine_pids"] == []
    for model in ("support@1", "support", "people"):
        assert text(second, model) == text(live, model)
    os.kill(live.ready["engine_pids"][0], 0)


def test_an_adapter_that_was_let_go_is_loaded_again(live: Server, second: Server) -> None:
    before = text(second, "support")
    url, key = place_of(live)
    headers, name = {"authorization": f"Bearer {key}"}, live.adapters["support"]

    def held() -> bool:
        models = httpx.get(f"{url}/v1/models", headers=headers).json()["data"]
        return name in {model["id"] for model in models}

    assert held()
    answer = httpx.post(f"{url}/v1/unload_lora_adapter", headers=headers, json={"lora_name": name})
    assert answer.status_code == 200 and not held(), "what the gateway asks when nobody uses an adapter"
    assert text(second, "support") == before and held()
