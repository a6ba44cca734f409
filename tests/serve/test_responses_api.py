"""/v1/responses as the unmodified, strict openai client sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from lazily import Lazily
from scripted_house import House
from sqlalchemy import update
from test_files_api import error_of, send
from test_gateway import CALL, WEATHER
from test_vector_stores_api import GOODS, RICE, fill

from ryorin import release as releases
from ryorin.catalog import tenants
from ryorin.catalog.tables import VectorStore
from ryorin.prompt import Prompt
from ryorin.release import Retrieval

openai = Lazily("openai")
QUESTION = "How long do refunds take?"
FUNCTION = {"type": "function", "strict": True, **WEATHER["function"]}
OPEN = (  # what the Open Responses schema wants and never null
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "truncation", "tool_choice",
    "tools", "store", "background", "service_tier", "text", "metadata",
)  # fmt: skip


@pytest.fixture
def desk(house: House) -> openai.OpenAI:
    return house.client()


def events_of(client: openai.OpenAI, **more: Any) -> list[Any]:
    return list(client.responses.create(stream=True, **({"model": "support", "input": QUESTION} | more)))


def test_an_answer_cites_the_passages_of_the_release(house: House, desk: openai.OpenAI) -> None:
    made = desk.responses.create(model="support", input=QUESTION, instructions="Be kind.", metadata={"a": "b"})
    assert made.output_text == "Refunds take 30 days."
    (message,) = made.output
    (part,) = message.content
    (citation,) = part.annotations
    assert (citation.type, citation.filename, citation.file_id) == ("file_citation", "handbook.md", "doc_1")
    assert part.text[: citation.index] == "Refunds take 30 days"
    assert (made.status, made.object, made.metadata, made.error) == ("completed", "response", {"a": "b"}, None)
    assert made.usage.input_tokens == 11 and made.usage.output_tokens == 4 and made.usage.total_tokens == 15
    body = house.engine.requests[-1]
    assert body["messages"][0]["content"].endswith("</documents>\n\nBe kind.")
    assert body["messages"][1] == {"role": "user", "content": QUESTION}
    raw = send(house, "POST", "/v1/responses", json={"model": "support", "input": QUESTION}).json()
    assert all(raw[name] is not None for name in OPEN)
    assert house.logs(1)[0].answer == "Refunds take 30 days [2]."


def test_events_come_in_openais_order(desk: openai.OpenAI) -> None:
    events = events_of(desk)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.annotation.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    shown = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1].response
    assert shown == last.output_text == "Refunds take 30 days."
    assert last.usage.total_tokens == 15 and events[0].response.usage is None
    annotation = next(event for event in events if event.type == "response.output_text.annotation.added")
    assert annotation.annotation["index"] == last.output[0].content[0].annotations[0].index == 20
    with desk.responses.stream(model="support", input=QUESTION) as stream:  # the package's own assembling
        assert stream.get_final_response().output_text == last.output_text


@pytest.mark.parametrize(
    ("pieces", "text", "indices"),
    [
        (["See [", "1", "][", "2", "] and [9]."], "See and.", [3, 3]),
        (["[1] first, [1", "23", "4] last [2]"], " first, [1234] last", [0, 19]),
        (["nothing ["], "nothing [", []),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_markers_never_leak_into_the_text(
    house: House, desk: openai.OpenAI, stream: bool, pieces: list[str], text: str, indices: list[int]
) -> None:
    house.engine.pieces = pieces
    made = events_of(desk)[-1].response if stream else desk.responses.create(model="support", input=QUESTION)
    assert made.output_text == text
    assert [each.index for each in made.output[0].content[0].annotations] == indices


def test_json_keeps_its_markers_and_they_are_cited(house: House, desk: openai.OpenAI) -> None:
    house.engine.pieces = ['{"citation": "[2]"}']
    schema = {"type": "object", "properties": {"citation": {"type": "string"}}}
    form = {"format": {"type": "json_schema", "name": "cited", "schema": schema, "strict": True}}
    made = desk.responses.create(model="support", input=QUESTION, text=form)
    assert made.output_text == '{"citation": "[2]"}'
    (annotation,) = made.output[0].content[0].annotations
    assert made.output_text[annotation.index :].startswith("[2]")
    asked = house.engine.requests[-1]["response_format"]
    assert asked == {"type": "json_schema", "json_schema": {"name": "cited", "schema": schema, "strict": True}}


def test_a_conversation_is_sent_as_items(house: House, desk: openai.OpenAI) -> None:
    first = desk.responses.create(model="support", input=[{"role": "user", "content": "Hello"}])
    items = [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        *first.output,
        {"type": "message", "role": "user", "content": "And the rain?"},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    ]
    desk.responses.create(model="support", input=items, max_output_tokens=7, temperature=0.5, user="u")
    body = house.engine.requests[-1]
    assert [message["role"] for message in body["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
    ]
    assert body["messages"][0]["content"].endswith("Short.")
    assert body["messages"][4]["tool_calls"] == [{**CALL, "function": {"name": "weather", "arguments": "{}"}}]
    assert body["messages"][5] == {"role": "tool", "content": "rain", "tool_call_id": "call_1"}
    assert (body["max_tokens"], body["temperature"]) == (7, 0.5)


def test_functions_are_called(house: House, desk: openai.OpenAI) -> None:
    house.engine.deltas = [
        {"role": "assistant", "content": None},
        {"tool_calls": [{"index": 0, **CALL, "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Kyoto"}'}}]},
    ]
    more: dict[str, Any] = {"tools": [FUNCTION], "tool_choice": "required"}
    made = desk.responses.create(model="support", input=QUESTION, **more)
    (call,) = made.output
    assert (call.type, call.name, call.arguments, call.call_id) == (
        "function_call",
        "weather",
        '{"city": "Kyoto"}',
        "call_1",
    )
    assert house.engine.requests[-1]["tools"] == [{"type": "function", "function": WEATHER["function"]}]
    events = events_of(desk, **more)
    assert [event.type for event in events[2:]] == [
        "response.output_item.added", "response.function_call_arguments.delta",
        "response.function_call_arguments.delta", "response.function_call_arguments.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert events[-1].response.output[0].arguments == '{"city": "Kyoto"}'
    named = desk.responses.create(
        model="support", input=QUESTION, tools=[FUNCTION], tool_choice={"type": "function", "name": "weather"}
    )
    assert named.output[0].type == "function_call"
    assert house.engine.requests[-1]["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


def test_an_engine_that_dies_in_the_middle_fails_the_response(house: House, desk: openai.OpenAI) -> None:
    house.engine.cut_after = 2
    events = events_of(desk)
    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed" and events[-1].response.error.code == "server_error"
    assert not any(event.type == "response.completed" for event in events)
    assert house.logs(1)[0].status == "error"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "file_search"}, {"type": "file_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "file_search", "vector_store_ids": "vs_1"}]}, "tools[0].vector_store_ids"),
        ({"tools": [{"type": "file_search", "filters": {"type": "is"}}]}, "tools[0].filters.type"),
        ({"tools": [{"type": "file_search", "max_num_results": 51}]}, "tools[0].max_num_results"),
        ({"tools": [{"type": "file_search", "ranking_options": {"ranker": "x"}}]}, "tools[0].ranking_options.ranker"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": "a", "name": "x"}]}, "input[0].name"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"instructions": 3}, "instructions"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(standing_house: House, change: dict[str, Any], param: str) -> None:
    body = {"model": "support", "input": QUESTION} | change
    assert error_of(send(standing_house, "POST", "/v1/responses", json=body), 400)["param"] == param
    assert not standing_house.engine.requests


# With a real store


@pytest.fixture(scope="module")
def stocked(library: House) -> Iterator[tuple[House, str]]:
    """The library's support desk, live without documents of its own; and a store with two files."""
    client = library.client()
    store = client.vector_stores.create(name="Handbook").id
    fill(client, store, "returns.md", GOODS, attributes={"team": "shop"})
    fill(client, store, "rice.md", RICE, attributes={"team": "farm"})
    with library.catalog.session() as session:
        tenant = tenants.get_tenant(session, "support")
        prompt = tenants.set_prompt(session, tenant, Prompt(system="Answer."))
        before = tenant.live_release_id
        made = releases.create_release(
            session, tenant, base_digest=library.base.digest, prompt=prompt, adapter=None, stores=[],
            retrieval=Retrieval(top_k=0),
        )  # fmt: skip
        releases.promote(session, tenant, made)
    yield library, store
    with library.catalog.session() as session:
        tenants.get_tenant(session, "support").live_release_id = before


