"""
A queue of long pieces of work in the catalog's `jobs` table, for workers in any number of processes.

A worker claims a job for a lease: some seconds by the database's clock, which it extends while it works. The token of
the lease fences every write: of a worker that was thought dead and comes back, nothing is taken. A lease that ran out
makes the job claimable again, so a killed process costs time and nothing else.

A job that is 'running' without a lease belongs to the process that wrote it (`ryorin train`) and is never claimed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, null, or_, select, update
from sqlalchemy.orm import Session

from ryorin.catalog.clock import NowS
from ryorin.catalog.database import insert_into
from ryorin.catalog.tables import Job
from ryorin.digests import new_id
from ryorin.errors import Conflict

FINISHED = ("succeeded", "failed", "cancelled")


class LeaseLost(Conflict):
    """The job was cancelled, or its lease ran out and another worker has it."""


@dataclass(frozen=True)
class Lease:
    """A claimed job. attempt: 1 for the first worker that has it."""

    job_id: str
    tenant_id: str
    kind: str
    params: dict[str, Any]
    token: str
    attempt: int


def enqueue(
    session: Session,
    tenant_id: str,
    kind: str,
    params: dict[str, Any],
    *,
    key: str | None = None,
    again: bool = False,
    job_id: str | None = None,
) -> str:
    """
    Put a job into the queue; its id, a new one unless `job_id` is given.

    key: a second job of the tenant with the same key is not made, the first one's id is returned. again: if that one
    has finished, it is queued anew, with these params and all its attempts.
    """
    row = {
        "id": job_id or new_id("job_"),
        "tenant_id": tenant_id,
        "kind": kind,
        "status": "queued",
        "params": params,
        "created_at": time.time(),
        "idempotency_key": key,
        "attempts": 0,
    }
    made: str | None = session.scalar(
        insert_into(session.get_bind(), Job).values(**row).on_conflict_do_nothing().returning(Job.id)
    )
    if made is not None:
        return made
    mine = (Job.tenant_id == tenant_id, Job.idempotency_key == key)
    if again:
        _update(
            session,
            (*mine, Job.status.in_(FINISHED)),
            status="queued",
            params=params,
            attempts=0,
            created_at=row["created_at"],
            result=null(),
            error=None,
            progress=null(),
            finished_at=None,
            lease_token=None,
            lease_until=None,
        )
    return session.scalars(select(Job.id).where(*mine)).one()


def claim(session: Session, kinds: Collection[str], lease_s: float) -> Lease | None:
    """
    The oldest job of these kinds that is queued or whose lease ran out; None when there is none.

    Of several workers that claim at once each gets another job.
    """
    ready = and_(Job.kind.in_(kinds), _claimable())
    if not session.scalar(select(exists().where(ready))):  # most often: and a read locks nobody out
        return None
    first = select(Job.id).where(ready).order_by(Job.created_at, Job.id).limit(1).with_for_update(skip_locked=True)
    token = secrets.token_hex(16)
    job = session.execute(
        update(Job)
        .where(Job.id == first.scalar_subquery())
        .values(status="running", lease_token=token, lease_until=NowS() + lease_s, attempts=Job.attempts + 1)
        .returning(Job.id, Job.tenant_id, Job.kind, Job.params, Job.attempts)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return None if job is None else Lease(job.id, job.tenant_id, job.kind, job.params, token, job.attempts)


def unfinished(session: Session, kinds: Collection[str]) -> bool:
    """Whether a job of these kinds is queued, or running under a lease."""
    running = and_(Job.status == "running", Job.lease_until.is_not(None))
    found = session.scalar(select(exists().where(Job.kind.in_(kinds), or_(Job.status == "queued", running))))
    return bool(found)


def check(session: Session, lease: Lease) -> None:
    """
    That the job is still ours, until the session's transaction ends: what is told of a job has the lease's fence too.

    Raises LeaseLost.
    """
    _write(session, lease, status="running")  # a write, because on SQLite a read holds nobody back


def heartbeat(session: Session, lease: Lease, lease_s: float, progress: dict[str, Any] | None = None) -> None:
    """Hold the job for another `lease_s` seconds, and say how far it is. Raises LeaseLost."""
    more = {} if progress is None else {"progress": progress}
    _write(session, lease, lease_until=NowS() + lease_s, **more)


def renew(session: Session, lease: Lease, progress: dict[str, Any] | None = None) -> Lease:
    """
    Count the job's attempts anew, with this as the first: what it has done so far is kept. Raises LeaseLost.

    progress: how far it is, written with it: an attempt that dies now and gets no further must not be renewed again.
    """
    more = {} if progress is None else {"progress": progress}
    _write(session, lease, attempts=1, **more)
    return replace(lease, attempt=1)


def finish(session: Session, lease: Lease, result: dict[str, Any] | None = None) -> None:
    """The job succeeded. In the transaction that makes its result known, so that both happen or neither. LeaseLost."""
    _write(session, lease, status="succeeded", result=result, error=None, finished_at=time.time(), **_NO_LEASE)


def fail(session: Session, lease: Lease, error: str) -> None:
    """The job failed for good. Raises LeaseLost."""
    _write(session, lease, status="failed", error=error, finished_at=time.time(), **_NO_LEASE)


def retry(session: Session, lease: Lease, error: str, delay_s: float) -> None:
    """The job goes back into the queue and is not claimed before `delay_s` have passed. Raises LeaseLost."""
    _write(session, lease, status="queued", error=error, lease_token=None, lease_until=NowS() + delay_s)


def release(session: Session, lease: Lease) -> None:
    """The job goes back into the queue as if it had not been claimed: its worker is stopped. Raises LeaseLost."""
    _write(session, lease, status="queued", attempts=lease.attempt - 1, **_NO_LEASE)


def cancel(session: Session, tenant_id: str, keys: Sequence[str]) -> None:
    """Cancel the tenant's jobs of these keys that have not finished; a worker that is at one loses its lease."""
    for at in range(0, len(keys), 500):  # parameters of one statement
        chosen = (Job.tenant_id == tenant_id, Job.idempotency_key.in_(keys[at : at + 500]))
        _update(
            session,
            (*chosen, Job.status.in_(("queued", "running"))),
            status="cancelled",
            finished_at=time.time(),
            **_NO_LEASE,
        )


