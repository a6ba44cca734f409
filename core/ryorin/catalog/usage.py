"""
What keys and tenants used, and what they may use: requests and tokens a minute, tokens a month.

Windows are fixed, by UTC: a minute's begins with the minute, a month's with the month. A tenant's use is that of its
keys together.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from ryorin.catalog import audit
from ryorin.catalog.database import insert_into
from ryorin.catalog.tables import ApiKey, Tenant, Usage
from ryorin.errors import InvalidInput

MINUTE_S = 60
KEPT_MINUTES = 60
MAX_LIMIT = 2**31 - 1
MAX_MONTHLY = 2**62


@dataclass(frozen=True)
class Limits:
    """What may be used; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_month: int | None = None

    @classmethod
    def of(cls, row: Tenant | ApiKey) -> Limits:
        """Those of a tenant or a key."""
        return cls(row.requests_per_minute, row.tokens_per_minute, row.tokens_per_month)


LIMITS = tuple(asdict(Limits()))


@dataclass
class Used:
    """What was used in a window."""

    requests: int = 0
    tokens: int = 0

    def add(self, other: Used) -> None:
        """Add to it."""
        self.requests += other.requests
        self.tokens += other.tokens


def minute_of(now: float) -> str:
    """The name of the minute's window."""
    return time.strftime("%Y-%m-%dT%H:%M", time.gmtime(now))


def month_of(now: float) -> str:
    """The name of the month's window."""
    return time.strftime("%Y-%m", time.gmtime(now))


def set_limits(session: Session, tenant: Tenant, row: Tenant | ApiKey, given: dict[str, int | None]) -> Limits:
    """
    Change limits of the tenant or one of its keys; those that are not `given` stay, None takes one away.

    Raises InvalidInput for a number that cannot be a limit.
    """
    for name, value in given.items():
        most = MAX_MONTHLY if name == "tokens_per_month" else MAX_LIMIT
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most):
            raise InvalidInput(f"{name} is {value!r}; use a whole number from 0 to {most}, or none", param=name)
    changed = {name: value for name, value in given.items() if getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    if changed:
        audit.note(session, tenant.id, "limits.set", row.name if isinstance(row, Tenant) else row.id, **changed)
    session.flush()
    return Limits.of(row)


def add_usage(session: Session, used: Iterable[tuple[str, str, str, Used]]) -> None:
    """Add what was used: (tenant, key, window, used) each."""
    rows = [
        {"tenant_id": tenant, "key_id": key, "window": window, **asdict(each)} for tenant, key, window, each in used
    ]
    if not rows:
        return
    rows.sort(key=lambda row: (row["key_id"], row["window"]))  # of two writers none waits for the other in a circle
    statement = insert_into(session.get_bind(), Usage).values(rows)
    more = {name: getattr(Usage, name) + statement.excluded[name] for name in ("requests", "tokens")}
    session.execute(statement.on_conflict_do_update(index_elements=["key_id", "window"], set_=more))


def usage_of(session: Session, tenant_ids: Collection[str], windows: Collection[str]) -> dict[tuple[str, str], Used]:
    """What tenants and their keys used in windows, by (tenant's or key's id, window)."""
    found: dict[tuple[str, str], Used] = {}
    rows = session.scalars(select(Usage).where(Usage.tenant_id.in_(tenant_ids), Usage.window.in_(windows)))
    for row in rows:
        for who in (row.key_id, row.tenant_id):
            found.setdefault((who, row.window), Used()).add(Used(row.requests, row.tokens))
    return found


def monthly_usage(session: Session, tenant: Tenant, months: int) -> list[dict[str, object]]:
    """What each key of the tenant used in its newest months, the newest first."""
    is_month = func.length(Usage.window) == len("2026-11")
    known = select(Usage.window).where(Usage.tenant_id == tenant.id, is_month).distinct()
    newest = session.scalars(known.order_by(Usage.window.desc()).limit(months)).all()
    rows = session.scalars(
        select(Usage).where(Usage.tenant_id == tenant.id, Usage.window.in_(newest)).order_by(Usage.window.desc())
    )
    return [{"month": row.window, "key_id": row.key_id, "requests": row.requests, "tokens": row.tokens} for row in rows]


def forget_minutes(session: Session, now: float) -> None:
    """Delete the windows of minutes that are long over."""
    over = minute_of(now - KEPT_MINUTES * MINUTE_S)
    session.execute(
        delete(Usage)
        .where(func.length(Usage.window) == len(over), Usage.window < over)
        .execution_options(synchronize_session=False)
    )
