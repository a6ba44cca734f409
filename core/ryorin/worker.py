"""
The worker: takes jobs from the catalog's queue one at a time and does them, in a thread or in the foreground.

It knows no kind of job. `KINDS` names who does which, and that module is imported when the first such job comes. What a
handler must keep to: it ends by calling `Work.finish` in the transaction that makes its result known, so that a job
that was done by two workers, one of them thought dead, has one result.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog, jobs
from ryorin.catalog.jobs import Lease, LeaseLost
from ryorin.errors import InvalidInput, RequirementMissing
from ryorin.foreground import Foreground

# kind of job: (module, function that takes a catalog and returns its handler)
KINDS: dict[str, tuple[str, str]] = {
    "index_file": ("ryorin_index.attach_job", "index_file"),
    "fine_tune": ("ryorin_train.fine_tuning", "fine_tune"),
}
LEASE_S = 30.0
POLL_S = 1.0
MAX_ATTEMPTS = 5
LONGEST_DELAY_S = 60.0
STOP_WAIT_S = 5.0
NICENESS = 10  # of a worker beside the gateway and the engine

_logger = logging.getLogger("ryorin.worker")


def installed_kinds() -> list[str]:
    """The kinds of jobs whose package is installed here: a gateway without the trainer leaves training to others."""
    return [kind for kind, (module, _) in KINDS.items() if importlib.util.find_spec(module.partition(".")[0])]


def chosen_kinds(names: str) -> list[str]:
    """
    The kinds of jobs that a list with commas names. Raises InvalidInput for one that does not exist, RequirementMissing
    for one whose package is not installed here.
    """
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in KINDS:
            raise InvalidInput(f"kinds has {name!r}; known: {', '.join(KINDS)}", param="kinds")
        if name not in installed_kinds():
            raise RequirementMissing(f"jobs of kind {name!r} need the package {KINDS[name][0].partition('.')[0]}")
    return chosen


class Stopped(Exception):
    """The worker is told to stop; the job goes back into the queue."""


class Work:
    """A job as its handler sees it. foreground: whoever waits in this process, for the job to give way."""

    def __init__(self, lease: Lease, stopping: threading.Event, foreground: Foreground) -> None:
        self.lease = lease
        self.foreground = foreground
        self.lost = threading.Event()
        self.progress: dict[str, Any] | None = None
        self._stopping = stopping

    def check(self) -> None:
        """To be called now and then. Raises LeaseLost when the job is not ours any longer, Stopped when to stop."""
        if self.lost.is_set():
            raise LeaseLost(f"job {self.lease.job_id} was cancelled or taken over")
        if self._stopping.is_set():
            raise Stopped

    def renew(self, session: Session) -> None:
        """What was done so far need not be done again, so the job's attempts count anew. Raises LeaseLost."""
        self.lease = jobs.renew(session, self.lease, self.progress)

    def finish(self, session: Session, result: dict[str, Any] | None = None) -> None:
        """The job succeeded; with the session's transaction. Raises LeaseLost, and nothing of it must be written."""
        jobs.finish(session, self.lease, result)


class Handler(Protocol):
    """Does jobs of one kind."""

    def run(self, work: Work) -> None:
        """Do the job, and finish it."""
        ...

    def failed(self, session: Session, lease: Lease, error: Exception) -> None:
        """Write down that the job failed for good, in the transaction that says so in the queue."""
        ...


@dataclass
class Tally:
    """What a worker did."""

    succeeded: int = 0
    failed: int = 0


