"""
How long the log of requests is kept, and taking a person's requests out of it.

A row knows who asked as a keyed hash of what the client said (`safety_identifier` or `user`), so a person's rows can be
found by the name, and the name not by the rows.
"""

from __future__ import annotations

import time

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from ryorin.catalog import audit
from ryorin.catalog.keys import keyed_hash
from ryorin.catalog.tables import RequestLog, Tenant
from ryorin.digests import SHORT
from ryorin.errors import InvalidInput

DAY_S = 86_400.0
MAX_DAYS = 36_500
BATCH = 1000  # rows of one statement: writers of the log wait no longer than for these


def asker_hash(pepper: bytes, tenant_id: str, name: str) -> str:
    """How a row names who asked."""
    return keyed_hash(pepper, f"asker\0{tenant_id}\0{name}")


def set_log_days(session: Session, tenant: Tenant, days: int | None) -> None:
    """How long the tenant's log is kept; None keeps it. Raises InvalidInput."""
    if days is not None and not 1 <= days <= MAX_DAYS:
        raise InvalidInput(f"log days is {days}; use 1 to {MAX_DAYS}, or none", param="log_days")
    if tenant.log_days != days:
        tenant.log_days = days
        audit.note(session, tenant.id, "logs.keep", tenant.name, days=days)
    session.flush()


def prune_logs(session: Session, now: float | None = None) -> int:
    """Delete some rows that are older than their tenants keep them; how many. Call it until it says 0."""
    now = time.time() if now is None else now
    over = (
        select(RequestLog.id)
        .join(Tenant, Tenant.id == RequestLog.tenant_id)
        .where(Tenant.log_days.is_not(None), RequestLog.created_at < now - Tenant.log_days * DAY_S)
        .limit(BATCH)
    )
    ids = session.scalars(over).all()
    if ids:
        session.execute(delete(RequestLog).where(RequestLog.id.in_(ids)).execution_options(synchronize_session=False))
    return len(ids)


def erase_asker(session: Session, tenant: Tenant, pepper: bytes, name: str) -> int:
    """Delete all that the tenant's log holds of who asked by this name; how many rows."""
    asker = asker_hash(pepper, tenant.id, name)
    mine = (RequestLog.tenant_id == tenant.id, RequestLog.asker == asker)
    count = session.scalar(select(func.count()).select_from(RequestLog).where(*mine)) or 0
    session.execute(delete(RequestLog).where(*mine).execution_options(synchronize_session=False))
    audit.note(session, tenant.id, "logs.erase", asker[:SHORT], rows=count)
    return count
