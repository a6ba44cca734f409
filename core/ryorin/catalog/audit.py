"""
The audit log: every administrative act, with who did it, in the transaction that does it.

Who acts is known by `acting`: the gateway says the key and the request; without it a command of this machine's user
acts.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog.tables import AuditEvent
from ryorin.digests import new_id

ACTOR_LENGTH, TARGET_LENGTH = 160, 256
_acting: ContextVar[tuple[str, str | None] | None] = ContextVar("acting", default=None)


@contextmanager
def acting(actor: str, request_id: str | None = None) -> Iterator[None]:
    """Inside, acts are this actor's; request_id: of the request that asks for them."""
    token = _acting.set((actor, request_id))
    try:
        yield
    finally:
        _acting.reset(token)


def note(session: Session, tenant_id: str, act: str, target: str, **detail: Any) -> None:
    """Write down an act on a tenant, with the session's transaction. detail: what can be JSON, and no secret."""
    actor, request_id = _acting.get() or (_user(), None)
    session.add(
        AuditEvent(
            id=new_id("audit_"),
            tenant_id=tenant_id,
            actor=actor[:ACTOR_LENGTH],
            act=act,
            target=target[:TARGET_LENGTH],
            detail=detail,
            request_id=request_id,
        )
    )


def audit_events(session: Session, tenant_id: str, since: float = 0.0, limit: int = 100) -> Sequence[AuditEvent]:
    """The newest acts on a tenant since a time, the newest first."""
    return session.scalars(
        select(AuditEvent)
        .where(AuditEvent.tenant_id == tenant_id, AuditEvent.created_at >= since)
        .order_by(AuditEvent.created_at.desc(), AuditEvent.id.desc())
        .limit(limit)
    ).all()


def audit_row(event: AuditEvent) -> dict[str, Any]:
    """An act as it is shown."""
    fields = ("id", "created_at", "actor", "act", "target", "detail", "request_id")
    return {field: getattr(event, field) for field in fields}


def _user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        name = "unknown"
    return f"user {name}@{socket.gethostname()}"