class Worker:
    """
    Does jobs until it is stopped. Several may run, in one process or in many.

    kinds: what it does; all of `KINDS` that is installed unless given. handlers: who does which kind, instead of those
    that `KINDS` names. lease_s: after so many seconds without a sign of life another worker takes over.
    retry_delay_s: the pause after a first failure; it doubles with each further one. foreground: for `Work`.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        kinds: Collection[str] | None = None,
        handlers: Mapping[str, Handler] | None = None,
        lease_s: float = LEASE_S,
        poll_s: float = POLL_S,
        retry_delay_s: float = 1.0,
        foreground: Foreground | None = None,
    ) -> None:
        self._catalog = catalog
        self._handlers = dict(handlers or {})
        self._kinds = list(handlers or installed_kinds() if kinds is None else kinds)
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._retry_delay_s = retry_delay_s
        self._foreground = foreground or Foreground()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._work: Work | None = None
        self.tally = Tally()

    def start(self) -> None:
        """Work in a thread of low priority."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._background, name="worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait. A job that cannot be left within seconds is given back, and what its thread does is lost."""
        self.ask_to_stop()
        if self._thread is None:
            return
        self._thread.join(STOP_WAIT_S)
        if self._thread.is_alive() and (work := self._work) is not None:
            self._give_back(work.lease)
        self._thread = None

    def ask_to_stop(self) -> None:
        """Stop after the present step; returns at once."""
        self._stopping.set()
        self._wake.set()

    def wake(self) -> None:
        """Look into the queue now: a job was put into it."""
        self._wake.set()

    def run(self, *, drain: bool = False) -> Tally:
        """Work until stopped; with `drain` until no job is queued or being done, by whomever."""
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                with self._catalog.session() as session:
                    lease = jobs.claim(session, self._kinds, self._lease_s)
                    if lease is None and drain and not jobs.unfinished(session, self._kinds):
                        break
                if lease is not None:
                    self._do(lease)
                    continue
            except SQLAlchemyError as error:  # the database is away or busy: the lease runs out by itself
                _logger.warning("the queue of jobs cannot be reached: %s", error)
            self._wake.wait(self._poll_s)
        return self.tally

    def _background(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        self.run()

    def _do(self, lease: Lease) -> None:
        work = self._work = Work(lease, self._stopping, self._foreground)
        try:
            handler = self._handler(lease.kind)
            if lease.attempt > MAX_ATTEMPTS:  # its workers died, each of them
                self._fail(handler, lease, RuntimeError(f"given up: {MAX_ATTEMPTS} attempts ended without a result"))
                return
            with self._heartbeats(work):
                handler.run(work)
            self.tally.succeeded += 1
        except LeaseLost:
            _logger.info("job %s was cancelled or taken over", lease.job_id)
        except Stopped:
            self._give_back(work.lease)
        except (InvalidInput, RequirementMissing) as error:
            self._fail(handler, lease, error)
        except Exception as error:
            lease = work.lease
            _logger.warning("job %s (%s), attempt %d", lease.job_id, lease.kind, lease.attempt, exc_info=True)
            if lease.attempt >= MAX_ATTEMPTS:
                self._fail(handler, lease, error)
            else:
                delay_s = min(self._retry_delay_s * 2 ** (lease.attempt - 1), LONGEST_DELAY_S)
                with contextlib.suppress(LeaseLost), self._catalog.session() as session:
                    jobs.retry(session, lease, _words(error), delay_s)
        finally:
            self._work = None

    def _fail(self, handler: Handler, lease: Lease, error: Exception) -> None:
        self.tally.failed += 1
        with contextlib.suppress(LeaseLost), self._catalog.session() as session:
            jobs.fail(session, lease, _words(error))
            handler.failed(session, lease, error)

    def _give_back(self, lease: Lease) -> None:
        with contextlib.suppress(LeaseLost, SQLAlchemyError), self._catalog.session() as session:
            jobs.release(session, lease)

    def _handler(self, kind: str) -> Handler:
        if kind not in self._handlers:
            module, function = KINDS[kind]
            self._handlers[kind] = getattr(importlib.import_module(module), function)(self._catalog)
        return self._handlers[kind]

    @contextlib.contextmanager
    def _heartbeats(self, work: Work) -> Iterator[None]:
        """Extend the lease from a thread of its own: a handler may be busy in one call for long."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self._lease_s / 3):
                try:
                    with self._catalog.session() as session:
                        jobs.heartbeat(session, work.lease, self._lease_s, work.progress)
                except LeaseLost:
                    work.lost.set()
                    return
                except SQLAlchemyError as error:
                    _logger.warning("job %s: no sign of life could be given: %s", work.lease.job_id, error)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
