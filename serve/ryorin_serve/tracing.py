"""
Traces by OpenTelemetry: a span for each question, and in it one for its turn, its preparation (with another for finding
passages) and the engine.

They are on where `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector; OpenTelemetry's other variables hold as its own SDK
reads them. A `traceparent` of the client is continued and handed to vLLM. No question, answer or passage is in a span.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ryorin import __version__
from ryorin.errors import RequirementMissing

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from ryorin_serve.turn import Turn

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Traces:
    """The spans of one gateway. tracer: OpenTelemetry's; None makes none."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer
        self._close: Any = lambda: None

    @classmethod
    def by_environment(cls) -> Traces:
        """As the environment asks for. Raises RequirementMissing when it does and the packages are not installed."""
        if not os.environ.get(ENDPOINT):
            return cls()
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as missing:
            raise RequirementMissing(
                f"{ENDPOINT} is set and the package {missing.name!r} is not installed; get it with: pip install "
                "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
            ) from missing
        provider = TracerProvider(resource=Resource.create({"service.name": "ryorin"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        traces = cls(provider.get_tracer("ryorin", __version__))
        traces._close = provider.shutdown
        return traces

    def begin(self, turn: Turn, headers: Mapping[str, str]) -> None:
        """A question came in; its span goes on until `end`."""
        if self._tracer is None:
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        turn.span = self._tracer.start_span("question", extract(headers), SpanKind.SERVER)

    @contextlib.contextmanager
    def step(self, turn: Turn, name: str) -> Iterator[None]:
        """A part of the way of a question."""
        if self._tracer is None or turn.span is None:
            yield
            return
        from opentelemetry.trace import set_span_in_context

        with self._tracer.start_as_current_span(name, set_span_in_context(turn.span)):
            yield

    @contextlib.contextmanager
    def within(self, name: str) -> Iterator[None]:
        """A part of the step that is being taken, in whatever thread."""
        if self._tracer is None:
            yield
            return
        from opentelemetry.trace import get_current_span

        if not get_current_span().is_recording():  # a shadow's
            yield
            return
        with self._tracer.start_as_current_span(name):
            yield

    def end(self, turn: Turn, status: str) -> None:
        """The question is answered, or not."""
        if turn.span is None:
            return
        from opentelemetry.trace import StatusCode

        prepared, usage = turn.prepared, turn.usage
        turn.span.set_attributes(
            {
                "ryorin.request_id": turn.request_id,
                "ryorin.tenant": turn.caller.tenant_name,
                "ryorin.release": prepared.release.version,
                "ryorin.part": prepared.part,
                "ryorin.status": status,
                "ryorin.passages": len(prepared.hits or ()),
                "gen_ai.usage.input_tokens": usage.get("prompt_tokens") or 0,
                "gen_ai.usage.output_tokens": usage.get("completion_tokens") or 0,
            }
        )
        self._finish(turn, StatusCode.OK if status == "ok" else StatusCode.ERROR)

    def refused(self, turn: Turn) -> None:
        """The question was not let in, or could not be prepared."""
        if turn.span is not None:
            from opentelemetry.trace import StatusCode

            self._finish(turn, StatusCode.ERROR)

    def engine_headers(self, turn: Turn) -> dict[str, str]:
        """What the engine's request carries, so that its spans belong to the question's."""
        headers: dict[str, str] = {}
        if turn.span is not None:
            from opentelemetry.propagate import inject
            from opentelemetry.trace import set_span_in_context

            inject(headers, set_span_in_context(turn.span))
        return headers

    def close(self) -> None:
        """Send what is left. Blocking."""
        self._close()

    @staticmethod
    def _finish(turn: Turn, code: Any) -> None:
        span: Span | None = turn.span
        if span is not None:
            span.set_status(code)
            span.end()
            turn.span = None
