"""Who may do what: every route and scope, foreign identifiers, mangled keys, odd paths and hosts."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from lazily import Lazily
from scripted_house import NO_CERTIFICATES, House, built, eventually

from ryorin.catalog.keys import issue_key
from ryorin.catalog.tables import RequestLog
from ryorin.catalog.tenants import get_tenant
from ryorin.catalog.usage import set_limits
from ryorin.scopes import SCOPES
from ryorin_serve.app import Gateway
from ryorin_serve.auth import ScopedRoute
from ryorin_serve.front_door import PUBLIC
from ryorin_serve.options import ServeOptions

httpx = Lazily("httpx")
openai = Lazily("openai")
QUESTION = [{"role": "user", "content": "How long do refunds take?"}]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, empty_sqlite: Path) -> Iterator[House]:
    with built(tmp_path_factory.mktemp("scopes") / "home", empty_sqlite, ServeOptions(max_model_len=400)) as house:
        yield house
        client_of(house.url).close()


def routes_of(house: House) -> list[Any]:
    gateway = Gateway(
        house.catalog, house.shelf, house.engines, house.base,  # type: ignore[arg-type]
        engine_key="k", counter=None,  # type: ignore[arg-type]
    )  # fmt: skip
    return list(gateway.app().routes)


def key_with(house: House, *scopes: str, tenant: str = "support", **limits: int) -> str:
    with house.catalog.session() as session:
        row = get_tenant(session, tenant)
        key, secret = issue_key(session, row, house.catalog.settings.pepper(), scopes=scopes)
        set_limits(session, row, key, dict(limits))
        return secret


def calls(route: Any, value: str = "x") -> list[tuple[str, str]]:
    """(method, path) for each way to call a route, with `value` for each part of the path that varies."""
    path = route.path
    for name in route.param_convertors:
        path = path.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
    return [(method, path) for method in sorted(route.methods - {"HEAD"})]


def sent(house: House, method: str, path: str, key: str | None, **more: Any) -> Any:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return client_of(house.url).request(method, path, headers=headers | more.pop("headers", {}), **more)


@lru_cache(1)
def client_of(url: str) -> Any:
    """One for all requests of this file: making one costs more than a request."""
    return httpx.Client(base_url=url, verify=NO_CERTIFICATES)


def test_every_route_says_which_scopes_it_needs(house: House) -> None:
    routes = routes_of(house)
    assert len(routes) > 50
    for route in routes:
        assert route.path in PUBLIC or (isinstance(route, ScopedRoute) and route.scopes), route.path
        assert route.path in PUBLIC or set(route.scopes) <= set(SCOPES)


def test_a_key_without_the_scope_is_refused_by_every_route(house: House) -> None:
    keys = {scope: key_with(house, scope) for scope in SCOPES}
    for route in routes_of(house):
        if route.path in PUBLIC:
            continue
        for method, path in calls(route):
            for scope, key in keys.items():
                answer = sent(house, method, path, key, json={})
                if scope in route.scopes:
                    assert answer.status_code != 403, (method, path, scope)
                else:
                    assert answer.status_code == 403, (method, path, scope)
                    error = answer.json()["error"]
                    assert error["code"] == "missing_scope" and f"'{route.scopes[0]}'" in error["message"]
                    assert answer.headers["x-request-id"]


def test_no_route_is_open_without_a_key(house: House) -> None:
    mangled = [None, "ryo-", "ryo-000000000000", house.keys["support"][:-1], house.keys["support"] + "x", "null"]
    for route in routes_of(house):
        if route.path not in PUBLIC:
            for method, path in calls(route):
                for key in mangled:
                    assert sent(house, method, path, key).status_code == 401, (method, path, key)
    for path in (
        "/nowhere",
        "//v1/models",
        "/v1/%2e%2e/health",
        "/%2e%2e/health",
        "/health/",
        "/v1/models%00",
        "/HEALTH",
    ):
        assert sent(house, "GET", path, None).status_code == 401, path
    for host in ("evil.example", "localhost:99999", "a b", "[::1", "é".encode()):
        assert sent(house, "GET", "/v1/models", None, headers={"host": host}).status_code in (400, 401), host


def test_ten_thousand_keys_open_nothing(house: House) -> None:
    from ryorin.errors import AuthenticationFailed
    from ryorin_serve.auth import identify

    draw = random.Random(0)
    letters = string.printable + "é漢\0'\"%;\\"
    known = house.keys["support"]
    sql = ["' OR '1'='1", "ryo-%' --", "ryo-' UNION SELECT * FROM api_keys --", "ryo-" + "_" * 12, "ryo-" + "%" * 12]
    made = ("".join(draw.choice(letters) for _ in range(draw.randrange(1, 80))) for _ in range(4000))
    prefixed = ("ryo-" + "".join(draw.choice(letters) for _ in range(draw.randrange(60))) for _ in range(4000))
    changed = (known[:at] + draw.choice(letters) + known[at + 1 :] for at in draw.choices(range(len(known)), k=2000))
    pepper = house.catalog.settings.pepper()
    tried = 0
    for secret in (*sql, *made, *prefixed, *changed):
        if secret.strip() == known:
            continue
        with pytest.raises(AuthenticationFailed):
            identify(house.catalog, pepper, f"Bearer {secret}")
        tried += 1
    assert tried > 9900


def test_what_is_another_tenants_does_not_exist(house: House) -> None:
    """Every route with an identifier, called by `people` with identifiers of `support` and with ones of nobody."""
    admin = house.client("support", api_key=key_with(house, *SCOPES))
    file = admin.files.create(file=("a.jsonl", b'{"messages": []}'), purpose="fine-tune")
    key_id = sent(house, "GET", "/ryorin/v1/keys", house.keys["support"]).json()["data"][0]["id"]
    with house.catalog.session() as session:
        from ryorin.catalog.tables import VectorStore

        store = session.query(VectorStore).filter_by(tenant_id=house.ids["support"]).first()
    identifiers = [
        file.id,
        key_id,
        store.id,
        "1",
        "support@1",
        "support",
        "'; DROP TABLE tenants; --",
        "../x",
        "x" * 300,
    ]
    body = {"model": "support", "messages": QUESTION}
    for route in routes_of(house):
        if not route.param_convertors:
            continue
        for value in identifiers:
            for method, path in calls(route, value):
                own = "/releases/" in path and value == "1"  # people has a release 1 of its own
                answer = sent(house, method, path, house.keys["people"], json=None if own else body)
                if not own:
                    assert answer.status_code in (400, 404, 405), (method, path, answer.text)
                    assert "error" in answer.json()
    assert sent(house, "POST", "/v1/chat/completions", house.keys["people"], json=body).status_code == 404
    assert admin.files.retrieve(file.id).id == file.id


def test_keys_are_made_rotated_and_revoked_through_the_api(house: House) -> None:
    admin = key_with(house, "admin")

    def call(method: str, path: str, body: Any = None) -> Any:
        answer = sent(house, method, f"/ryorin/v1/keys{path}", admin, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    made = call("POST", "", {"label": "frontend", "scopes": ["chat"], "expires_in_s": 60, "requests_per_minute": 5})
    assert made["object"] == "ryorin.key" and made["scopes"] == ["chat"] and made["requests_per_minute"] == 5
    assert sent(house, "GET", "/v1/models", made["key"]).status_code == 200
    assert "key" not in call("GET", f"/{made['id']}")
    limited = call("POST", f"/{made['id']}/limits", {"requests_per_minute": None, "tokens_per_month": 9})
    assert (limited["requests_per_minute"], limited["tokens_per_month"]) == (None, 9)
    rotated = call("POST", f"/{made['id']}/rotate", {"grace_s": 0})
    assert rotated["replaces"] == made["id"] and rotated["tokens_per_month"] == 9
    assert sent(house, "GET", "/v1/models", made["key"]).status_code == 401
    assert sent(house, "GET", "/v1/models", rotated["key"]).status_code == 200
    assert call("DELETE", f"/{rotated['id']}")["revoked_at"] is not None
    assert sent(house, "GET", "/v1/models", rotated["key"]).status_code == 401
    assert made["id"] in {each["id"] for each in call("GET", "")["data"]}
    told = sent(house, "GET", "/ryorin/v1/audit?limit=20", admin).json()
    acts = [event["act"] for event in told["data"]]
    assert acts[:3] == ["key.revoke", "key.rotate", "limits.set"]
    assert all(event["actor"].startswith("key ryo-") and event["request_id"] for event in told["data"][:3])
    for wrong, param in (({"scopes": ["root"]}, "scopes"), ({"scopes": "chat"}, "scopes"), ({"secret": 1}, "secret")):
        answer = sent(house, "POST", "/ryorin/v1/keys", admin, json=wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_key_is_over_its_limit_and_is_told_when_it_may_again(house: House) -> None:
    client = house.client(api_key=key_with(house, "chat", requests_per_minute=3))
    moment = time.time() % 60
    if moment > 50:  # the minute must not end in between
        time.sleep(60 - moment)
    for left in (2, 1, 0):
        raw = client.chat.completions.with_raw_response.create(model="support", messages=QUESTION)
        assert raw.headers["x-ratelimit-limit-requests"] == "3"
        assert raw.headers["x-ratelimit-remaining-requests"] == str(left)
        assert 0 < int(raw.headers["x-ratelimit-reset-requests"].rstrip("s")) <= 60
    asked = len(house.engine.requests)
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="support", messages=QUESTION)
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "requests")
    assert "This key may use 3 requests a minute" in refused.value.message
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 60
    assert int(refused.value.response.headers["retry-after-ms"]) <= 60_000
    assert len(house.engine.requests) == asked
    client.models.list()  # which asks nothing of the engine
    assert house.client().chat.completions.create(model="support", messages=QUESTION)


@pytest.mark.parametrize("stream", [False, True])
def test_a_budget_of_tokens_is_counted_by_what_the_engine_says(house: House, stream: bool) -> None:
    """An answer takes 15 tokens: 11 of the prompt, 4 of its own."""
    client = house.client(api_key=key_with(house, "chat", tokens_per_month=20))
    for _ in range(2):  # the second begins below the budget, and is finished
        answer = client.chat.completions.create(model="support", messages=QUESTION, stream=stream)
        assert list(answer) if stream else answer.choices
    eventually(lambda: _refused(client))
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="support", messages=QUESTION)
    assert refused.value.code == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"


def _refused(client: Any) -> bool:
    try:
        client.chat.completions.create(model="support", messages=QUESTION)
    except openai.RateLimitError:
        return True
    return False


def test_a_tenants_limit_is_of_its_keys_together(house: House) -> None:
    house.add_tenant("sales")

    def limited(most: int | None) -> None:
        with house.catalog.session() as session:
            sales = get_tenant(session, "sales")
            set_limits(session, sales, sales, {"requests_per_minute": most})

    limited(4)
    moment = time.time() % 60
    if moment > 50:
        time.sleep(60 - moment)
    clients = [house.client(api_key=key_with(house, "chat", tenant="sales")) for _ in range(2)]
    for number in range(4):
        clients[number % 2].chat.completions.create(model="sales", messages=QUESTION)
    for client in clients:
        with pytest.raises(openai.RateLimitError, match="The tenant may use 4 requests a minute"):
            client.chat.completions.create(model="sales", messages=QUESTION)
    limited(None)
    assert clients[0].chat.completions.create(model="sales", messages=QUESTION)


def test_who_asked_is_kept_as_a_hash(house: House) -> None:
    house.client().chat.completions.create(model="support", messages=QUESTION, user="anna.k")

    def row() -> Any:
        with house.catalog.session() as session:
            return session.query(RequestLog).filter(RequestLog.asker.is_not(None)).first()

    found = eventually(row)
    assert len(found.asker) == 64 and "anna" not in str(vars(found))
