"""/v1/files as the unmodified openai client sees it."""

from __future__ import annotations

import hashlib
import time

import httpx
import pytest
from lazily import Lazily
from scripted_house import NO_CERTIFICATES, House
from sqlalchemy import select, update

from ryorin.catalog.audit import audit_events
from ryorin.catalog.tables import File
from ryorin_serve.files import clear_away

openai = Lazily("openai")

TEXT = b"# Returns\n\nUnopened goods go back within 30 days.\n"


@pytest.fixture
def client(library: House) -> openai.OpenAI:
    return library.client()


def send(library: House, method: str = "POST", path: str = "/v1/files", key: str = "support", **more):
    headers = {"authorization": f"Bearer {library.keys.get(key, key)}"} | more.pop("headers", {})
    return httpx.request(method, library.url + path, headers=headers, timeout=60, verify=NO_CERTIFICATES, **more)


def form(purpose: str | None = "assistants", name: str = "returns.md", data: bytes = TEXT, **fields):
    fields = fields if purpose is None else {"purpose": purpose, **fields}
    return {"files": {"file": (name, data)}, "data": fields}


def error_of(response: httpx.Response, status: int = 400) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"].startswith("req_")
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.json()["error"]


def test_a_file_comes_back_as_it_went_in(library: House, client: openai.OpenAI):
    made = client.files.create(file=("年次/../returns.md", TEXT), purpose="assistants")
    assert (made.object, made.bytes, made.filename) == ("file", len(TEXT), "returns.md")
    assert (made.purpose, made.status, made.expires_at) == ("assistants", "processed", None)
    assert abs(made.created_at - time.time()) < 60
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == TEXT
    assert client.files.wait_for_processing(made.id).id == made.id
    raw = send(library, "GET", f"/v1/files/{made.id}")
    assert {"expires_at", "status_details"}.isdisjoint(raw.json())


def test_a_file_larger_than_one_write_is_kept_whole(library: House, client: openai.OpenAI, monkeypatch):
    monkeypatch.setattr("ryorin_serve.uploads.WRITE_BYTES", 1000)
    data = bytes(range(256)) * 700
    made = client.files.create(file=("all.bin", data), purpose="user_data")
    assert hashlib.sha256(client.files.content(made.id).read()).digest() == hashlib.sha256(data).digest()


def test_a_deleted_file_is_gone_with_its_bytes_unless_another_file_has_the_same(library: House, client: openai.OpenAI):
    data = b"the same bytes twice"
    first, second = (client.files.create(file=(name, data), purpose="user_data") for name in ("a.txt", "b.txt"))
    sha256 = hashlib.sha256(data).hexdigest()
    blob = library.catalog.settings.blobs_dir / sha256[:2] / sha256
    assert client.files.delete(first.id).deleted
    assert (blob.exists(), client.files.content(second.id).read()) == (True, data)
    client.files.delete(second.id)
    assert not blob.exists()
    with pytest.raises(openai.NotFoundError, match=f"No such File object: {second.id}"):
        client.files.retrieve(second.id)
    assert not list(library.catalog.settings.blobs_dir.glob("new.*"))


def test_lists_by_page_order_and_purpose(library: House):
    library.add_tenant("files")
    client = library.client("files")
    made = [client.files.create(file=(f"{n}.txt", b"x"), purpose=("batch", "vision")[n % 2]).id for n in range(5)]
    assert [file.id for file in client.files.list(order="asc")] == made
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]  # the client follows has_more
    page = client.files.list(limit=2, order="asc", after=made[1])
    assert ([file.id for file in page.data], page.has_more) == (made[2:4], True)
    assert [file.id for file in client.files.list(purpose="vision", order="asc")] == made[1::2]
    raw = send(library, "GET", "/v1/files?limit=2&order=asc", key="files").json()
    assert (raw["first_id"], raw["last_id"], raw["has_more"]) == (made[0], made[1], True)
    empty = send(library, "GET", "/v1/files?purpose=evals", key="files").json()
    assert (empty["data"], empty["first_id"], empty["has_more"]) == ([], None, False)


