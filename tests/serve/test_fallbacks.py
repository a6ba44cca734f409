"""Models elsewhere that answer when no engine does: real litellm, a scripted provider, tenants that allow it or not."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from lazily import Lazily
from scripted_house import NO_CERTIFICATES, House, built, eventually, running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ryorin.catalog import open_catalog, tenants
from ryorin.catalog.tables import AuditEvent
from ryorin.errors import InvalidInput
from ryorin_serve.options import ServeOptions
from ryorin_serve.providers import Providers

openai = Lazily("openai")

QUESTION = [{"role": "user", "content": "How long does a refund take?"}]
ANSWER = "Refunds take 30 days [2]."


class Provider:
    """OpenAI's chat completions, scripted. down: it answers errors alone. cut, slow: a stream breaks off, stops."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.down = False
        self.cut = False
        self.slow = False
        self.left = False

    async def _slowly(self, told: list[str]) -> AsyncIterator[str]:
        try:
            for each in told:
                yield f"data: {each}\n\n"
                await asyncio.sleep(0.2 if "Refunds" not in each else 30)
        except BaseException:
            self.left = True
            raise

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers["authorization"])
        if self.down:
            return JSONResponse({"error": {"message": "secret internals", "type": "server_error"}}, status_code=500)
        head = {"id": "chatcmpl-theirs", "created": 1, "model": "small-2026", "system_fingerprint": "fp"}
        usage = {"prompt_tokens": 40, "completion_tokens": 6, "total_tokens": 46}
        if not body.get("stream"):
            message = {"role": "assistant", "content": ANSWER}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        pieces: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        pieces += [{"content": text} for text in ("Refunds take ", "30 days", " [", "2].")]
        chunks = [{"choices": [{"index": 0, "delta": piece, "finish_reason": None}]} for piece in pieces]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        chunks.append({"choices": [], "usage": usage})
        if self.cut:
            chunks = chunks[:3]
        told = [json.dumps({**head, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
        if self.slow:
            return StreamingResponse(self._slowly(told), media_type="text/event-stream")
        told += ['{"error": {"message": "overloaded", "code": 500}}' if self.cut else "[DONE]"]
        return Response("".join(f"data: {each}\n\n" for each in told), media_type="text/event-stream")


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def house(tmp_path: Path, empty_sqlite: Path, provider: Provider) -> Iterator[House]:
    """Two models elsewhere; nobody listens at the first, `support` allows both, `people` none."""
    app = Starlette(routes=[Route("/v1/chat/completions", provider.chat, methods=["POST"])])
    with running(app) as url:
        models = [
            {
                "model_name": name,
                "litellm_params": {"model": "openai/small", "api_base": f"{base}/v1", "api_key": "their-key"},
            }
            for name, base in (("nobody", "http://127.0.0.1:1"), ("elsewhere", url))
        ]
        options = ServeOptions(max_model_len=400, tool_call_parser="hermes")
        with built(tmp_path / "home", empty_sqlite, options, providers=Providers(models)) as house:
            with house.catalog.session() as session:
                tenants.set_fallbacks(session, tenants.get_tenant(session, "support"), ["nobody", "elsewhere"])
            yield house


def ask(house: House, tenant: str = "support", **more: Any) -> Any:
    return house.client(tenant).chat.completions.with_raw_response.create(model=tenant, messages=QUESTION, **more)


def test_while_an_engine_answers_nobody_else_is_asked(house: House, provider: Provider):
    raw = ask(house)
    assert raw.parse().choices[0].message.content == ANSWER and not provider.asked
    assert "x-ryorin-fallback" not in raw.headers


@pytest.mark.parametrize("trouble", ["down", "died", "breaks"])
def test_when_no_engine_answers_the_first_model_that_does(house: House, provider: Provider, trouble: str):
    if trouble == "down":
        house.engine.state = "down"
    elif trouble == "died":
        house.engine.stop()
    else:
        house.engine.refuse, house.engine.health = (500, "EngineDeadError"), 503
    raw = ask(house, temperature=0.5, logprobs=True, max_tokens=50)
    assert raw.headers["x-ryorin-fallback"] == "elsewhere"
    answer = raw.parse()
    assert (answer.model, answer.choices[0].message.content) == ("support", ANSWER)
    assert answer.choices[0].message.context["citations"][0]["content"] == "Refunds: within 30 days."
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (40, 6)
    (asked,) = provider.asked
    assert provider.keys == ["Bearer their-key"]
    assert "Refunds: within 30 days." in asked["messages"][0]["content"] and asked["max_tokens"] == 50
    assert set(asked) == {"model", "messages", "temperature", "max_tokens"}, "no salt, no adapter, nothing of vLLM's"
    (row,) = house.logs(1)
    assert (row.part, row.status, row.reason, row.answer) == ("fallback", "ok", "elsewhere answered", ANSWER)


def test_a_stream(house: House, provider: Provider):
    house.engine.state = "down"
    with house.client().chat.completions.with_streaming_response.create(
        model="support", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    ) as raw:
        assert raw.headers["x-ryorin-fallback"] == "elsewhere"
        chunks = list(raw.parse())
    assert {chunk.model for chunk in chunks} == {"support"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 46)
    assert chunks[-2].choices[0].delta.context["citations"][0]["number"] == 2
    assert provider.asked[0]["stream"] is True


def test_a_response(house: House, provider: Provider):
    house.engine.state = "down"
    answer = house.client().responses.create(model="support", input="How long does a refund take?")
    assert answer.output_text == "Refunds take 30 days." and len(provider.asked) == 1


def test_a_stream_that_breaks_off_is_told(house: House, provider: Provider):
    house.engine.state, provider.cut = "down", True
    with pytest.raises(openai.APIError, match="elsewhere stopped in the middle"):
        list(house.client().chat.completions.create(model="support", messages=QUESTION, stream=True))
    assert house.logs(1)[0].status == "error"


def test_a_tenant_that_allows_none_is_told_to_wait(house: House, provider: Provider):
    house.engine.state = "down"
    with pytest.raises(openai.InternalServerError) as caught:
        ask(house, "people")
    assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")
    with house.catalog.session() as session:
        support = tenants.get_tenant(session, "support")
        tenants.set_fallbacks(session, support, ["a model that this server does not have"])
    with pytest.raises(openai.InternalServerError, match="engine is down"):
        ask(house)
    assert not provider.asked


def test_when_all_fail_the_error_is_the_engines_and_says_nothing_of_them(house: House, provider: Provider):
    house.engine.state, provider.down = "down", True
    with pytest.raises(openai.InternalServerError) as caught:
        ask(house)
    assert caught.value.code == "engine_unavailable" and "secret" not in str(caught.value)
    assert caught.value.response.headers["retry-after"] == "8"
    assert len(provider.asked) == 1


def test_what_the_engine_refuses_goes_nowhere_else(house: House, provider: Provider):
    house.engine.refuse = (400, "no such thing")
    with pytest.raises(openai.BadRequestError):
        ask(house)
    house.engine.refuse = (500, "a question that it trips over")
    with pytest.raises(openai.InternalServerError, match="failed to answer"):
        ask(house)
    assert not provider.asked, "the engine is there"


def test_who_names_a_version_gets_that_or_nothing(house: House, provider: Provider):
    house.engine.state = "down"
    with pytest.raises(openai.InternalServerError) as caught:
        house.client().chat.completions.create(model="support@1", messages=QUESTION)
    assert caught.value.code == "engine_unavailable" and not provider.asked


def test_a_shadow_is_not_blamed_for_an_answer_from_elsewhere(house: House, provider: Provider):
    house.shadow(house.release("support", promote=False))
    house.engine.state = "down"
    ask(house)
    assert [row.part for row in house.logs(1)] == ["fallback"]


def test_a_server_with_models_elsewhere_is_ready_without_an_engine(house: House):
    house.engine.state = "down"
    ready = httpx.get(f"{house.url}/ready", verify=NO_CERTIFICATES)
    assert (ready.status_code, ready.json()["engine"]) == (200, "down")
    assert httpx.get(f"{house.url}/health", verify=NO_CERTIFICATES).status_code == 503


def test_a_streamed_response(house: House, provider: Provider):
    house.engine.state = "down"
    events = list(house.client().responses.create(model="support", input="How long?", stream=True))
    assert events[-1].type == "response.completed" and events[-1].response.output_text == "Refunds take 30 days."


def test_a_client_that_leaves_a_stream_from_elsewhere(house: House, provider: Provider):
    house.engine.state, provider.slow = "down", True
    stream = house.client().chat.completions.create(model="support", messages=QUESTION, stream=True)
    next(iter(stream))
    stream.close()
    assert house.logs(1)[0].status == "cancelled"
    eventually(lambda: provider.left)


def test_what_a_provider_says_is_not_logged(house: House, provider: Provider, caplog: pytest.LogCaptureFixture):
    house.engine.state, provider.down = "down", True
    with pytest.raises(openai.InternalServerError):
        ask(house)
    said = [record.getMessage() for record in caplog.records if record.name == "ryorin.serve"]
    assert any("elsewhere: InternalServerError (status 500)" in each for each in said)
    assert not any("secret internals" in each for each in said)


# What may be said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("model_list: []", "must hold litellm's 'model_list'"),
        ("model_list:\n- model_name: x", "must hold litellm's 'model_list'"),
        ("- a", "must hold litellm's 'model_list'"),
        ("a: [", "is not YAML"),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, text: str, why: str):
    (tmp_path / "providers.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=why):
        Providers.read(tmp_path / "providers.yaml")
    with pytest.raises(InvalidInput, match="No such file"):
        Providers.read(tmp_path / "none.yaml")


def test_a_model_that_litellm_does_not_know_is_told_at_the_start():
    with pytest.raises(InvalidInput, match=r"litellm cannot use the providers' models: .*no-such-provider"):
        Providers([{"model_name": "x", "litellm_params": {"model": "no-such-provider/model"}}])


def test_a_file(tmp_path: Path):
    path = tmp_path / "providers.yaml"
    path.write_text(
        "model_list:\n- model_name: small\n  litellm_params: {model: openai/small, api_key: os.environ/KEY}\n"
    )
    providers = Providers.read(path)
    assert (providers.names, providers.variables) == ({"small"}, {"KEY"})


def test_the_command(cli, migrated: Path, settings):
    cli("tenant", "create", "support")
    assert "none: its questions go to no model elsewhere" in cli("tenant", "fallbacks", "support").out
    said = cli("tenant", "fallbacks", "support", "site-b", "small", "site-b", "--json")
    assert json.loads(said.out) == {"tenant": "support", "fallbacks": ["site-b", "small"]}
    assert cli("tenant", "fallbacks", "support").out.strip() == "site-b, small"
    assert cli("tenant", "fallbacks", "support", " ").code == 2
    assert cli("tenant", "fallbacks", "support", "x", "--none").code == 2
    assert cli("tenant", "fallbacks", "support", "--none").code == 0
    with closing(open_catalog(settings)) as catalog, catalog.session() as session:
        events = session.query(AuditEvent).filter_by(act="fallbacks.set").order_by(AuditEvent.created_at).all()
        assert [event.detail["fallbacks"] for event in events] == [["site-b", "small"], []]


def test_importing_the_gateway_does_not_import_litellm():
    code = "import sys; import ryorin_serve.server; sys.exit('litellm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