def test_file_search_searches_the_stores_it_names(stocked: tuple[House, str]) -> None:
    house, store = stocked
    client = house.client()
    house.engine.pieces = ["Within 30 days [1]."]
    search = {"type": "file_search", "vector_store_ids": [store], "max_num_results": 2}
    made = client.responses.create(
        model="support", input="unopened goods days", tools=[search], include=["file_search_call.results"]
    )
    call, message = made.output
    assert (call.type, call.status, call.queries) == ("file_search_call", "completed", ["unopened goods days"])
    assert [hit.filename for hit in call.results] == ["returns.md", "rice.md"]
    assert call.results[0].attributes["team"] == "shop" and 0 <= call.results[0].score <= 1
    assert message.content[0].annotations[0].file_id == call.results[0].file_id
    assert message.content[0].annotations[0].file_id.startswith("file-")
    assert "Unopened goods" in house.engine.requests[-1]["messages"][0]["content"]
    assert made.tools[0].vector_store_ids == [store]

    events = events_of(client, input="unopened goods days", tools=[search])
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:7] == [
        "created", "in_progress", "output_item.added", "file_search_call.in_progress", "file_search_call.searching",
        "file_search_call.completed", "output_item.done",
    ]  # fmt: skip
    assert events[-1].response.output[0].results is None and events[-1].response.output[1].type == "message"


