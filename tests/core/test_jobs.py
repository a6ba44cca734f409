"""The queue of jobs, on SQLite and PostgreSQL: one winner, fenced writes, leases that run out."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy import select

from ryorin.catalog import Catalog, fine_tuning, jobs, open_catalog
from ryorin.catalog.jobs import LeaseLost
from ryorin.catalog.tables import Job, JobEvent
from ryorin.catalog.tenants import create_tenant
from ryorin.errors import InvalidInput
from ryorin.worker import MAX_ATTEMPTS, Work, Worker

KINDS = ["count"]


@pytest.fixture
def tenant_id(catalog: Catalog) -> str:
    with catalog.session() as session:
        return create_tenant(session, "support").id


def put(catalog: Catalog, tenant_id: str, **more) -> str:
    with catalog.session() as session:
        return jobs.enqueue(session, tenant_id, "count", {"to": 3}, **more)


def take(catalog: Catalog, lease_s: float = 60, kinds=KINDS):
    with catalog.session() as session:
        return jobs.claim(session, kinds, lease_s)


def row(catalog: Catalog, job_id: str) -> Job:
    with catalog.session() as session:
        return session.get_one(Job, job_id)


def test_a_key_makes_one_job_for_each_tenant(catalog: Catalog, tenant_id: str):
    first = put(catalog, tenant_id, key="once")
    assert put(catalog, tenant_id, key="once") == first
    assert put(catalog, tenant_id) != first
    with catalog.session() as session:
        other = create_tenant(session, "people").id
    assert put(catalog, other, key="once") != first


def test_a_finished_job_is_queued_anew_only_when_asked_for(catalog: Catalog, tenant_id: str):
    job_id = put(catalog, tenant_id, key="once")
    lease = take(catalog)
    with catalog.session() as session:
        jobs.finish(session, lease, {"counted": 3})
    put(catalog, tenant_id, key="once")
    assert (row(catalog, job_id).status, row(catalog, job_id).result) == ("succeeded", {"counted": 3})
    assert put(catalog, tenant_id, key="once", again=True) == job_id
    assert (row(catalog, job_id).status, row(catalog, job_id).result, take(catalog).attempt) == ("queued", None, 1)
    put(catalog, tenant_id, key="once", again=True)
    assert row(catalog, job_id).status == "running"


def test_many_workers_each_get_another_job(catalog: Catalog, tenant_id: str):
    made = {put(catalog, tenant_id) for _ in range(24)}
    together = threading.Barrier(4)

    def work(_: int) -> list[str]:
        together.wait()
        found = []
        while lease := take(catalog):
            found.append(lease.job_id)
        return found

    with ThreadPoolExecutor(4) as threads:
        taken = [job_id for found in threads.map(work, range(4)) for job_id in found]
    assert (len(taken), set(taken)) == (24, made)


def test_oldest_first_and_only_of_the_kinds_asked_for(catalog: Catalog, tenant_id: str):
    first, second = put(catalog, tenant_id), put(catalog, tenant_id)
    assert take(catalog, kinds=["train"]) is None
    assert [take(catalog).job_id, take(catalog).job_id, take(catalog)] == [first, second, None]


def test_of_two_holders_only_the_later_one_writes(catalog: Catalog, tenant_id: str):
    job_id = put(catalog, tenant_id)
    late = take(catalog, lease_s=-1)
    taker = take(catalog)
    assert (taker.job_id, taker.attempt) == (job_id, 2)
    for write in (
        lambda session: jobs.check(session, late),
        lambda session: jobs.heartbeat(session, late, 60),
        lambda session: jobs.finish(session, late),
        lambda session: jobs.fail(session, late, "no"),
        lambda session: jobs.retry(session, late, "no", 0),
        lambda session: jobs.release(session, late),
    ):
        with pytest.raises(LeaseLost, match=job_id), catalog.session() as session:
            write(session)
    with catalog.session() as session:
        jobs.check(session, taker)
        jobs.heartbeat(session, taker, 60, {"done": 1})
        jobs.finish(session, taker, {"counted": 3})
    found = row(catalog, job_id)
    assert (found.status, found.result, found.progress) == ("succeeded", {"counted": 3}, {"done": 1})
    assert (found.lease_token, found.lease_until) == (None, None)


def test_a_lease_is_kept_alive_and_a_running_job_without_one_is_left_alone(catalog: Catalog, tenant_id: str):
    put(catalog, tenant_id)
    lease = take(catalog, lease_s=-1)
    with catalog.session() as session:
        jobs.heartbeat(session, lease, 60)
        session.add(Job(id="job_sft", tenant_id=tenant_id, kind="count", params={}))  # as `ryorin train` writes it
    assert take(catalog) is None
    with catalog.session() as session:
        jobs.finish(session, lease)
        assert not jobs.unfinished(session, KINDS)


def test_given_back_retried_cancelled(catalog: Catalog, tenant_id: str):
    job_id = put(catalog, tenant_id, key="k")
    with catalog.session() as session:
        jobs.release(session, jobs.claim(session, KINDS, 60))
    assert (row(catalog, job_id).status, row(catalog, job_id).attempts) == ("queued", 0)
    with catalog.session() as session:
        jobs.retry(session, jobs.claim(session, KINDS, 60), "broke", 60)
    assert (take(catalog), row(catalog, job_id).error) == (None, "broke")
    with catalog.session() as session:
        assert jobs.unfinished(session, KINDS)
        jobs.cancel(session, "another tenant", ["k"])
    assert row(catalog, job_id).status == "queued"
    with catalog.session() as session:
        jobs.cancel(session, tenant_id, ["k"])
    assert (row(catalog, job_id).status, take(catalog)) == ("cancelled", None)


class Counter:
    """A handler that does what the job's params say."""

    def __init__(self, catalog: Catalog, fail_first: int = 0, error: Exception | None = None) -> None:
        self.catalog = catalog
        self.errors: list[str] = []
        self.runs = 0
        self.fail_first = fail_first
        self.error = error or OSError("the disk is away")

    def run(self, work: Work) -> None:
        self.runs += 1
        if self.runs <= self.fail_first:
            raise self.error
        with self.catalog.session() as session:
            work.finish(session, {"counted": work.lease.params["to"]})

    def failed(self, session, lease, error) -> None:
        self.errors.append(f"{lease.job_id}: {error}")


