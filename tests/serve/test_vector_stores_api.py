"""/v1/vector_stores as the unmodified openai client sees it: a real worker indexes, a real searcher searches."""

from __future__ import annotations

import io
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from gated_embedder import GatedEmbedder
from lazily import Lazily
from scripted_house import House
from sqlalchemy import select, update
from test_files_api import error_of, send

from ryorin import release as releases
from ryorin.catalog import tenants
from ryorin.catalog.tables import Prompt, VectorStore
from ryorin_index.ingest import Incoming, put_document

openai = Lazily("openai")

GOODS = b"# Returns\n\nUnopened goods go back within 30 days.\n"
RICE = "# 定期便\n\nお米は毎月届きます。\n".encode()
PARKING = b"# Parking\n\nParking is free for 3 hours.\n"


@pytest.fixture
def client(library: House) -> openai.OpenAI:
    return library.client()


@pytest.fixture
def store(client: openai.OpenAI) -> str:
    return client.vector_stores.create(name="Handbook").id


@contextmanager
def held(embedder: GatedEmbedder):
    """Nothing is embedded within."""
    embedder.gate.clear()
    try:
        yield
    finally:
        embedder.gate.set()


def upload(client: openai.OpenAI, name: str, data: bytes) -> str:
    return client.files.create(file=(name, data), purpose="assistants").id


def fill(client: openai.OpenAI, store: str, name: str, data: bytes, **more) -> str:
    done = client.vector_stores.files.upload_and_poll(
        vector_store_id=store, file=(name, data), poll_interval_ms=20, **more
    )
    assert done.status == "completed", done.last_error
    return done.id


def found(client: openai.OpenAI, store: str, query: str | list[str], **more) -> list[str]:
    return [hit.filename for hit in client.vector_stores.search(store, query=query, **more)]


# Stores


def test_a_store_from_making_to_deleting(library: House, client: openai.OpenAI):
    made = client.vector_stores.create(
        name="受付の手引き",
        description="For the desk",
        metadata={"team": "support"},
        expires_after={"anchor": "last_active_at", "days": 7},
    )
    assert (made.object, made.name, made.status, made.usage_bytes) == ("vector_store", "受付の手引き", "completed", 0)
    assert (made.metadata, made.expires_after.days) == ({"team": "support"}, 7)
    assert made.expires_at == made.last_active_at + 7 * 86400
    assert made.file_counts.total == 0
    assert client.vector_stores.retrieve(made.id) == made
    with library.catalog.session() as session:
        session.execute(update(VectorStore).where(VectorStore.id == made.id).values(last_active_at=made.created_at - 9))
        row = session.get_one(VectorStore, made.id)
        assert (row.name, row.title, row.description) == (made.id, "受付の手引き", "For the desk")
    changed = client.vector_stores.update(made.id, name="Desk", metadata={"a": "b"}, expires_after=None)
    assert (changed.name, changed.metadata, changed.expires_at) == ("Desk", {"a": "b"}, None)
    assert changed.last_active_at >= made.created_at
    assert client.vector_stores.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError, match=f"Vector store with id '{made.id}' not found"):
        client.vector_stores.retrieve(made.id)


def test_stores_are_paged_both_ways_and_an_operators_is_among_them(library: House):
    library.add_tenant("stores")
    client = library.client("stores")
    made = [client.vector_stores.create(name=str(n)).id for n in range(4)]
    every = [store.id for store in client.vector_stores.list(order="asc", limit=2)]
    assert every[1:] == made
    assert client.vector_stores.retrieve(every[0]).name == ""  # 'handbook' of the operator
    page = client.vector_stores.list(order="asc", limit=2, before=made[3])
    assert ([store.id for store in page.data], page.has_more) == (made[1:3], True)
    assert [store.id for store in client.vector_stores.list(limit=2, after=made[3]).data] == made[2:0:-1]


def test_a_store_made_with_files_is_in_progress_until_they_are_indexed(library, client, embedder: GatedEmbedder):
    files = [upload(client, "a.md", GOODS), upload(client, "b.md", PARKING)]
    with held(embedder):
        made = client.vector_stores.create(file_ids=files)
        assert (made.status, made.file_counts.in_progress, made.file_counts.total) == ("in_progress", 2, 2)
        raw = send(library, "GET", f"/v1/vector_stores/{made.id}")
        assert int(raw.headers["openai-poll-after-ms"]) > 0
    while client.vector_stores.retrieve(made.id).status == "in_progress":
        time.sleep(0.02)
    done = client.vector_stores.retrieve(made.id)
    assert (done.status, done.file_counts.completed) == ("completed", 2)
    assert done.usage_bytes == sum(file.usage_bytes for file in client.vector_stores.files.list(made.id)) > 0


