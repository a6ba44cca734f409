"""`/ryorin/v1/releases` over real HTTP, beside the gateway that loads what is promoted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from scripted_house import NO_CERTIFICATES, House

QUESTION = [{"role": "user", "content": "How long does a refund take?"}]
ADAPTER, OTHER = "support-0123456789ab", "support-ba9876543210"
RELEASES = "/ryorin/v1/releases"


def call(house: House, method: str, path: str = "", body: Any = None, key: str = "support", **headers: str) -> Any:
    headers = {"authorization": f"Bearer {house.keys[key]}", **headers}
    url = f"{house.url}{RELEASES}{path}"
    return httpx.request(method, url, json=body, headers=headers, verify=NO_CERTIFICATES, timeout=60)


def good(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if status == 409:
        assert response.headers["x-should-retry"] == "false", "the openai client would ask three times"
    return error


def candidate(house: House, adapter: str | None = ADAPTER, rank: int = 16, **more: Any) -> int:
    if adapter and adapter not in house.adapter_digests:
        house.adapter_folder(adapter, rank=rank)
    return house.release("support", adapter=adapter, promote=False, **more)


def test_releases_are_listed_by_pages_and_shown(house: House):
    candidate(house)
    page = good(call(house, "GET", "?limit=1"))
    assert (page["object"], [row["version"] for row in page["data"]], page["has_more"]) == ("list", [2], True)
    rest = good(call(house, "GET", f"?after={page['last_id']}"))
    assert [row["version"] for row in rest["data"]] == [1] and not rest["has_more"]
    shown = good(call(house, "GET", "/2"))
    assert shown == page["data"][0]
    assert (shown["object"], shown["adapter"], shown["stores"]) == ("ryorin.release", ADAPTER, ["handbook"])
    assert [row["traffic"] for row in good(call(house, "GET"))["data"]] == [None, "live"]
    assert len(good(call(house, "GET", key="people"))["data"]) == 1


def test_creating_and_promoting(house: House):
    candidate(house)
    made = good(call(house, "POST", body={"adapter": ADAPTER, "retrieval": {"top_k": 1, "mode": "dense"}, "note": "n"}))
    assert (made["version"], made["live"], made["retrieval"]["top_k"], made["note"]) == (3, False, 1, "n")
    assert made["base"] == house.base.digest
    live = good(call(house, "POST", body={"adapter": "none", "stores": [], "promote": True}))
    assert (live["version"], live["traffic"], live["adapter"], live["stores"]) == (4, "live", None, [])
    moved = good(call(house, "POST", "/3/promote"))
    assert (moved["part"], moved["version"], moved["previous"]) == ("live", 3, 4)
    assert moved["gateways"] == 1 and house.engine.loads == [ADAPTER]
    assert not good(call(house, "POST", "/3/promote", {"wait_s": 5}))["changed"]
    back = good(call(house, "POST", "/rollback"))
    assert (back["version"], back["previous"], back["changed"]) == (4, 3, True)


def test_the_same_creation_twice_is_one_release(house: House):
    body = {"adapter": "none", "note": "once"}
    first = good(call(house, "POST", body=body, **{"idempotency-key": "k"}))
    assert good(call(house, "POST", body=body, **{"idempotency-key": "k"})) == first
    error = refused(call(house, "POST", body=body | {"note": "twice"}, **{"idempotency-key": "k"}), 400)
    assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")
    waits = {**body, "wait_s": 1}
    assert good(call(house, "POST", body=waits, **{"idempotency-key": "k"})) == first, "to wait longer is no other"
    assert good(call(house, "POST", body=body))["version"] == first["version"] + 1


def test_one_creation_sent_by_several_at_once_is_one_release(house: House):
    body = {"adapter": "none", "note": "at once"}
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: call(house, "POST", body=body, **{"idempotency-key": "k"}), range(8)))
    assert len({good(each)["version"] for each in made}) == 1


def test_swapping_the_adapter_is_one_call(house: House):
    house.adapter_folder(ADAPTER)
    house.release("support", adapter=ADAPTER)
    candidate(house, OTHER, rank=8)
    moved = good(call(house, "POST", "/swap_adapter", {"adapter": OTHER}))
    assert (moved["version"], moved["previous"]) == (3, 2)
    house.client().chat.completions.create(model="support", messages=QUESTION)
    assert house.engine.requests[-1]["model"] == OTHER
    assert refused(call(house, "POST", "/swap_adapter", {}), 400)["param"] == "adapter"
    assert refused(call(house, "POST", "/swap_adapter", {"adapter": "support-ffffffffffff"}), 404)["param"] == "adapter"


def test_what_cannot_be_loaded_is_a_409_and_changes_nothing(house: House):
    candidate(house)
    house.engine.refuse_load = (400, "no such module")
    for path, body in (("/2/promote", {}), ("/2/canary", {"share": 0.1}), ("/2/shadow", {}), ("/swap_adapter", None)):
        error = refused(call(house, "POST", path, {"adapter": ADAPTER} if body is None else body), 409)
        assert error["code"] == "release_not_loaded" and "no such module" in error["message"]
    made = call(house, "POST", body={"adapter": ADAPTER, "promote": True})
    assert refused(made, 409)["code"] == "release_not_loaded"
    assert [row["traffic"] for row in good(call(house, "GET"))["data"]] == [None, None, "live"]
    house.engine.refuse_load = None
    house.engine.stop()
    late = call(house, "POST", "/2/promote", {"wait_s": 0.3})
    assert refused(late, 503)["code"] == "release_not_loaded" and late.headers["retry-after"]


def test_canary_shadow_and_status(house: House):
    candidate(house)
    moved = good(call(house, "POST", "/2/canary", {"share": "50%"}))
    assert (moved["part"], moved["version"], moved["share"], moved["gateways"]) == ("canary", 2, 0.5, 1)
    candidate(house, OTHER, rank=8)
    assert good(call(house, "POST", "/3/shadow"))["share"] == 1.0
    for n in range(6):
        house.client().chat.completions.create(model="support", messages=QUESTION, user=f"user {n}")
    house.logs(12)
    status = good(call(house, "GET", "/status?hours=0.5"))["data"]
    assert [row["part"] for row in status[:3]] == ["live", "canary", "shadow"]
    assert status[0]["requests"] + status[1]["requests"] == 6 == status[2]["requests"]
    assert good(call(house, "DELETE", "/canary"))["previous"] == 2
    assert good(call(house, "DELETE", "/shadow"))["changed"]
    assert not good(call(house, "DELETE", "/shadow"))["changed"]


def test_what_differs(house: House):
    candidate(house, system="Another desk.")
    found = good(call(house, "GET", "/diff?first=1&second=2"))
    assert found["parts"] == [{"part": "adapter", "first": None, "second": ADAPTER}]
    assert "+Another desk." in found["prompt"].splitlines()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("GET", "/9", None, 404, "version"),
        ("GET", "/x", None, 404, "version"),
        ("GET", "?page=2", None, 400, "page"),
        ("GET", "?after=rel_none", None, 400, "after"),
        ("GET", "/diff?first=1", None, 400, "second"),
        ("GET", "/status?hours=-1", None, 400, "hours"),
        ("GET", "/status?hours=nan", None, 400, "hours"),
        ("POST", "/9/promote", None, 404, "version"),
        ("POST", "/1/promote", {"force": True}, 400, "force"),
        ("POST", "/1/promote", {"wait_s": -1}, 400, "wait_s"),
        ("POST", "/1/promote", {"wait_s": 601}, 400, "wait_s"),
        ("POST", "/1/canary", {}, 400, "share"),
        ("POST", "/1/canary", {"share": 0}, 400, "share"),
        ("POST", "/1/canary", {"share": True}, 400, "share"),
        ("POST", "/1/canary", {"share": 0.5}, 409, "version"),
        ("POST", "/rollback", None, 409, None),
        ("POST", "", {"adapters": "x"}, 400, "adapters"),
        ("POST", "", {"adapter": "nope"}, 404, "adapter"),
        ("POST", "", {"stores": "handbook"}, 400, "stores"),
        ("POST", "", {"stores": ["nope"]}, 404, "store"),
        ("POST", "", {"retrieval": {"topk": 3}}, 400, "retrieval.topk"),
        ("POST", "", {"retrieval": {"top_k": "3"}}, 400, "retrieval.top_k"),
        ("POST", "", {"retrieval": {"top_k": True}}, 400, "retrieval.top_k"),
        ("POST", "", {"retrieval": {"top_k": 51}}, 400, "top_k"),
        ("POST", "", {"retrieval": {"reranker": "/etc"}}, 400, "retrieval.reranker"),
        ("POST", "", {"promote": "yes"}, 400, "promote"),
        ("PUT", "/1", None, 405, None),
    ],
)
def test_refusals(standing_house: House, method: str, path: str, body: Any, status: int, param: str | None):
    assert refused(call(standing_house, method, path, body), status)["param"] == param


def test_another_tenants_releases_are_out_of_reach(house: House):
    candidate(house)
    assert refused(call(house, "POST", "/2/promote", key="people"), 404)["param"] == "version"
    assert refused(call(house, "POST", body={"adapter": ADAPTER}, key="people"), 404)["param"] == "adapter"
    assert httpx.get(f"{house.url}{RELEASES}").status_code == 401