def worker(catalog: Catalog, handler, **more) -> Worker:
    return Worker(catalog, handlers={"count": handler}, poll_s=0.01, retry_delay_s=0.0, **more)


@pytest.mark.parametrize(
    ("fail_first", "error", "status", "runs"),
    [
        (0, None, "succeeded", 1),
        (2, None, "succeeded", 3),
        (99, None, "failed", MAX_ATTEMPTS),
        (99, InvalidInput("not a number"), "failed", 1),
    ],
)
def test_a_worker_retries_what_may_pass_and_gives_up_what_will_not(
    catalog: Catalog, tenant_id: str, fail_first: int, error: Exception | None, status: str, runs: int
):
    job_id = put(catalog, tenant_id)
    handler = Counter(catalog, fail_first, error)
    tally = worker(catalog, handler).run(drain=True)
    assert (row(catalog, job_id).status, handler.runs) == (status, runs)
    assert (tally.succeeded, tally.failed) == ((1, 0) if status == "succeeded" else (0, 1))
    assert handler.errors == ([] if status == "succeeded" else [f"{job_id}: {handler.error}"])


class Stepwise(Counter):
    """A handler that gets one step further in each attempt, keeps it, and fails; until there are no steps left."""

    def __init__(self, catalog: Catalog, steps: int) -> None:
        super().__init__(catalog)
        self.steps = steps
        self.attempts: list[int] = []

    def run(self, work: Work) -> None:
        self.attempts.append(work.lease.attempt)
        with self.catalog.session() as session:
            if len(self.attempts) > self.steps:
                work.finish(session)
                return
            work.renew(session)
        raise OSError("the machine is too small")


def test_attempts_that_got_further_are_not_counted(catalog: Catalog, tenant_id: str):
    job_id = put(catalog, tenant_id)
    handler = Stepwise(catalog, steps=2 * MAX_ATTEMPTS)
    worker(catalog, handler).run(drain=True)
    assert row(catalog, job_id).status == "succeeded"
    assert handler.attempts == [1] + [2] * 2 * MAX_ATTEMPTS