def test_an_expired_file_is_not_found_and_is_cleared_away(library: House, client: openai.OpenAI):
    made = client.files.create(
        file=("soon.txt", b"soon gone"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600
    with library.catalog.session() as session:
        session.execute(update(File).where(File.id == made.id).values(expires_at=time.time() - 1))
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)
    assert made.id not in [file.id for file in client.files.list()]
    clear_away(library.catalog)
    with library.catalog.session() as session:
        assert session.scalar(select(File).where(File.id == made.id)) is None


def test_whoever_deletes_a_file_is_written_down(library: House, client: openai.OpenAI):
    gone, expired = (client.files.create(file=(f"{n}.txt", b"x"), purpose="batch").id for n in ("gone", "expired"))
    client.files.delete(gone)
    with pytest.raises(openai.NotFoundError):
        client.files.delete(gone)
    with library.catalog.session() as session:
        session.execute(update(File).where(File.id == expired).values(expires_at=time.time() - 1))
    clear_away(library.catalog)
    with library.catalog.session() as session:
        acts = {act.target: act for act in audit_events(session, library.ids["support"]) if act.act == "file.delete"}
    assert acts[gone].actor.startswith("key ") and acts[gone].request_id.startswith("req_")
    assert (acts[expired].actor, acts[expired].detail) == ("expires_after", {"filename": "expired.txt", "stores": []})


def test_the_same_request_twice_makes_one_file(library: House, client: openai.OpenAI):
    again = {"Idempotency-Key": "upload-1"}
    first, second = (
        client.files.create(file=("a.txt", b"abc"), purpose="user_data", extra_headers=again) for _ in range(2)
    )
    assert first == second
    with pytest.raises(openai.BadRequestError, match="used for another file") as refused:
        client.files.create(file=("a.txt", b"abd"), purpose="user_data", extra_headers=again)
    assert refused.value.code == "idempotency_key_reused"
    other = library.client("people").files.create(file=("a.txt", b"abc"), purpose="user_data", extra_headers=again)
    assert other.id != first.id
    error = error_of(send(library, **form(), headers={"Idempotency-Key": "k" * 256}))
    assert error["param"] == "Idempotency-Key"


@pytest.mark.parametrize(
    ("request_", "status", "param"),
    [
        (form("homework"), 400, "purpose"),
        (form(None), 400, "purpose"),
        (form(colour="red"), 400, "colour"),
        (form(name="x" * 256), 400, "file"),
        (form(name=".."), 400, "file"),
        ({"data": {"purpose": "batch"}, "files": {}}, 400, "file"),
        ({"files": {"purpose": (None, "batch")}}, 400, "file"),
        ({"files": [("file", ("a", b"1")), ("file", ("b", b"2"))], "data": {"purpose": "batch"}}, 400, "file"),
        ({"content": b"{}", "headers": {"content-type": "application/json"}}, 400, "file"),
        ({"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, None),
        ({"content": b"nonsense", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, None),
        (form(**{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}), 400, "seconds"),
        (form(**{"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"}), 400, "seconds"),
        (form(**{"expires_after[anchor]": "created_at", "expires_after[seconds]": "1e4"}), 400, "seconds"),
        (form(**{"expires_after[anchor]": "never", "expires_after[seconds]": "3600"}), 400, "anchor"),
        (form(**{"expires_after[seconds]": "3600"}), 400, "anchor"),
        (form(data=b"x" * 200_001), 413, "file"),
        (form(data=b"x" * 300_000), 413, "file"),
        (form(purpose="x" * 70_000), 413, None),
    ],
)
def test_what_is_refused(library: House, request_: dict, status: int, param: str | None):
    error = error_of(send(library, **request_), status)
    assert param in (error["param"] or "") if param else error["message"]
    assert not list(library.catalog.settings.blobs_dir.glob("new.*"))


def test_a_file_of_the_limit_is_taken_and_one_without_announced_length_is_measured(library: House):
    assert send(library, **form(data=b"x" * 200_000)).status_code == 200

    def body(size: int):
        yield b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(size // 1000):
            yield b"y" * 1000
        yield b"\r\n--b--\r\n"

    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert send(library, content=body(200_000), headers=kind).json()["bytes"] == 200_000
    assert error_of(send(library, content=body(210_000), headers=kind), 413)["code"] == "file_too_large"


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "order=up", "after=file-none", "shoe=1"])
def test_what_a_list_refuses(library: House, query: str):
    assert error_of(send(library, "GET", f"/v1/files?{query}"))["param"] == query.partition("=")[0]


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("DELETE", ""), ("GET", "/content")])
def test_another_tenants_file_is_an_unknown_one_and_no_key_is_no_entry(library: House, client, method: str, tail: str):
    theirs = library.client("people").files.create(file=("secret.txt", b"secret"), purpose="user_data").id
    unknown = theirs[:-1] + ("0" if theirs[-1] != "0" else "1")
    asked = {name: error_of(send(library, method, f"/v1/files/{name}{tail}"), 404) for name in (theirs, unknown)}
    assert asked[theirs]["message"].replace(theirs, unknown) == asked[unknown]["message"]
    assert error_of(send(library, method, f"/v1/files/%00{tail}"), 404)
    assert send(library, method, f"/v1/files/{theirs}{tail}", key="ryo-none").status_code == 401
    assert send(library, key="ryo-none", **form()).status_code == 401
    assert library.client("people").files.retrieve(theirs).id == theirs