def test_a_store_that_a_release_answers_from_is_not_deleted(library: House, client: openai.OpenAI):
    with library.catalog.session() as session:
        live = session.scalar(select(VectorStore.id).where(VectorStore.tenant_id == library.ids["support"]).limit(1))
    with pytest.raises(openai.ConflictError, match="the live release of tenant 'support' answers from"):
        client.vector_stores.delete(live)


def test_an_expired_store_is_not_searched_and_comes_back_when_it_is_modified(library: House, client, store: str):
    client.vector_stores.update(store, expires_after={"anchor": "last_active_at", "days": 1})
    fill(client, store, "a.md", GOODS)
    file = upload(client, "b.md", PARKING)
    with library.catalog.session() as session:
        session.execute(update(VectorStore).where(VectorStore.id == store).values(last_active_at=time.time() - 90_000))
    assert client.vector_stores.retrieve(store).status == "expired"
    for refused in (
        lambda: client.vector_stores.search(store, query="goods"),
        lambda: client.vector_stores.files.create(store, file_id=file),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            refused()
        assert error.value.code == "vector_store_expired"
    client.vector_stores.update(store, name="again")
    assert found(client, store, "goods") == ["a.md"]


def test_a_search_moves_last_active_at(library: House, client: openai.OpenAI, store: str):
    with library.catalog.session() as session:
        session.execute(update(VectorStore).where(VectorStore.id == store).values(last_active_at=1.0))
    client.vector_stores.search(store, query="goods")
    assert client.vector_stores.retrieve(store).last_active_at > 1


def test_the_same_creation_twice_makes_one_store_and_one_batch(client: openai.OpenAI):
    again = {"Idempotency-Key": "k-1"}
    first, second = (client.vector_stores.create(name="once", extra_headers=again) for _ in range(2))
    assert first.id == second.id
    file = upload(client, "a.md", GOODS)
    batches = [
        client.vector_stores.file_batches.create(first.id, file_ids=[file], extra_headers=again).id for _ in range(2)
    ]
    assert batches[0] == batches[1]
    with pytest.raises(openai.BadRequestError) as other:
        client.vector_stores.create(name="another", extra_headers=again)
    assert (other.value.code, other.value.param) == ("idempotency_key_reused", "Idempotency-Key")
    with pytest.raises(openai.BadRequestError, match="another batch"):
        client.vector_stores.file_batches.create(
            first.id, file_ids=[file], attributes={"year": 2026}, extra_headers=again
        )


def test_a_key_is_free_again_after_a_day(library: House, client: openai.OpenAI):
    again = {"Idempotency-Key": "k-1"}
    first = client.vector_stores.create(name="once", extra_headers=again)
    with library.catalog.session() as session:
        session.execute(update(VectorStore).where(VectorStore.id == first.id).values(created_at=time.time() - 86_401))
    second, third = (client.vector_stores.create(name="once", extra_headers=again) for _ in range(2))
    assert second.id == third.id != first.id


def test_one_creation_sent_by_several_at_once_is_one_store(client: openai.OpenAI):
    def create(_: int) -> str:
        return client.vector_stores.create(name="once", extra_headers={"Idempotency-Key": "k-1"}).id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(create, range(8)))) == 1


def test_a_store_made_again_by_its_key_is_searched_as_the_new_one_it_is(client: openai.OpenAI):
    again = {"Idempotency-Key": "k-1"}
    first = client.vector_stores.create(name="once", extra_headers=again).id
    for name in ("a.md", "b.md", "c.md"):
        fill(client, first, name, GOODS)
    assert set(found(client, first, "goods")) == {"a.md"}
    client.vector_stores.delete(first)
    second = client.vector_stores.create(name="once", extra_headers=again).id
    assert second == first
    fill(client, second, "new.md", GOODS)
    assert found(client, second, "goods") == ["new.md"]


# Files of a store


def test_a_file_is_uploaded_indexed_read_and_taken_out(client: openai.OpenAI, store: str):
    file = fill(client, store, "returns.md", GOODS, attributes={"year": 2026, "draft": False, "team": "desk"})
    shown = client.vector_stores.files.retrieve(file, vector_store_id=store)
    assert (shown.object, shown.id, shown.vector_store_id) == ("vector_store.file", file, store)
    assert (shown.last_error, shown.attributes["year"]) == (None, 2026)
    assert shown.chunking_strategy.type == "static"
    (page,) = client.vector_stores.files.content(file, vector_store_id=store)
    assert (page.type, "Unopened goods" in page.text) == ("text", True)
    assert found(client, store, "unopened goods") == ["returns.md"]
    assert client.vector_stores.files.delete(file, vector_store_id=store).deleted
    assert found(client, store, "unopened goods") == []
    assert client.files.retrieve(file).id == file
    with pytest.raises(openai.NotFoundError, match=f"No file found with id '{file}'"):
        client.vector_stores.files.retrieve(file, vector_store_id=store)


def test_attaching_twice_is_attaching_once(client: openai.OpenAI, store: str):
    file = upload(client, "a.md", GOODS)
    first = client.vector_stores.files.create_and_poll(file, vector_store_id=store, poll_interval_ms=20)
    assert client.vector_stores.files.create(store, file_id=file) == first
    assert client.vector_stores.retrieve(store).file_counts.total == 1


def test_a_deleted_file_is_out_of_every_store(client: openai.OpenAI, store: str):
    other = client.vector_stores.create().id
    file = fill(client, store, "a.md", GOODS)
    client.vector_stores.files.create_and_poll(file, vector_store_id=other, poll_interval_ms=20)
    client.files.delete(file)
    assert found(client, store, "goods") == found(client, other, "goods") == []
    assert client.vector_stores.retrieve(other).file_counts.total == 0


@pytest.mark.parametrize(
    ("name", "data", "code"), [("logo.png", b"\x89PNG", "unsupported_file"), ("empty.md", b"", "invalid_file")]
)
def test_a_file_that_cannot_be_read_says_why(client: openai.OpenAI, store: str, name: str, data: bytes, code: str):
    failed = client.vector_stores.files.upload_and_poll(vector_store_id=store, file=(name, data), poll_interval_ms=20)
    assert (failed.status, failed.last_error.code) == ("failed", code)
    assert failed.last_error.message
    assert [file.id for file in client.vector_stores.files.list(store, filter="failed")] == [failed.id]
    assert list(client.vector_stores.files.list(store, filter="completed")) == []


def test_an_archive_is_one_file_whose_members_are_found(client: openai.OpenAI, store: str):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("desk/goods.md", GOODS)
        archive.writestr("rice.md", RICE)
        archive.writestr("broken.pdf", b"%PDF-")
    file = client.files.create(file=("manual.zip", buffer.getvalue()), purpose="assistants").id
    batch = client.vector_stores.file_batches.create_and_poll(store, file_ids=[file], poll_interval_ms=20)
    assert (batch.file_counts.completed, batch.file_counts.total) == (1, 1)
    shown = client.vector_stores.files.retrieve(file, vector_store_id=store)
    assert (shown.status, shown.last_error.code) == ("completed", "invalid_file")
    assert "broken.pdf" in shown.last_error.message
    assert list(client.vector_stores.files.list(store)) == [shown]
    whole = client.vector_stores.retrieve(store)
    assert (whole.file_counts.total, whole.usage_bytes) == (1, shown.usage_bytes)
    client.vector_stores.files.update(file, vector_store_id=store, attributes={"year": 2026})
    (hit,) = client.vector_stores.search(
        store, query="unopened goods", max_num_results=1, filters={"type": "eq", "key": "year", "value": 2026}
    )
    assert (hit.file_id, hit.filename) == (file, "manual.zip/desk/goods.md")
    texts = [page.text for page in client.vector_stores.files.content(file, vector_store_id=store)]
    assert len(texts) == 2 and any("お米" in each for each in texts)
    client.files.delete(file)
    assert found(client, store, "unopened goods") == []
    assert client.vector_stores.retrieve(store).usage_bytes == 0


def test_chunks_are_as_long_as_asked(client: openai.OpenAI, store: str):
    text = " ".join(f"Sentence number {n} is about goods." for n in range(120)).encode()
    strategy = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
    file = fill(client, store, "short.md", text, chunking_strategy=strategy)
    shown = client.vector_stores.files.retrieve(file, vector_store_id=store)
    assert shown.chunking_strategy.static.max_chunk_size_tokens == 100
    short = client.vector_stores.search(store, query="goods", max_num_results=50).data
    again = client.vector_stores.files.create_and_poll(
        file,
        vector_store_id=store,
        poll_interval_ms=20,
        chunking_strategy={"type": "static", "static": {"max_chunk_size_tokens": 400, "chunk_overlap_tokens": 0}},
    )
    assert again.chunking_strategy.static.max_chunk_size_tokens == 400
    assert len(short) > len(client.vector_stores.search(store, query="goods", max_num_results=50).data) >= 1


def test_an_operators_document_has_its_own_id(library: House, client, store: str, embedder: GatedEmbedder):
    with library.catalog.session() as session:
        row = session.get_one(VectorStore, store)
    made = put_document(library.catalog, row, Incoming("place/a.md", "a.md", GOODS), lambda: embedder).document_id
    (listed,) = client.vector_stores.files.list(store)
    assert (listed.id, listed.status) == (made, "completed")
    (hit,) = client.vector_stores.search(store, query="goods")
    assert hit.file_id == made
    assert client.vector_stores.files.update(made, vector_store_id=store, attributes={"a": 1}).attributes == {"a": 1.0}
    client.vector_stores.files.delete(made, vector_store_id=store)
    assert found(client, store, "goods") == []


# Batches


def test_a_batch_is_uploaded_polled_and_paged(client: openai.OpenAI, store: str):
    batch = client.vector_stores.file_batches.upload_and_poll(
        store, files=[("a.md", GOODS), ("b.md", PARKING), ("c.png", b"\x89PNG")], poll_interval_ms=20
    )
    assert (batch.object, batch.status) == ("vector_store.files_batch", "completed")
    counts = batch.file_counts
    assert (counts.completed, counts.failed, counts.in_progress, counts.total) == (2, 1, 0, 3)
    listed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store, limit=2)
    assert len(list(listed)) == 3
    page = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store, limit=2)
    assert (len(page.data), page.has_more) == (2, True)
    failed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store, filter="failed")
    assert len(failed.data) == 1


def test_each_file_of_a_batch_may_have_its_own_attributes(client: openai.OpenAI, store: str):
    files = [upload(client, f"{n}.md", GOODS) for n in range(2)]
    batch = client.vector_stores.file_batches.create_and_poll(
        store, files=[{"file_id": file, "attributes": {"n": n}} for n, file in enumerate(files)], poll_interval_ms=20
    )
    assert batch.file_counts.completed == 2
    shown = [client.vector_stores.files.retrieve(file, vector_store_id=store).attributes["n"] for file in files]
    assert shown == [0, 1]


def test_a_batch_is_cancelled_and_a_file_of_it_may_come_again(client, store: str, embedder: GatedEmbedder):
    files = [upload(client, f"{n}.md", GOODS + str(n).encode()) for n in range(4)]
    with held(embedder):
        batch = client.vector_stores.file_batches.create(store, file_ids=files)
        assert (batch.status, batch.file_counts.in_progress) == ("in_progress", 4)
        cancelled = client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store)
    assert (cancelled.status, cancelled.file_counts.cancelled) == ("cancelled", 4)
    client.vector_stores.files.create_and_poll(files[0], vector_store_id=store, poll_interval_ms=20)
    counts = client.vector_stores.retrieve(store).file_counts
    assert (counts.completed, counts.cancelled) == (1, 3)
    assert found(client, store, "goods") == ["0.md"]


# Search


def test_search_in_two_languages_with_filters(client: openai.OpenAI, store: str):
    fill(client, store, "goods.md", GOODS, attributes={"year": 2026, "team": "desk"})
    rice = fill(client, store, "rice.md", RICE, attributes={"year": 2024, "team": "shop"})
    fill(client, store, "parking.md", PARKING, attributes={"year": 2020})
    assert found(client, store, "unopened goods", max_num_results=1) == ["goods.md"]
    assert found(client, store, "お米はいつ届く", max_num_results=1) == ["rice.md"]
    assert set(found(client, store, ["unopened goods", "お米"], max_num_results=2)) == {"goods.md", "rice.md"}

    def filtered(filters: dict) -> set[str]:
        return set(found(client, store, "goods", filters=filters))

    old = {"type": "lt", "key": "year", "value": 2026}
    assert filtered(old) == {"rice.md", "parking.md"}
    shop = {"type": "eq", "key": "team", "value": "shop"}
    assert filtered({"type": "and", "filters": [old, shop]}) == {"rice.md"}
    assert filtered({"type": "in", "key": "team", "value": ["desk"]}) == {"goods.md"}
    client.vector_stores.files.update(rice, vector_store_id=store, attributes={"team": "desk"})
    assert filtered({"type": "in", "key": "team", "value": ["desk"]}) == {"goods.md", "rice.md"}
    raw = client.vector_stores.search(store, query="unopened goods", ranking_options={"score_threshold": 0.99})
    assert raw.data == []
    first = client.vector_stores.search(store, query="unopened goods").data[0]
    assert (first.attributes, first.content[0].type) == ({"year": 2026, "team": "desk"}, "text")


def test_the_shape_of_a_result(library: House, store: str):
    raw = send(library, path=f"/v1/vector_stores/{store}/search", json={"query": ["a", "b"]}).json()
    assert raw == {
        "object": "vector_store.search_results.page",
        "search_query": ["a", "b"],
        "data": [],
        "has_more": False,
        "next_page": None,
    }


# What is refused

LONG = {"a": "x" * 513}
STATIC = {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("", {"colour": 1}, "colour"),
        ("", [], None),
        ("", {"name": 1}, "name"),
        ("", {"name": "x" * 257}, "name"),
        ("", {"name": "a\0"}, "name"),
        ("", {"description": "x" * 513}, "description"),
        ("", {"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ("", {"metadata": {"x" * 65: ""}}, "metadata"),
        ("", {"metadata": LONG}, "metadata.a"),
        ("", {"metadata": {"a": 1}}, "metadata.a"),
        ("", {"expires_after": {"anchor": "created_at", "days": 1}}, "expires_after.anchor"),
        ("", {"expires_after": {"anchor": "last_active_at", "days": 366}}, "expires_after.days"),
        ("", {"expires_after": {"anchor": "last_active_at", "days": True}}, "expires_after.days"),
        ("", {"expires_after": {"anchor": "last_active_at", "days": 1, "hours": 1}}, "expires_after.hours"),
        ("", {"chunking_strategy": {"type": "other"}}, "chunking_strategy.type"),
        ("", {"chunking_strategy": {"type": "auto", "static": STATIC}}, "chunking_strategy.static"),
        (
            "",
            {"chunking_strategy": {"type": "static", "static": STATIC | {"max_chunk_size_tokens": 99}}},
            "chunking_strategy.static.max_chunk_size_tokens",
        ),
        (
            "",
            {"chunking_strategy": {"type": "static", "static": STATIC | {"chunk_overlap_tokens": 51}}},
            "chunking_strategy.static.chunk_overlap_tokens",
        ),
        ("", {"file_ids": [str(n) for n in range(501)]}, "file_ids"),
        ("/STORE", {"description": "x"}, "description"),
        ("/STORE/files", {}, "file_id"),
        ("/STORE/files", {"file_id": "file-1", "attributes": {"a": []}}, "attributes.a"),
        ("/STORE/files", {"file_id": "file-1", "attributes": LONG}, "attributes.a"),
        ("/STORE/files", {"file_id": "file-1", "colour": 1}, "colour"),
        ("/STORE/files/file-1", {}, "attributes"),
        ("/STORE/file_batches", {}, "file_ids"),
        ("/STORE/file_batches", {"file_ids": ["a"], "files": [{"file_id": "a"}]}, "file_ids"),
        ("/STORE/file_batches", {"file_ids": []}, "file_ids"),
        ("/STORE/file_batches", {"file_ids": [str(n) for n in range(2001)]}, "file_ids"),
        ("/STORE/file_batches", {"files": [{"file_id": "a"}], "attributes": {}}, "attributes"),
        ("/STORE/file_batches", {"files": [{"file_id": "a"}, {"id": "b"}]}, "files[1].id"),
        ("/STORE/search", {}, "query"),
        ("/STORE/search", {"query": ""}, "query"),
        ("/STORE/search", {"query": []}, "query"),
        ("/STORE/search", {"query": "a", "max_num_results": 51}, "max_num_results"),
        ("/STORE/search", {"query": "a", "max_num_results": 0}, "max_num_results"),
        ("/STORE/search", {"query": "a", "rewrite_query": True}, "rewrite_query"),
        ("/STORE/search", {"query": "a", "top_k": 1}, "top_k"),
        ("/STORE/search", {"query": "a", "ranking_options": {"ranker": "best"}}, "ranking_options.ranker"),
        ("/STORE/search", {"query": "a", "ranking_options": {"score_threshold": 2}}, "ranking_options.score_threshold"),
        ("/STORE/search", {"query": "a", "ranking_options": {"floor": 2}}, "ranking_options.floor"),
        ("/STORE/search", {"query": "a", "filters": {"type": "like", "key": "a", "value": "b"}}, "filters"),
    ],
)
def test_a_wrong_body_is_refused_by_name(library: House, client, path: str, body: object, param: str | None):
    if not hasattr(library, "refusing"):
        library.refusing = client.vector_stores.create().id  # type: ignore[attr-defined]
    path = path.replace("STORE", library.refusing)  # type: ignore[attr-defined]
    error = error_of(send(library, path=f"/v1/vector_stores{path}", json=body))
    assert (error["param"] or "").startswith(param) if param else error["param"] is None


@pytest.mark.parametrize("query", ["limit=101", "limit=0", "order=x", "after=none", "before=none", "filter=x", "a=b"])
def test_what_a_list_of_files_refuses(library: House, store: str, query: str):
    error = error_of(send(library, "GET", f"/v1/vector_stores/{store}/files?{query}"))
    assert error["param"] == query.partition("=")[0]


def test_a_body_over_the_limit_and_one_that_is_not_json(library: House):
    too_large = send(library, path="/v1/vector_stores", content=b" " * 100_001)
    assert error_of(too_large, 413)["code"] == "request_too_large"
    assert error_of(send(library, path="/v1/vector_stores", content=b"{"))["code"] == "invalid_json"


def test_another_tenants_ids_are_unknown_ones(library: House, client: openai.OpenAI, store: str):
    people = library.client("people")
    theirs = people.vector_stores.create().id
    file = fill(people, theirs, "secret.md", b"secret")
    batch = people.vector_stores.file_batches.create_and_poll(theirs, file_ids=[file], poll_interval_ms=20).id
    for foreign, own in ((theirs, False), ("vs_none", False), (store, True)):
        stem = f"/v1/vector_stores/{foreign}"
        asked = [
            ("GET", f"{stem}/files/{file}", None),
            ("DELETE", f"{stem}/files/{file}", None),
            ("GET", f"{stem}/files/{file}/content", None),
            ("POST", f"{stem}/files/{file}", {"attributes": {}}),
            ("POST", f"{stem}/files", {"file_id": file}),
            ("POST", f"{stem}/file_batches", {"file_ids": [file]}),
            ("GET", f"{stem}/file_batches/{batch}", None),
            ("POST", f"{stem}/file_batches/{batch}/cancel", None),
            ("GET", f"{stem}/file_batches/{batch}/files", None),
        ]
        if not own:
            asked += [
                ("GET", stem, None),
                ("POST", stem, {"name": "mine"}),
                ("DELETE", stem, None),
                ("GET", f"{stem}/files", None),
                ("POST", f"{stem}/search", {"query": "secret"}),
            ]
        for method, path, body in asked:
            error = error_of(send(library, method, path, **({"json": body} if body is not None else {})), 404)
            assert own or error["message"] == f"Vector store with id '{foreign}' not found."
            assert send(library, method, path, key="ryo-none").status_code == 401
    refused = send(library, path="/v1/vector_stores", json={"file_ids": [file]})
    assert error_of(refused, 404)["message"] == f"No such File object: {file}"
    assert people.vector_stores.retrieve(theirs).file_counts.completed == 1


# Chat


def test_an_uploaded_document_is_what_a_chat_is_answered_from(library: House, client: openai.OpenAI, store: str):
    fill(client, store, "returns.md", GOODS)
    with library.catalog.session() as session:
        tenant = tenants.get_tenant(session, "support")
        version = releases.create_release(
            session,
            tenant,
            base_digest="b" * 64,
            prompt=session.get_one(Prompt, tenant.prompt_id),
            stores=[session.get_one(VectorStore, store)],
        ).version
    library.engine.pieces = ["Within 30 days ", "[1]."]
    question = [{"role": "user", "content": "When do unopened goods go back?"}]
    answer = client.chat.completions.create(model=f"support@{version}", messages=question)
    assert "Unopened goods go back within 30 days." in library.engine.requests[-1]["messages"][0]["content"]
    (citation,) = answer.choices[0].message.context["citations"]
    assert citation["filepath"] == "returns.md"
    passage = send(library, "GET", citation["url"].removeprefix(library.url)).json()
    assert passage["text"] == citation["content"]
    client.vector_stores.update(store, expires_after={"anchor": "last_active_at", "days": 1})
    with library.catalog.session() as session:
        session.execute(update(VectorStore).where(VectorStore.id == store).values(last_active_at=1.0))
    client.chat.completions.create(model=f"support@{version}", messages=question)
    assert "Unopened" not in library.engine.requests[-1]["messages"][0]["content"]