def test_a_lost_lease_renews_nothing(catalog: Catalog, tenant_id: str):
    job_id = put(catalog, tenant_id)
    late = take(catalog, lease_s=-1)
    assert take(catalog).attempt == 2
    with pytest.raises(LeaseLost), catalog.session() as session:
        jobs.renew(session, late)
    assert row(catalog, job_id).attempts == 2


def test_events_are_in_the_order_of_writing_whatever_the_clocks_say(
    catalog: Catalog, tenant_id: str, monkeypatch: pytest.MonkeyPatch
):
    job_id = put(catalog, tenant_id)
    now = time.time()
    for number, clock in enumerate((now, now - 3600, now + 3600, now)):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        with catalog.session() as session:
            for part in "ab":
                fine_tuning.add_event(session, tenant_id, job_id, f"{number}{part}")
    with catalog.session() as session:
        events = session.scalars(select(JobEvent).order_by(JobEvent.created_at, JobEvent.id)).all()
    assert [event.message for event in events] == ["0a", "0b", "1a", "1b", "2a", "2b", "3a", "3b"]
    assert all(abs(event.created_at - now) < 600 for event in events)


def test_a_worker_does_the_kinds_it_is_told_to(cli, migrated, settings):
    with closing(open_catalog(settings)) as opened:
        with opened.session() as session:
            tenant = create_tenant(session, "support").id
            waiting = {
                kind: jobs.enqueue(session, tenant, kind, {"document_id": "gone"})
                for kind in ("fine_tune", "index_file")
            }
        ran = cli("worker", "--drain", "--kinds", "index_file", "--json")
        assert ran.code == 0 and sum(json.loads(ran.out).values()) == 1, ran.err
        assert row(opened, waiting["fine_tune"]).attempts == 0
        assert row(opened, waiting["index_file"]).attempts > 0
    refused = cli("worker", "--kinds", "index_file,train")
    assert refused.code == 2 and "kinds has 'train'; known: index_file, fine_tune" in refused.err


def test_a_job_whose_workers_all_died_is_given_up(catalog: Catalog, tenant_id: str):
    job_id = put(catalog, tenant_id)
    for _ in range(MAX_ATTEMPTS):
        assert take(catalog, lease_s=-1)
    handler = Counter(catalog)
    worker(catalog, handler).run(drain=True)
    assert (row(catalog, job_id).status, handler.runs) == ("failed", 0)
    assert "5 attempts ended without a result" in handler.errors[0]


class Slow(Counter):
    """A handler that works until it may not."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog)
        self.began, self.ended = threading.Event(), threading.Event()

    def run(self, work: Work) -> None:
        self.began.set()
        try:
            while not self.ended.wait(0.01):
                work.check()
        finally:
            self.ended.set()


def test_a_stopped_worker_gives_its_job_back(catalog: Catalog, tenant_id: str):
    job_id = put(catalog, tenant_id)
    handler = Slow(catalog)
    running = worker(catalog, handler)
    running.start()
    assert handler.began.wait(30)
    running.stop()
    assert (row(catalog, job_id).status, row(catalog, job_id).attempts) == ("queued", 0)


def test_a_worker_at_a_cancelled_job_hears_of_it(catalog: Catalog, tenant_id: str):
    job_id = put(catalog, tenant_id, key="k")
    handler = Slow(catalog)
    running = worker(catalog, handler, lease_s=0.3)
    running.start()
    try:
        assert handler.began.wait(30)
        with catalog.session() as session:
            jobs.cancel(session, tenant_id, ["k"])
        assert handler.ended.wait(30)
        assert row(catalog, job_id).status == "cancelled"
    finally:
        running.stop()


def test_a_woken_worker_does_not_wait_for_its_next_look(catalog: Catalog, tenant_id: str):
    handler = Counter(catalog)
    running = Worker(catalog, handlers={"count": handler}, poll_s=3600)
    running.start()
    try:
        job_id = put(catalog, tenant_id)
        done = threading.Event()
        while not done.wait(0.02):
            running.wake()
            if row(catalog, job_id).status == "succeeded":
                done.set()
    finally:
        running.stop()
    with catalog.session() as session:
        assert session.scalar(select(Job.attempts)) == 1
