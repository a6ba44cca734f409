"""The worker's side of a fine-tuning job: events, what the training process says, attempts. Nothing is trained here."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError

from ryorin.catalog import jobs
from ryorin.catalog.fine_tuning import KIND, FineTuning
from ryorin.catalog.tables import Job, JobEvent
from ryorin.catalog.tenants import create_tenant
from ryorin.worker import MAX_ATTEMPTS, Worker
from ryorin_train import fine_tuning

ASKED = FineTuning(model="tiny", base="tiny", training_file="file-none")


@pytest.fixture
def job_id(sqlite: Any) -> str:
    with sqlite.session() as session:
        tenant = create_tenant(session, "support")
        return jobs.enqueue(session, tenant.id, KIND, ASKED.to_json())


def said(sqlite: Any) -> list[str]:
    with sqlite.session() as session:
        return list(session.scalars(select(JobEvent.message).order_by(JobEvent.created_at)))


def test_events_that_the_database_does_not_take_come_with_the_next(
    sqlite: Any, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(before: str, after: str) -> None:
        with sqlite.session() as session:
            session.execute(text(f"ALTER TABLE {before} RENAME TO {after}"))

    with sqlite.session() as session:
        lease = jobs.claim(session, [KIND], 60)
    assert lease is not None
    events = fine_tuning.Events(sqlite, lease)
    events.add("one")
    rename("job_events", "away")
    with pytest.raises(SQLAlchemyError), sqlite.session() as session:
        session.execute(select(JobEvent.id)).all()
    events.add("two")
    events.add("three", {"step": 1})
    rename("away", "job_events")
    assert said(sqlite) == ["one"]
    events.add("four")  # the database is not asked again so soon
    assert said(sqlite) == ["one"]
    monkeypatch.setattr(fine_tuning, "EVENTS_AGAIN_S", 0.0)
    events.add("five")
    assert said(sqlite) == ["one", "two", "three", "four", "five"]


def test_a_cancelled_job_is_told_nothing_more_and_its_training_ends_with_the_next_step(
    sqlite: Any, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    @contextmanager
    def child(*_: Any) -> Iterator[queue.Queue[Any]]:
        """A training process whose job is cancelled after a step; it would not be missed before a heartbeat."""
        lines: queue.Queue[Any] = queue.Queue()
        lines.put({"say": "a step"})
        with sqlite.session() as session:
            assert jobs.end(session, session.get_one(Job, job_id).tenant_id, job_id)
        lines.put({"say": "a step too many"})
        try:
            yield lines
        finally:
            ended.append(job_id)

    monkeypatch.setattr(fine_tuning, "_child", child)
    monkeypatch.setattr(fine_tuning.FineTune, "_asked", lambda *_: {})
    Worker(sqlite, kinds=[KIND], lease_s=3600, poll_s=0.01).run(drain=True)
    assert ended == [job_id]
    assert said(sqlite) == ["Fine-tuning job started"]


def test_a_job_that_was_cancelled_before_its_worker_began_is_not_told_to_have_started(sqlite: Any, job_id: str) -> None:
    with sqlite.session() as session:
        lease = jobs.claim(session, [KIND], 60)
    assert lease is not None
    with sqlite.session() as session:
        jobs.end(session, lease.tenant_id, job_id)
    with pytest.raises(jobs.LeaseLost):
        fine_tuning.Events(sqlite, lease).add("Fine-tuning job started")
    assert said(sqlite) == []


def test_what_a_library_prints_is_no_line_of_the_training_process(tmp_path: Path) -> None:
    printed = [
        "0 of 3 shards", "5", "null", '"kept"', '["kept", 4]', "[1]", "true", '{"level": "info"}', '{"exit": 0}', "{"
    ]  # fmt: skip
    ours: list[dict[str, Any]] = [{"say": "hello"}, {"kept": 4}, {"finished": {"adapter": "a"}}]
    path = tmp_path / "out"
    path.write_text("\n".join([*printed, json.dumps(ours[0]), *printed, *map(json.dumps, ours[1:]), *printed]))
    lines: queue.Queue[Any] = queue.Queue()
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE, encoding="utf-8") as process:
        fine_tuning._read(process, lines, threading.Event())
    assert list(lines.queue) == [*ours, {"exit": 0}]


@pytest.mark.parametrize("told", [[], [True], [True, False], [False, True]])
def test_the_training_process_says_when_it_may_be_stopped(told: list[bool]) -> None:
    words = "\n".join(json.dumps({"computing": each}) for each in told)
    may_stop = threading.Event()
    lines: queue.Queue[Any] = queue.Queue()
    with subprocess.Popen(["echo", words], stdout=subprocess.PIPE, encoding="utf-8") as process:
        fine_tuning._read(process, lines, may_stop)
    assert may_stop.is_set() == bool(told and told[-1])
    assert list(lines.queue) == [{"exit": 0}]


@pytest.mark.parametrize(
    ("kept", "attempts"),
    [
        ([4] * 20, [1, 2, 3, 4, 5]),  # a checkpoint no further than the one before is no progress
        ([4, 9, 9, 12, 12], [1, 2, 2, 3, 2]),
    ],
)
def test_attempts_that_left_a_further_checkpoint_are_not_counted(
    sqlite: Any, job_id: str, monkeypatch: pytest.MonkeyPatch, kept: list[int], attempts: list[int]
) -> None:
    found: list[int] = []

    @contextmanager
    def child(*_: Any) -> Iterator[queue.Queue[Any]]:
        """A training process that writes one checkpoint and dies; or, after the last of them, says that it is done."""
        with sqlite.session() as session:
            found.append(session.get_one(Job, job_id).attempts)
        lines: queue.Queue[Any] = queue.Queue()
        if len(found) < len(kept):
            lines.put({"kept": kept[len(found) - 1]})
            lines.put({"exit": 1})
        else:
            lines.put({"error": {"code": "done", "message": "enough", "param": None}})
            lines.put({"exit": 0})
        yield lines

    monkeypatch.setattr(fine_tuning, "_child", child)
    monkeypatch.setattr(fine_tuning.FineTune, "_asked", lambda *_: {})
    # Each attempt is over long before its first heartbeat, which also writes how far the job is.
    Worker(sqlite, kinds=[KIND], poll_s=0.01, retry_delay_s=0.001).run(drain=True)
    assert found == attempts
    with sqlite.session() as session:
        job = session.get_one(Job, job_id)
    assert job.status == "failed" and job.result is not None
    assert job.result["error"]["code"] == ("done" if len(attempts) == len(kept) else "server_error")
    assert max(found) <= MAX_ATTEMPTS