def test_filters_and_floors_of_file_search(stocked: tuple[House, str]) -> None:
    house, store = stocked
    client = house.client()
    search: dict[str, Any] = {"type": "file_search", "vector_store_ids": [store]}
    farm = search | {"filters": {"type": "eq", "key": "team", "value": "farm"}}
    asked: dict[str, Any] = {"model": "support", "input": "unopened goods days"}
    client.responses.create(**asked, tools=[farm])
    prompt = house.engine.requests[-1]["messages"][0]["content"]
    assert "お米" in prompt and "Unopened" not in prompt
    client.responses.create(**asked, tools=[search | {"ranking_options": {"score_threshold": 0.3}}])
    prompt = house.engine.requests[-1]["messages"][0]["content"]
    assert "Unopened" in prompt and "お米" not in prompt


def test_another_tenants_store_does_not_exist(stocked: tuple[House, str]) -> None:
    house, store = stocked
    for stores in ([store], ["vs_none"], ["'; --"]):
        search = {"type": "file_search", "vector_store_ids": stores}
        with pytest.raises(openai.NotFoundError):
            house.client("people").responses.create(model="people", input="goods", tools=[search])
        with pytest.raises(openai.NotFoundError):
            house.client("people").chat.completions.create(
                model="people",
                messages=[{"role": "user", "content": "goods"}],
                extra_body={"retrieval": {"vector_store_ids": stores}},
            )


def test_an_expired_store_that_a_request_names_is_told(stocked: tuple[House, str]) -> None:
    house, store = stocked
    client = house.client()
    client.vector_stores.update(store, expires_after={"anchor": "last_active_at", "days": 1})
    with house.catalog.session() as session:
        session.execute(update(VectorStore).where(VectorStore.id == store).values(last_active_at=time.time() - 90_000))
    search: Any = {"type": "file_search", "vector_store_ids": [store]}
    with pytest.raises(openai.BadRequestError) as told:
        client.responses.create(model="support", input="goods", tools=[search])
    assert told.value.code == "vector_store_expired" and store in told.value.message
    client.vector_stores.update(store, expires_after=None)
    assert client.responses.create(model="support", input="goods", tools=[search]).output


def test_chat_retrieves_from_where_a_request_says(stocked: tuple[House, str]) -> None:
    house, store = stocked
    farm = {"type": "eq", "key": "team", "value": "farm"}
    answer = house.client().chat.completions.create(
        model="support",
        messages=[{"role": "user", "content": "unopened goods days"}],
        extra_body={"retrieval": {"vector_store_ids": [store], "filters": farm, "top_k": 3}},
    )
    assert answer.choices[0].message.context["citations"][0]["filepath"] == "rice.md"
    assert "お米" in json.dumps(house.engine.requests[-1]["messages"], ensure_ascii=False)
