"""
A tenant's traffic: which share of it a canary answers and a shadow answers unseen, and how each part fares.

Who falls into a share is decided by a hash, so that one asker always gets the same release, and whoever is in at 10 %
is still in at 20 %.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from ryorin.catalog import audit
from ryorin.catalog.tables import Release, RequestLog, Tenant
from ryorin.catalog.tenants import lock_tenant
from ryorin.errors import Conflict, InvalidInput
from ryorin.release import check_own, check_usable

LIVE, CANARY, SHADOW, PINNED, FALLBACK = "live", "canary", "shadow", "pinned", "fallback"
PARTS = (LIVE, CANARY, SHADOW, PINNED, FALLBACK)


def falls_into(share: float, asker: str, release_id: str) -> bool:
    """
    Whether `asker` is in the share (0 to 1) of a release: always the same answer, and of a larger share no other 'yes'.

    Each release draws lots anew, so that not the same people are the first to meet every canary.
    """
    lot = hashlib.sha256(f"{release_id}\0{asker}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(lot[:8], "big") < share * 2**64


def has_traffic() -> ColumnElement[bool]:
    """Joins `Tenant` to the releases that its row points to: live, canary and shadow."""
    pointers = (Tenant.live_release_id, Tenant.canary_release_id, Tenant.shadow_release_id)
    return or_(*(pointer == Release.id for pointer in pointers))


def parse_share(text: str | float) -> float:
    """'10%' or 0.1 as 0.1. Raises InvalidInput for what is not above 0 and up to 1."""
    words = str(text).strip()
    try:
        share = float(words[:-1]) / 100 if words.endswith("%") else float(words)
    except ValueError:
        share = -1.0
    if isinstance(text, bool) or not 0 < share <= 1:
        raise InvalidInput(f"share is {text!r}; write a percentage as 10%, or a number above 0, up to 1", param="share")
    return share


def shown_share(share: float) -> str:
    """0.1 as '10%'."""
    return f"{share * 100:g}%"


def check_beside(tenant: Tenant, part: str, release: Release, share: float) -> None:
    """
    Raise Conflict when the release cannot be the tenant's `part` (CANARY or SHADOW) because of what is live,
    InvalidInput for a canary's share of everything, which is what promoting is for.
    """
    if parse_share(share) >= 1 and part == CANARY:
        raise InvalidInput("share is 100%; a canary gets less than all: promote the release instead", param="share")
    check_own(tenant, release)
    if tenant.live_release_id is None:
        raise Conflict(
            f"tenant {tenant.name!r} has no live release for a {part} to stand beside; promote one first",
            param="version",
        )
    if tenant.live_release_id == release.id:
        raise Conflict(
            f"release {release.version} of tenant {tenant.name!r} is live; a {part} must be another", param="version"
        )


def set_beside(
    session: Session, tenant: Tenant, part: str, release: Release | None, share: float | None = None
) -> bool:
    """
    Give `release` a share of the tenant's traffic as its `part`, in place of any before; None ends it.

    A CANARY answers the share, a SHADOW answers it once more, unseen. Returns whether anything changed. Raises as
    `check_beside`, and Conflict when the release's adapter was deleted.
    """
    lock_tenant(session, tenant)
    if release is not None:
        check_beside(tenant, part, release, share or 0.0)
        check_usable(session, tenant, release)
    before = beside(tenant, part)
    pointed = (release.id, share) if release else (None, None)
    setattr(tenant, f"{part}_release_id", pointed[0])
    setattr(tenant, f"{part}_share", pointed[1])
    if before != pointed:
        which = f"{tenant.name}@{release.version}" if release else tenant.name
        audit.note(session, tenant.id, f"release.{part}", which, share=share if release else None)
    session.flush()
    return before != pointed


def beside(tenant: Tenant, part: str) -> tuple[str | None, float | None]:
    """The release that is the tenant's `part` (CANARY or SHADOW) and its share; (None, None) when there is none."""
    return getattr(tenant, f"{part}_release_id"), getattr(tenant, f"{part}_share")


