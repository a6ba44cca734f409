"""
What the gateway tells Prometheus, on a port of its own.

The port is apart from the API's and on loopback unless told otherwise: the figures are of all tenants, and no tenant's
key may see them. What each means stands in its help text; docs/operations.md has them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)

if TYPE_CHECKING:
    from ryorin_serve.turn import Turn

MOST_LABELS = 1000  # tenants and releases that have figures of their own; the others are OTHER together
OTHER = "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

disable_created_metrics()  # type: ignore[no-untyped-call]  # when a series began is no figure of ours


class Metrics:
    """The figures of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._releases: set[str] = set()
        self._refused_tenants: set[str] = set()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ryorin_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"ryorin_{name}", text, labels, registry=self.registry, buckets=SECONDS)

        of = ("tenant", "release")
        self._requests = counter("requests", "Questions that were let in, by how they ended", *of, "part", "status")
        self._tokens = counter("tokens", "Tokens by kind: prompt, cached (of the prompt), completion", *of, "kind")
        self._first = histogram("first_token_seconds", "From the question to the first text of a streamed answer", *of)
        self._token = histogram(
            "output_token_seconds", "Between two tokens of a streamed answer, in the mean of the answer", *of
        )
        self._total = histogram("request_seconds", "From the question to the answer's end", *of)
        self._retrieval = histogram("retrieval_seconds", "Of finding passages", *of)
        self._markers = counter("removed_markers", "Citations of passages that were not there", *of)
        self._refused = counter("refused", "Questions that were sent away, by code", "tenant", "reason")
        self._waited = histogram("queue_wait_seconds", "That a question waited for its turn")
        self._gauges = {
            name: Gauge(f"ryorin_{name}", text, registry=self.registry)
            for name, text in (
                ("running", "Questions that are being answered"),
                ("waiting", "Questions that wait for their turn"),
                ("engines_ready", "Engines (vLLM) that answer"),
                ("log_rows_dropped", "Rows of the request log that were lost"),
            )
        }

    def watch(self, name: str, figure: Any) -> None:
        """A gauge is read by this function whenever it is asked for."""
        self._gauges[name].set_function(figure)

    def ended(self, turn: Turn, status: str, total_s: float) -> None:
        """A question's end."""
        prepared, usage = turn.prepared, turn.usage
        tenant, release = turn.caller.tenant_name, f"{turn.caller.tenant_name}@{prepared.release.version}"
        if release not in self._releases and len(self._releases) >= MOST_LABELS:
            tenant = release = OTHER
        self._releases.add(release)
        of = (tenant, release)
        self._requests.labels(*of, turn.part, status).inc()
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        for kind, count in (
            ("prompt", usage.get("prompt_tokens")),
            ("cached", cached),
            ("completion", usage.get("completion_tokens")),
        ):
            if count:
                self._tokens.labels(*of, kind).inc(count)
        if turn.first_token_ms is not None:
            self._first.labels(*of).observe(turn.first_token_ms / 1000)
            later = (usage.get("completion_tokens") or 0) - 1
            if later > 0 and len(turn.texts) == 1:  # the tokens of several choices are counted together
                self._token.labels(*of).observe((total_s - turn.first_token_ms / 1000) / later)
        self._total.labels(*of).observe(total_s)
        if prepared.hits is not None:
            self._retrieval.labels(*of).observe(prepared.retrieval_ms / 1000)
        if removed := sum(turn.removed.values()):
            self._markers.labels(*of).inc(removed)

    def refused(self, tenant: str, reason: str) -> None:
        """A question was sent away."""
        if tenant not in self._refused_tenants and len(self._refused_tenants) >= MOST_LABELS:
            tenant = OTHER
        self._refused_tenants.add(tenant)
        self._refused.labels(tenant, reason).inc()

    def waited(self, seconds: float) -> None:
        """A question waited for its turn."""
        self._waited.observe(seconds)

    def serve(self, host: str, port: int) -> Any:
        """Serve the figures from a thread; what it returns is called to stop. Raises OSError when the port is taken."""
        server, thread = start_http_server(port, host, registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop
