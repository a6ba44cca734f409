"""Uploaded files in stores: attached, indexed by a worker, taken out; workers that are killed and that race."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from email.message import EmailMessage

import pytest
from sqlalchemy import func, select
from word_embedder import WordEmbedder

from ryorin.blobs import keep_blob
from ryorin.catalog import Catalog
from ryorin.catalog.files import remove_unneeded_blobs
from ryorin.catalog.tables import Document, File, Job, Passage, Tenant, VectorStore
from ryorin.digests import new_id
from ryorin.worker import Worker
from ryorin_index.attach import (
    Attachment,
    attach,
    attach_batch,
    cancel_batch,
    detach,
    documents_within,
    set_attributes,
    take_store,
)
from ryorin_index.attach_job import IndexFile
from ryorin_index.chunking import Chunking
from ryorin_index.purge import delete_store
from ryorin_index.search import Searcher

RETURNS = b"# Returns\n\nUnopened goods go back within 30 days.\n"


def put_file(catalog: Catalog, tenant: Tenant, name: str = "returns.md", data: bytes = RETURNS) -> File:
    with catalog.session() as session:
        file = File(
            id=new_id("file-"),
            tenant_id=tenant.id,
            filename=name,
            bytes=len(data),
            sha256=keep_blob(catalog.settings.blobs_dir, data),
            purpose="assistants",
        )
        session.add(file)
        return file


def put(catalog: Catalog, store: VectorStore, file: File, **more) -> Document:
    with catalog.session() as session:
        take_store(session, store)
        return attach(session, store, Attachment(file, **more))


def work(catalog: Catalog, embedder, lease_s: float = 60, poll_s: float = 0.01) -> Worker:
    handler = IndexFile(catalog, lambda store: embedder)
    worker = Worker(catalog, handlers={"index_file": handler}, poll_s=poll_s, retry_delay_s=0, lease_s=lease_s)
    worker.run(drain=True)
    return worker


def document(catalog: Catalog, document_id: str) -> Document:
    with catalog.session() as session:
        return session.get_one(Document, document_id)


def passages(catalog: Catalog, store: VectorStore) -> int:
    with catalog.session() as session:
        return session.scalar(select(func.count()).where(Passage.store_id == store.id)) or 0


def test_a_file_is_found_once_its_job_is_done_and_not_after_it_is_taken_out(
    catalog: Catalog, tenant: Tenant, store: VectorStore, embedder: WordEmbedder
):
    file = put_file(catalog, tenant)
    waiting = put(catalog, store, file, attributes={"year": 2026})
    assert (waiting.status, passages(catalog, store)) == ("in_progress", 0)
    assert put(catalog, store, file).id == waiting.id
    tally = work(catalog, embedder).tally
    assert (tally.succeeded, tally.failed) == (1, 0)
    done = document(catalog, waiting.id)
    assert (done.status, done.error, done.attributes) == ("completed", None, {"year": 2026})
    searcher = Searcher(catalog, lambda _: embedder)
    (hit,) = searcher.search(tenant.id, [store.id], "unopened goods", 5)
    assert (hit.document_id, hit.filename) == (done.id, "returns.md")
    put(catalog, store, file)
    assert work(catalog, embedder).tally.succeeded == 0
    with catalog.session() as session:
        detach(session, store, [session.get_one(Document, done.id)])
    assert searcher.search(tenant.id, [store.id], "unopened goods", 5) == []


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [("logo.png", b"\x89PNG", "unsupported_file"), ("empty.md", b"", "invalid_file")],
)
def test_a_file_that_cannot_be_read_says_why(catalog, tenant, store, embedder, name: str, data: bytes, code: str):
    waiting = put(catalog, store, put_file(catalog, tenant, name, data))
    assert work(catalog, embedder).tally.failed == 1
    failed = document(catalog, waiting.id)
    assert (failed.status, failed.error["code"]) == ("failed", code)
    assert failed.error["message"]


def test_a_failure_of_the_server_tells_no_detail_and_attaching_again_tries_again(catalog, tenant, store, embedder):
    class Broken(WordEmbedder):
        def passages(self, texts):
            raise RuntimeError("secret place")

    file = put_file(catalog, tenant)
    waiting = put(catalog, store, file)
    assert work(catalog, Broken()).tally.failed == 1
    error = document(catalog, waiting.id).error
    assert error["code"] == "server_error"
    assert "secret" not in error["message"]
    assert put(catalog, store, file).status == "in_progress"
    work(catalog, embedder)
    assert (document(catalog, waiting.id).status, document(catalog, waiting.id).error) == ("completed", None)


def test_two_workers_index_every_file_once(catalog, tenant, store, embedder):
    made = [put(catalog, store, put_file(catalog, tenant, f"{n}.md", b"# N%d\n\nword%d" % (n, n))) for n in range(12)]
    threads = [threading.Thread(target=work, args=(catalog, embedder)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {document(catalog, each.id).status for each in made} == {"completed"}
    assert (len(embedder.embedded), passages(catalog, store)) == (12, 12)
    with catalog.session() as session:
        assert set(map(tuple, session.execute(select(Job.status, Job.attempts)))) == {("succeeded", 1)}


class Held(WordEmbedder):
    """An embedder that does not go on before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go = threading.Event(), threading.Event()

    def passages(self, texts):
        self.reached.set()
        assert self.go.wait(60)
        return super().passages(texts)


def test_a_batch_that_is_cancelled_while_a_worker_is_at_it_adds_nothing(catalog, tenant, store):
    files = [put_file(catalog, tenant, f"{n}.md", b"# N%d\n\nword%d" % (n, n)) for n in range(3)]
    with catalog.session() as session:
        take_store(session, store)
        batch = attach_batch(session, store, [Attachment(file) for file in files], new_id("vsfb_"))
    held = Held()
    worker = threading.Thread(target=work, args=(catalog, held))
    worker.start()
    assert held.reached.wait(60)
    with catalog.session() as session:
        cancel_batch(session, session.merge(batch))
    held.go.set()
    worker.join()
    with catalog.session() as session:
        assert set(session.scalars(select(Document.status))) == {"cancelled"}
    assert passages(catalog, store) == 0


def test_a_store_is_deleted_with_all_that_is_in_it(catalog, tenant, store, embedder):
    file = put_file(catalog, tenant)
    put(catalog, store, file)
    work(catalog, embedder)
    put(catalog, store, put_file(catalog, tenant, "late.md", b"late"))
    delete_store(catalog, store)
    assert work(catalog, embedder).tally.failed == 0
    with catalog.session() as session:
        for table in (VectorStore, Document, Passage):
            assert session.scalar(select(func.count()).select_from(table)) == 0
        assert set(session.scalars(select(Job.status))) == {"succeeded"}


def test_a_file_is_cut_anew_when_it_is_to_be_cut_otherwise(catalog, tenant, store, embedder):
    file = put_file(catalog, tenant, "long.md", " ".join(f"Sentence number {n} is here." for n in range(80)).encode())
    put(catalog, store, file, chunking=Chunking(200, 0))
    work(catalog, embedder)
    few = passages(catalog, store)
    waiting = put(catalog, store, file, chunking=Chunking(100, 0))
    assert (waiting.status, passages(catalog, store)) == ("in_progress", few)
    work(catalog, embedder)
    assert passages(catalog, store) > few
    assert put(catalog, store, file).status == "completed"


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_what_lies_in_an_archive_is_of_its_file(catalog, tenant, store, embedder):
    data = zipped(
        **{
            "a/returns.md": RETURNS,
            "茶.md": "# お茶\n\nお茶は毎週届きます。\n".encode(),
            "x.pdf": b"%PDF-",
            "y.png": b"",
        }
    )
    file = put_file(catalog, tenant, "manual.zip", data)
    waiting = put(catalog, store, file, attributes={"year": 2026})
    assert work(catalog, embedder).tally.failed == 0
    done = document(catalog, waiting.id)
    assert (done.status, done.error["code"]) == ("completed", "invalid_file")
    assert "1 of the files in manual.zip cannot be read: x.pdf" in done.error["message"]
    searcher = Searcher(catalog, lambda _: embedder)
    for question, filename in (("unopened goods", "manual.zip/a/returns.md"), ("お茶", "manual.zip/茶.md")):
        hit = searcher.search(tenant.id, [store.id], question, 1)[0]
        assert (hit.filename, hit.file_id, hit.attributes) == (filename, file.id, {"year": 2026})
    with catalog.session() as session:
        inside = documents_within(session, store, done)
        assert done.usage_bytes == sum(each.usage_bytes for each in inside) > 0
        take_store(session, store)
        set_attributes(session, store, session.get_one(Document, done.id), {"year": 2027})
    assert searcher.search(tenant.id, [store.id], "unopened goods", 1)[0].attributes == {"year": 2027}
    put(catalog, store, file, chunking=Chunking(100, 0))
    work(catalog, embedder)
    with catalog.session() as session:
        rows = session.scalars(select(Document)).all()
        assert len(rows) == 3 and all(row.chunking["max_tokens"] == 100 for row in rows)
        detach(session, store, [session.get_one(Document, done.id)])
    with catalog.session() as session:
        assert session.scalar(select(func.count()).select_from(Document)) == 0
    assert passages(catalog, store) == 0


def test_an_archive_in_which_nothing_can_be_read_fails(catalog, tenant, store, embedder):
    for data, words in (
        (zipped(**{"y.png": b""}), "holds no file"),
        (zipped(**{"x.pdf": b"%PDF-"}), "x.pdf"),
        (b"PK", ""),
    ):
        waiting = put(catalog, store, put_file(catalog, tenant, "bad.zip", data))
        work(catalog, embedder)
        failed = document(catalog, waiting.id)
        assert (failed.status, failed.error["code"], passages(catalog, store)) == ("failed", "invalid_file", 0)
        assert words in failed.error["message"]


def test_an_archive_that_is_taken_out_while_a_worker_is_at_it_leaves_nothing(catalog, tenant, store):
    waiting = put(catalog, store, put_file(catalog, tenant, "manual.zip", zipped(**{"a.md": RETURNS, "b.md": b"# B"})))
    held = Held()
    worker = threading.Thread(target=work, args=(catalog, held))
    worker.start()
    assert held.reached.wait(60)
    with catalog.session() as session:
        take_store(session, store)
        detach(session, store, [session.get_one(Document, waiting.id)])
    held.go.set()
    worker.join()
    with catalog.session() as session:
        assert session.scalars(select(Document)).all() == []
    assert passages(catalog, store) == 0


def test_a_mail_is_its_text_and_its_attachments(catalog, tenant, store, embedder):
    message = EmailMessage()
    message["Subject"], message["From"] = "Parking", "desk@example.org"
    message.set_content("Parking is free for 3 hours.")
    message.add_attachment(RETURNS, maintype="text", subtype="markdown", filename="returns.md")
    waiting = put(catalog, store, put_file(catalog, tenant, "mail.eml", bytes(message)), attributes={"year": 2026})
    assert work(catalog, embedder).tally.failed == 0
    done = document(catalog, waiting.id)
    assert (done.status, done.error, done.title) == ("completed", None, "Parking")
    assert done.attributes == done.own_attributes | {"year": 2026}
    searcher = Searcher(catalog, lambda _: embedder)
    found = [hit.filename for hit in searcher.search(tenant.id, [store.id], "unopened goods", 2)]
    assert found == ["mail.eml/returns.md", "mail.eml"]


def test_a_blob_goes_with_the_last_row_that_needs_it(catalog, tenant):
    first, second = put_file(catalog, tenant, "a.md"), put_file(catalog, tenant, "b.md")
    path = catalog.settings.blobs_dir / first.sha256[:2] / first.sha256
    for file, kept in ((first, True), (second, False)):
        with catalog.session() as session:
            session.delete(session.merge(file))
        remove_unneeded_blobs(catalog, [file.sha256])
        assert path.exists() == kept


def test_the_command_does_what_is_queued_and_ends_in_order(catalog, tenant, store, cli):
    waiting = put(catalog, store, put_file(catalog, tenant, "logo.png", b"\x89PNG"))
    ran = cli("worker", "--drain", "--json")
    assert (ran.code, json.loads(ran.out)) == (0, {"succeeded": 0, "failed": 1})
    assert document(catalog, waiting.id).status == "failed"
    words = [sys.executable, "-m", "ryorin.cli", "worker"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as child:
        assert child.stderr.readline() == "waiting for jobs; Ctrl-C ends it\n"
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, "Traceback" in err, "0 jobs done, 0 failed" in err) == (0, False, True)
