"""Spans of questions, by OpenTelemetry's own SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lazily import Lazily
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from scripted_house import House, built, eventually

from ryorin_serve.options import ServeOptions
from ryorin_serve.tracing import ENDPOINT, Traces

openai = Lazily("openai")
QUESTION = [{"role": "user", "content": "How long do refunds take?"}]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def house(tmp_path: Path, empty_sqlite: Path, spans: InMemorySpanExporter) -> Iterator[House]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    traces = Traces(provider.get_tracer("test"))
    with built(tmp_path / "home", empty_sqlite, ServeOptions(max_model_len=400), traces=traces) as house:
        yield house


def finished(spans: InMemorySpanExporter, count: int) -> dict[str, Any]:
    found = eventually(lambda: each if len(each := spans.get_finished_spans()) >= count else None, 10)
    return {span.name: span for span in found}


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_is_a_span_that_goes_on_a_clients_trace(
    house: House, spans: InMemorySpanExporter, stream: bool
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    answer = house.client().chat.completions.create(
        model="support", messages=QUESTION, stream=stream, extra_headers=headers
    )
    if stream:
        list(answer)
    found = finished(spans, 5)
    assert set(found) == {"question", "queue", "prepare", "retrieve", "engine"}
    question = found["question"]
    assert f"{question.context.trace_id:032x}" == TRACE and f"{question.parent.span_id:016x}" == PARENT
    assert question.attributes["ryorin.tenant"] == "support" and question.attributes["ryorin.status"] == "ok"
    assert question.attributes["gen_ai.usage.output_tokens"] == 4 and question.attributes["ryorin.passages"] == 3
    assert question.status.is_ok
    for name in ("queue", "prepare", "engine"):
        assert found[name].parent.span_id == question.context.span_id
        assert found[name].start_time >= question.start_time and found[name].end_time <= question.end_time
    retrieve, prepare = found["retrieve"], found["prepare"]
    assert retrieve.parent.span_id == prepare.context.span_id and retrieve.end_time <= prepare.end_time
    assert house.engine.traceparents == [f"00-{TRACE}-{question.context.span_id:016x}-01"]
    told = json.dumps([str(span.to_json()) for span in spans.get_finished_spans()])
    assert "refunds" not in told and "Refunds" not in told


def test_what_is_refused_ends_its_span_with_an_error(house: House, spans: InMemorySpanExporter) -> None:
    with pytest.raises(openai.NotFoundError):
        house.client().chat.completions.create(model="nobody", messages=QUESTION)
    question = finished(spans, 3)["question"]
    assert not question.status.is_ok
    house.engine.refuse = (500, "broken")
    with pytest.raises(openai.InternalServerError):
        house.client().chat.completions.create(model="support", messages=QUESTION)
    assert finished(spans, 8)["question"].attributes["ryorin.status"] == "error"


def test_without_a_collector_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert Traces.by_environment()._tracer is None
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    traces = Traces.by_environment()
    assert traces._tracer is not None
    traces.close()