def pause(session: Session, tenant_id: str, job_id: str) -> bool:
    """Keep a queued or running job from being done until `resume`; a worker that is at it loses its lease."""
    return _move(session, tenant_id, job_id, ("queued", "running"), status="paused", **_NO_LEASE)


def resume(session: Session, tenant_id: str, job_id: str) -> bool:
    """Put a paused job back into the queue, with all its attempts."""
    return _move(session, tenant_id, job_id, ("paused",), status="queued", attempts=0)


def end(session: Session, tenant_id: str, job_id: str) -> bool:
    """Cancel a job that has not finished; a worker that is at it loses its lease."""
    before = ("queued", "running", "paused")
    return _move(session, tenant_id, job_id, before, status="cancelled", finished_at=time.time(), **_NO_LEASE)


def _move(session: Session, tenant_id: str, job_id: str, before: Collection[str], **values: Any) -> bool:
    return _update(session, (Job.tenant_id == tenant_id, Job.id == job_id, Job.status.in_(before)), **values)


_NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_until": None}


def _claimable() -> ColumnElement[bool]:
    """Queued and not to be waited for any longer, or left by a worker whose lease ran out."""
    over = Job.lease_until <= NowS()
    return or_(and_(Job.status == "queued", or_(Job.lease_until.is_(None), over)), and_(Job.status == "running", over))


def _write(session: Session, lease: Lease, **values: Any) -> None:
    """Change the job while the lease is ours."""
    mine = (Job.id == lease.job_id, Job.lease_token == lease.token, Job.status == "running")
    if not _update(session, mine, **values):
        raise LeaseLost(f"job {lease.job_id} was cancelled, or its lease ran out and another worker took it")


def _update(session: Session, where: tuple[ColumnElement[bool], ...], **values: Any) -> bool:
    changed = session.scalars(
        update(Job).where(*where).values(**values).returning(Job.id).execution_options(synchronize_session=False)
    ).all()
    return bool(changed)
