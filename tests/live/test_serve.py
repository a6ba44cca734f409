"""`ryorin serve` with the real vLLM, asked by the real client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from live_server import BASE, EMBEDDER, Server, ended, eventually, ryorin, started
from sqlalchemy import select

from ryorin.catalog import open_catalog
from ryorin.catalog.tables import RequestLog
from ryorin.settings import Settings

QUESTION = "What is the capital of France?"


def ask(live: Server, model: str, question: str = QUESTION, **more: Any) -> Any:
    with live.client(model.partition("@")[0], max_retries=0) as client:
        more = {"max_tokens": 12, "temperature": 0} | more
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], **more)
        return list(answer) if more.get("stream") else answer


def text(live: Server, model: str, **more: Any) -> str:
    return str(ask(live, model, **more).choices[0].message.content)


def test_an_answer_whole_and_streamed(live: Server):
    whole = ask(live, "support@1")
    assert (whole.model, whole.choices[0].message.content) == ("support@1", "The capital of France is Paris.")
    chunks = ask(live, "support@1", stream=True, stream_options={"include_usage": True})
    content = [chunk for chunk in chunks if chunk.choices]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in content) == whole.choices[0].message.content
    assert content[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_response_format_is_kept_to(live: Server):
    schema = {
        "type": "object",
        "properties": {"decision": {"enum": ["YES", "NO"]}},
        "required": ["decision"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "decision", "schema": schema, "strict": True}}
    assert json.loads(text(live, "support@1", response_format=wanted, max_tokens=40))["decision"] in ("YES", "NO")


def test_the_gateway_counts_tokens_as_vllm_does(live: Server):
    from ryorin.models.registry import get_base
    from ryorin.prompt import Prompt, render
    from ryorin.prompt_tokens import TokenCounter

    counter = TokenCounter(get_base(Settings(live.home, ""), BASE).path)
    for question in (QUESTION, "出張旅費の精算はいつまでですか。", "  two\n\nlines <|im_end|> "):
        messages = render(Prompt("You are a helpful assistant."), [{"role": "user", "content": question}], None)
        assert counter.count(messages) == ask(live, "support@1", question).usage.prompt_tokens  # type: ignore[arg-type]


def test_adapters_change_answers_each_in_its_own_way(live: Server):
    base, support, people = (text(live, model) for model in ("support@1", "support", "people"))
    assert len({base, support, people}) == 3
    assert text(live, "people@1") == base
    assert text(live, "support") == support


def test_one_batch_with_two_adapters_and_none(live: Server):
    """Every slot is in use: with vLLM's own CPU operations, the base model's answer would be an adapter's."""
    models = ["support@1", "support", "people"]
    alone = {model: text(live, model, max_tokens=24) for model in models}
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda model: (model, text(live, model, max_tokens=24)), models * 2))
    assert together == [(model, alone[model]) for model in models * 2]


def test_promote_and_roll_back_without_a_restart(live: Server):
    tuned, base = text(live, "support"), text(live, "support@1")
    ryorin(live.home, "release", "promote", "1", "--tenant", "support")
    assert text(live, "support") == base
    ryorin(live.home, "release", "rollback", "--tenant", "support")
    assert text(live, "support") == tuned
    assert psutil.pid_exists(live.ready["engine_pids"][0])


def test_an_adapter_with_other_files_is_not_promoted(live: Server):
    before = text(live, "support")
    folder = live.home / "adapters" / live.adapters["support"]
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for damage, words in ((whole[:-7], "not what was trained"), (None, "lacks adapter_model.safetensors")):
        weights.unlink()
        if damage is not None:
            weights.write_bytes(damage)
        ryorin(live.home, "release", "promote", "1", "--tenant", "support")
        with pytest.raises(subprocess.CalledProcessError):
            ryorin(live.home, "release", "promote", "2", "--tenant", "support")
        refused = httpx.post(
            f"{live.url}/ryorin/v1/releases/2/promote",
            headers={"authorization": f"Bearer {live.keys['support']}"},
            timeout=60,
        )
        assert refused.status_code == 409 and words in refused.json()["error"]["message"]
        assert text(live, "support") == text(live, "support@1")
        weights.unlink(missing_ok=True)
        weights.write_bytes(whole)
        ryorin(live.home, "release", "promote", "2", "--tenant", "support")
        assert text(live, "support") == before


