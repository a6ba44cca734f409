"""
Which gateways run, and what they are asked to load before traffic goes to it.

A gateway says every few seconds that it lives, by the database's clock, and looks for rows that wish it to load a
release. Who wishes writes a row for each gateway, watches the rows, and deletes them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from ryorin.catalog.clock import NowS
from ryorin.catalog.tables import Gateway, Load, Release
from ryorin.digests import new_id

SEEN_WITHIN_S = 15.0  # a gateway that was not seen for so long is taken for dead
FORGET_AFTER_S = 3600.0  # rows of gateways and wishes whose process was killed
WANTED, DONE, FAILED = "wanted", "done", "failed"


def see(session: Session, gateway_id: str, place: str, base_digest: str) -> None:
    """The gateway lives. What killed processes left is swept away."""
    row = session.get(Gateway, gateway_id)
    if row is None:
        session.add(Gateway(id=gateway_id, place=place, base_digest=base_digest, seen_at=NowS()))
    else:
        session.execute(update(Gateway).where(Gateway.id == gateway_id).values(seen_at=NowS()))
    session.execute(delete(Gateway).where(Gateway.seen_at < NowS() - FORGET_AFTER_S))
    session.execute(delete(Load).where(Load.created_at < NowS() - FORGET_AFTER_S))


def forget(session: Session, gateway_id: str) -> None:
    """The gateway ends."""
    session.execute(delete(Gateway).where(Gateway.id == gateway_id))


def running_gateways(session: Session) -> Sequence[Gateway]:
    """The gateways that live, oldest first."""
    alive = Gateway.seen_at >= NowS() - SEEN_WITHIN_S
    return session.scalars(select(Gateway).where(alive).order_by(Gateway.started_at)).all()


def wish(session: Session, release: Release, gateway_ids: Collection[str]) -> list[str]:
    """Ask the gateways to load the release; the ids of the rows to watch."""
    rows = [
        Load(id=new_id("load_"), tenant_id=release.tenant_id, release_id=release.id, gateway_id=gateway_id)
        for gateway_id in gateway_ids
    ]
    session.add_all(rows)
    session.flush()
    return [row.id for row in rows]


def wished_of(session: Session, gateway_id: str) -> Sequence[Load]:
    """What the gateway is to load."""
    return session.scalars(select(Load).where(Load.gateway_id == gateway_id, Load.status == WANTED)).all()


def answer(session: Session, load_id: str, status: str, reason: str | None = None) -> None:
    """What became of a wish; nothing happens when nobody wishes it any longer."""
    session.execute(update(Load).where(Load.id == load_id).values(status=status, reason=reason))


def loads(session: Session, load_ids: Collection[str]) -> Sequence[Load]:
    """The rows as they are now."""
    return session.scalars(select(Load).where(Load.id.in_(load_ids))).all()


def unwish(session: Session, load_ids: Collection[str]) -> None:
    """Delete the rows."""
    session.execute(delete(Load).where(Load.id.in_(load_ids)))