@dataclass(frozen=True)
class PartStatus:
    """
    How one release fared as one part of the traffic.

    share: of the present canary or shadow. requests: all, of which `errors` failed, `cancelled` were left by their
    client and `dropped` (a shadow's) were not asked because the engine was busy. passed: requests that live answered
    because the canary could not. Times are of answered requests, in milliseconds; None without any.
    """

    part: str
    version: int
    current: bool
    share: float | None
    requests: int
    errors: int
    cancelled: int
    dropped: int
    passed: int
    median_ms: float | None
    p95_ms: float | None
    first_token_ms: float | None
    retrieval_ms: float | None
    completion_tokens: int

    def row(self) -> dict[str, Any]:
        """As it is printed."""
        return asdict(self)


def traffic_status(session: Session, tenant: Tenant, since_s: float) -> list[PartStatus]:
    """What each release did as each part in the last `since_s` seconds; what has traffic now comes first."""
    versions = {row.id: row.version for row in session.scalars(select(Release).where(Release.tenant_id == tenant.id))}
    log = RequestLog
    recent = (log.tenant_id == tenant.id, log.created_at >= time.time() - since_s)
    grouped = select(log.part, log.release_id, log.status, func.count(), func.sum(log.completion_tokens))
    counted: dict[tuple[str, str], dict[str, int]] = {}
    tokens: dict[tuple[str, str], int] = {}
    for part, release_id, status, count, written in session.execute(
        grouped.where(*recent, log.part.is_not(None)).group_by(log.part, log.release_id, log.status)
    ):
        key = (str(part), release_id)
        counted.setdefault(key, {})[status] = count
        tokens[key] = tokens.get(key, 0) + int(written or 0)
    passes = select(log.passed_release_id, func.count()).where(*recent, log.passed_release_id.is_not(None))
    passed = {str(row[0]): row[1] for row in session.execute(passes.group_by(log.passed_release_id))}
    pointers = {
        LIVE: (tenant.live_release_id, None),
        CANARY: beside(tenant, CANARY),
        SHADOW: beside(tenant, SHADOW),
    }
    now = {(part, release_id): share for part, (release_id, share) in pointers.items() if release_id}
    found = []
    for key in {*now, *counted, *((CANARY, release_id) for release_id in passed)}:
        part, release_id = key
        statuses = counted.get(key, {})
        answered = (*recent, log.part == part, log.release_id == release_id, log.status == "ok")
        found.append(
            PartStatus(
                part=part,
                version=versions[release_id],
                current=key in now,
                share=now.get(key),
                requests=sum(statuses.values()),
                errors=statuses.get("error", 0),
                cancelled=statuses.get("cancelled", 0),
                dropped=statuses.get("dropped", 0),
                passed=passed.get(release_id, 0) if part == CANARY else 0,
                median_ms=_quantile(session, log.total_ms, answered, 0.5),
                p95_ms=_quantile(session, log.total_ms, answered, 0.95),
                first_token_ms=_quantile(session, log.first_token_ms, answered, 0.5),
                retrieval_ms=_quantile(session, log.retrieval_ms, answered, 0.5),
                completion_tokens=tokens.get(key, 0),
            )
        )
    return sorted(found, key=lambda one: (not one.current, PARTS.index(one.part), -one.version))


def _quantile(session: Session, column: Any, where: tuple[ColumnElement[bool], ...], share: float) -> float | None:
    """The value that a share of the rows is at or below (nearest rank); None without rows."""
    count = session.scalar(select(func.count(column)).where(*where)) or 0
    if not count:
        return None
    place = min(count - 1, int(share * count))
    query = select(column).where(*where, column.is_not(None)).order_by(column).offset(place).limit(1)
    value = session.scalar(query)
    return None if value is None else float(value)