def test_a_canary_and_a_shadow_on_the_real_engine(live: Server):
    tuned, base = text(live, "support"), text(live, "support@1")
    ryorin(live.home, "release", "canary", "1", "--share", "50%", "--tenant", "support")
    answers: dict[str, str] = {}
    while len(set(answers.values())) < 2:
        user = f"user {len(answers)}"
        answers[user] = text(live, "support", user=user)
        assert len(answers) < 40
    assert set(answers.values()) == {tuned, base}
    assert {user: text(live, "support", user=user) for user in answers} == answers
    ryorin(live.home, "release", "canary", "--off", "--tenant", "support")
    ryorin(live.home, "release", "shadow", "1", "--tenant", "support")
    assert text(live, "support") == tuned
    shadow = eventually(lambda: shadowed(live), 60)
    assert (shadow.status, shadow.answer, shadow.reason) == ("ok", base, None)
    ryorin(live.home, "release", "shadow", "--off", "--tenant", "support")


def shadowed(live: Server) -> RequestLog | None:
    catalog = open_catalog(Settings(live.home, f"sqlite:///{live.home / 'catalog.db'}"))
    with catalog.session() as session:
        row = session.scalar(select(RequestLog).where(RequestLog.part == "shadow"))
    catalog.close()
    return row


def test_documents_reach_the_prompt(live: Server, tmp_path: Path):
    page = tmp_path / "refunds.md"
    page.write_text("# Refunds\n\nA refund is paid within 30 days of the return.\n")
    ryorin(live.home, "index", "create", "handbook", "--tenant", "people", "--embedder", EMBEDDER)
    ryorin(live.home, "index", "add", "handbook", page, "--tenant", "people")
    made = ryorin(live.home, "release", "create", "--tenant", "people", "--adapter", "none", "--store", "handbook")
    answer = ask(live, f"people@{made['version']}", "Within how many days is a refund paid?", max_tokens=30)
    assert "30" in answer.choices[0].message.content
    assert isinstance(answer.choices[0].message.context["citations"], list)
    log = eventually(lambda: logged(live, made["id"]), 10)
    url = f"{live.url}/ryorin/v1/passages/{log.passages[0]['passage_id']}"
    found = httpx.get(url, headers={"authorization": f"Bearer {live.keys['people']}"}).json()
    assert "within 30 days" in found["text"]
    assert httpx.get(url, headers={"authorization": f"Bearer {live.keys['support']}"}).status_code == 404


def test_a_response_searches_and_cites(live: Server, tmp_path: Path):
    """The scripted engine shows the shapes; here a real model answers, streams, and fills in a function's arguments."""
    page = tmp_path / "parking.md"
    page.write_text("# Parking\n\nParking costs 3 euros an hour.\n")
    ryorin(live.home, "index", "create", "parking", "--tenant", "support", "--embedder", EMBEDDER)
    ryorin(live.home, "index", "add", "parking", page, "--tenant", "support")
    with live.client("support") as client:
        (store,) = [store.id for store in client.vector_stores.list() if store.name == "parking"]
        search: Any = {"type": "file_search", "vector_store_ids": [store]}
        asked: Any = {
            "model": "support@1", "input": "How much does parking cost?", "tools": [search], "temperature": 0,
            "max_output_tokens": 24, "include": ["file_search_call.results"],
            "instructions": "Be brief. " * 100,  # more than a block of vLLM's cache of prefixes
        }  # fmt: skip
        whole = client.responses.create(**asked)
        assert whole.output[0].results[0].text.endswith("Parking costs 3 euros an hour.")
        assert whole.output_text and whole.usage.input_tokens > 40  # with the passage
        events = list(client.responses.create(**asked, stream=True))
        last = events[-1].response
        assert events[0].type == "response.created" and last.status == whole.status
        assert last.output_text == whole.output_text
        assert last.usage.input_tokens_details.cached_tokens > 0  # the same prompt a moment ago

        schema = {"type": "object", "properties": {"hours": {"type": "integer"}}, "required": ["hours"]}
        function = {"name": "park", "strict": True, "parameters": schema | {"additionalProperties": False}}
        called = client.chat.completions.create(
            model="support@1", messages=[{"role": "user", "content": "Park my car for 2 hours."}], max_tokens=60,
            tools=[{"type": "function", "function": function}], temperature=0,
            tool_choice={"type": "function", "function": {"name": "park"}},
        )  # fmt: skip
        (call,) = called.choices[0].message.tool_calls
        assert call.function.name == "park" and isinstance(json.loads(call.function.arguments)["hours"], int)


