"""What Prometheus is told, what stands on the dashboard, and a gateway under more than it may answer."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lazily import Lazily
from prometheus_client.parser import text_string_to_metric_families
from scripted_house import NO_CERTIFICATES, House, built, eventually

from ryorin_serve.options import ServeOptions

httpx = Lazily("httpx")
openai = Lazily("openai")
QUESTION = [{"role": "user", "content": "How long do refunds take?"}]
DEPLOY = Path(__file__).parents[2] / "deploy"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def house(tmp_path: Path, empty_sqlite: Path, port: int) -> Iterator[House]:
    options = ServeOptions(max_model_len=400, max_running=2, max_waiting=3, max_wait_s=20, metrics_port=port)
    with built(tmp_path / "home", empty_sqlite, options) as house:
        yield house


def figures(port: int) -> dict[tuple[str, ...], float]:
    """(name, label values in order) → value."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", verify=NO_CERTIFICATES).text
    return {
        (sample.name, *[value for _, value in sorted(sample.labels.items())]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def ask(house: House, tenant: str = "support", **more: Any) -> Any:
    return house.client(tenant).chat.completions.create(model=tenant, messages=QUESTION, **more)


def test_figures_of_tenants_and_releases(house: House, port: int) -> None:
    ask(house)
    list(ask(house, stream=True))
    house.engine.pieces = ["So [9]."]
    ask(house, "people")
    desk = house.client("people").responses
    desk.create(model="people", input="How long?")
    list(desk.create(model="people", input="How long?", stream=True))
    house.engine.pieces, house.engine.cut_after = ["So [9]. ", "And", "so on"], 2
    list(desk.create(model="people", input="How long?", stream=True))  # what broke off lost a marker too
    house.logs(6)
    found = figures(port)
    assert found["ryorin_requests_total", "live", "support@1", "ok", "support"] == 2
    assert found["ryorin_requests_total", "live", "people@1", "ok", "people"] == 3
    assert found["ryorin_tokens_total", "prompt", "support@1", "support"] == 22
    assert found["ryorin_tokens_total", "completion", "support@1", "support"] == 8
    assert found["ryorin_first_token_seconds_count", "support@1", "support"] == 1
    assert found["ryorin_output_token_seconds_count", "support@1", "support"] == 1
    first, each, total = (
        found[f"ryorin_{name}_seconds_sum", "support@1", "support"]
        for name in ("first_token", "output_token", "request")
    )
    assert 0 < first + 3 * each < total  # of four tokens; the total is of the whole answer too
    assert found["ryorin_request_seconds_count", "support@1", "support"] == 2
    assert found["ryorin_retrieval_seconds_count", "support@1", "support"] == 2
    assert found["ryorin_removed_markers_total", "people@1", "people"] == 4
    assert found["ryorin_queue_wait_seconds_count",] == 6
    assert (found["ryorin_running",], found["ryorin_waiting",], found["ryorin_engines_ready",]) == (0, 0, 1)


def test_the_figures_are_not_on_the_port_of_the_api(house: House) -> None:
    for key in (None, house.keys["support"]):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        answer = httpx.get(f"{house.url}/metrics", headers=headers, verify=NO_CERTIFICATES)
        assert answer.status_code == (401 if key is None else 404)


def test_what_is_too_much_waits_and_what_is_more_is_sent_away(house: House, port: int) -> None:
    house.engine.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, house) for _ in range(5)]
        eventually(lambda: figures(port)["ryorin_waiting",] == 3)
        with pytest.raises(openai.InternalServerError) as refused:
            ask(house)
        assert (refused.value.status_code, refused.value.code) == (503, "queue_full")
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert len(house.engine.requests) == 2 == figures(port)["ryorin_running",]
        other = pool.submit(ask, house, "people")  # a tenant that asks little takes the place of the newest
        eventually(lambda: any(each.done() for each in asked))
        house.engine.gate.set()
        answered = [each for each in asked if each.exception(30) is None]
        assert len(answered) == 4 and other.result(30).choices
    house.logs(5)
    assert figures(port)["ryorin_refused_total", "queue_full", "support"] == 2
    house.engine.state = "down"
    with pytest.raises(openai.InternalServerError):
        ask(house, "people")
    house.engine.state = "ready"
    assert figures(port)["ryorin_refused_total", "engine_unavailable", "people"] == 1
    assert ask(house).choices  # and it goes on


def test_who_leaves_while_waiting_is_never_asked_for(house: House, port: int) -> None:
    house.engine.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, house) for _ in range(2)]
        eventually(lambda: len(house.engine.requests) == 2)
        with pytest.raises(openai.APITimeoutError):
            ask(house, timeout=0.3)
        eventually(lambda: figures(port)["ryorin_waiting",] == 0)
        house.engine.gate.set()
        assert all(each.result(30).choices for each in asked)
    assert len(house.engine.requests) == 2


def test_an_engine_that_falls_silent_is_taken_for_dead(tmp_path: Path, empty_sqlite: Path) -> None:
    options = ServeOptions(max_model_len=400, engine_silence_s=0.3)
    with built(tmp_path / "home", empty_sqlite, options) as house:
        house.engine.gate.clear()
        with pytest.raises(openai.APIError, match="stopped in the middle"):
            list(ask(house, stream=True))
        with pytest.raises(openai.InternalServerError, match="went away"):
            ask(house)
        house.engine.gate.set()
        assert [log.status for log in house.logs(2)] == ["error", "error"]


def test_the_dashboard_and_the_page_name_figures_that_there_are(house: House, port: int) -> None:
    ask(house)
    ask(house, stream=True).close()
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", verify=NO_CERTIFICATES).text
    known = {family.name for family in text_string_to_metric_families(text)}
    dashboard = json.loads((DEPLOY / "grafana" / "ryorin.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(queries) >= 8
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for words in (*queries, page):
        for name in re.findall(r"ryorin_[a-z_]+", words):
            assert re.sub(r"_(total|bucket|sum|count)$", "", name) in known, name
    for name in known:
        if name.startswith("ryorin_"):
            assert name in page, f"{name} is not on the page"


def test_threads_of_the_figures_end_with_the_gateway(tmp_path: Path, empty_sqlite: Path) -> None:
    port = free_port()
    with built(tmp_path / "home", empty_sqlite, ServeOptions(max_model_len=400, metrics_port=port)):
        assert figures(port)
    with socket.socket() as caller:
        assert caller.connect_ex(("127.0.0.1", port)) != 0
    assert not [thread for thread in threading.enumerate() if "start_http_server" in thread.name]
