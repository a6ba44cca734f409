"""Bodies of odd values in every field: what cannot be understood is refused, and nothing breaks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lazily import Lazily
from long_runs import turns
from scripted_house import NO_CERTIFICATES, House, built

from ryorin_serve.options import ServeOptions

httpx = Lazily("httpx")
USER = {"role": "user", "content": "hi"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3.5, 1e308, "", "a", "user", "text", "[1]", "\0", "é", "\ud800", "x" * 300, [], {},
    [[]],
    {"type": "text"}, {"type": "function", "function": {"name": "f"}}, {"type": "function", "name": "f"},
    {"type": "file_search"}, {"type": "json_schema"},
    {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
    USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "a", "content": "x"},
    {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "a", "output": "x"},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
    {"type": "eq", "key": "a", "value": 1}, {"type": "regex", "name": "a", "pattern": "("},
]  # fmt: skip
NAMES = (
    "type", "role", "content", "name", "text", "format", "function", "filters", "vector_store_ids", "top_k", "off",
    "ranking_options", "max_num_results", "id", "grader", "hyperparameters", "reinforcement", "supervised", "anchor",
)  # fmt: skip
BODIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "/v1/chat/completions": (
        {"model": "support", "messages": [USER]},
        ("model", "messages", "temperature", "top_p", "n", "stop", "seed", "tools", "tool_choice", "logit_bias",
         "parallel_tool_calls", "response_format", "logprobs", "top_logprobs", "stream", "stream_options", "retrieval",
         "user", "metadata", "max_tokens", "store", "safety_identifier", "prompt_cache_key"),
    ),
    "/v1/responses": (
        {"model": "support", "input": "hi"},
        ("model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "max_output_tokens", "stream",
         "stream_options", "include", "metadata", "text", "temperature", "top_p", "store", "truncation", "user"),
    ),
    "/v1/embeddings": (
        {"model": "multilingual-e5-small", "input": []},
        ("model", "input", "encoding_format", "dimensions", "input_type", "user"),
    ),
    "/v1/vector_stores": (
        {"name": 3},
        ("name", "description", "file_ids", "metadata", "expires_after", "chunking_strategy"),
    ),
    "/v1/fine_tuning/jobs": (
        {"model": "scripted", "training_file": "file-1"},
        ("model", "training_file", "validation_file", "method", "seed", "suffix", "hyperparameters", "metadata"),
    ),
    "/ryorin/v1/keys": (
        {"label": "x"},
        ("label", "scopes", "expires_in_s", "requests_per_minute", "tokens_per_minute", "tokens_per_month"),
    ),
    "/ryorin/v1/releases": (
        {"adapter": "none"},
        ("adapter", "stores", "retrieval", "base", "note", "allow_prompt_mismatch", "promote", "wait_s"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, empty_sqlite: Path) -> Iterator[House]:
    options = ServeOptions(max_model_len=400, tool_call_parser="hermes")
    with built(tmp_path_factory.mktemp("odd") / "home", empty_sqlite, options) as house:
        yield house


def odd(draw: random.Random, depth: int = 0) -> Any:
    if depth < 2 and draw.random() < 0.3:
        return [odd(draw, depth + 1) for _ in range(draw.randrange(3))]
    if depth < 2 and draw.random() < 0.25:
        return {draw.choice(NAMES): odd(draw, depth + 1) for _ in range(draw.randrange(3))}
    return draw.choice(VALUES)


@pytest.mark.parametrize("path", BODIES)
def test_nothing_breaks(house: House, path: str) -> None:
    whole, fields = BODIES[path]
    draw = random.Random(path)
    headers = {"authorization": f"Bearer {house.keys['support']}"}
    with httpx.Client(base_url=house.url, headers=headers, verify=NO_CERTIFICATES, timeout=60) as client:
        for _ in range(turns(150, 5000)):
            body = dict(whole)
            for _ in range(draw.randrange(1, 4)):
                body[draw.choice(fields)] = odd(draw)
            answer = client.post(path, content=json.dumps(body).encode())
            assert answer.status_code < 500 or answer.status_code == 503, (body, answer.text)
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, body