def test_embeddings_are_those_that_stores_are_searched_by(live: Server):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.keys["support"]) as client:

        def vector(text: str, kind: str) -> Any:
            more = {"input_type": kind}
            return client.embeddings.create(model=EMBEDDER, input=text, extra_body=more).data[0].embedding

        question = vector("駐車料金はいくらですか。", "query")
        near, far = (vector(text, "passage") for text in ("Parking costs 3 euros an hour.", "The cat sleeps."))
    products = [sum(a * b for a, b in zip(question, each, strict=True)) for each in (near, far)]
    assert products[0] > products[1] and abs(sum(a * a for a in near) - 1) < 1e-3


def test_figures_of_the_real_engine(live: Server):
    list(ask(live, "support", stream=True))
    figures = httpx.get(f"http://127.0.0.1:{live.metrics_port}/metrics").text
    lines = [line for line in figures.splitlines() if 'tenant="support"' in line]
    assert any(line.startswith("ryorin_first_token_seconds_count") and float(line.split()[-1]) > 0 for line in lines)
    assert any('kind="completion"' in line and float(line.split()[-1]) > 0 for line in lines)
    assert "ryorin_engines_ready 1.0" in figures


def logged(live: Server, release_id: str) -> RequestLog | None:
    catalog = open_catalog(Settings(live.home, f"sqlite:///{live.home / 'catalog.db'}"))
    with catalog.session() as session:
        row = session.scalar(select(RequestLog).where(RequestLog.release_id == release_id))
    catalog.close()
    return row


def test_the_engine_is_reached_on_this_machine_and_with_its_key_alone(live: Server):
    listening = [
        connection.laddr.ip
        for process in live.family()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}
    command = psutil.Process(live.ready["engine_pids"][0]).cmdline()
    url = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
    question = {"model": live.adapters["people"], "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1}
    for path in ("/invocations", "/v1/chat/completions"):
        assert httpx.post(f"{url}{path}", json=question).status_code == 401
    assert httpx.get(f"{url}/metrics").status_code == 401
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_taken_port_and_an_unknown_base_are_errors_at_once(live: Server):
    for options, words in (
        (["--port", str(live.ready["port"])], f"port {live.ready['port']} on 127.0.0.1 is in use"),
        (["--port", "0", "--base", "no-such-model"], "no-such-model"),
        (["--port", "0", "--metrics-port", str(live.metrics_port)], f"port {live.metrics_port} on 127.0.0.1 is in use"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ryorin.cli", "serve", *options],
            env=os.environ | {"RYORIN_HOME": str(live.home)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert words in done.stderr


def test_vllm_killed_while_serving_comes_back_with_its_adapters(live: Server):
    before = text(live, "support")
    os.kill(live.ready["engine_pids"][0], signal.SIGKILL)
    with pytest.raises(openai.InternalServerError) as caught:
        for _ in range(50):  # the request right after may still find the port open
            ask(live, "support")
            time.sleep(0.1)
    assert caught.value.status_code == 503
    assert float(caught.value.response.headers["retry-after"]) >= 1
    eventually(lambda: httpx.get(f"{live.url}/health").status_code == 503, 10)  # the 503 above may be the first to know
    eventually(lambda: httpx.get(f"{live.url}/health").status_code == 200, 180)
    assert text(live, "support") == before


def test_ctrl_c_during_the_start_leaves_no_process(live_home: Path):
    server = started(live_home)
    eventually(lambda: len(server.family()) >= 3, 30)
    time.sleep(3)
    assert ended(server, signal.SIGINT) == 130
