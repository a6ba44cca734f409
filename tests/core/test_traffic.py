"""Canary and shadow in the catalog: who falls into a share, what may stand beside the live release, how parts fare."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Release, RequestLog, Tenant
from ryorin.catalog.tenants import create_tenant, get_tenant, set_prompt
from ryorin.digests import new_id
from ryorin.errors import Conflict, InvalidInput
from ryorin.prompt import Prompt
from ryorin.release import create_release, get_release, promote, rollback
from ryorin.traffic import CANARY, SHADOW, falls_into, parse_share, set_beside, traffic_status

BASE = "b" * 64


def tenant_with(
    session: Session, releases: int, name: str = "support", live: int | None = 1
) -> tuple[Tenant, list[Release]]:
    tenant = create_tenant(session, name)
    prompt = set_prompt(session, tenant, Prompt("You answer."))
    made = [create_release(session, tenant, base_digest=BASE, prompt=prompt) for _ in range(releases)]
    if live is not None:
        promote(session, tenant, made[live - 1])
    return tenant, made


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_share_that_grows_keeps_whom_it_had(asker: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert falls_into(large, asker, "rel_1") or not falls_into(small, asker, "rel_1")
    assert falls_into(1.0, asker, "rel_1") and not falls_into(0.0, asker, "rel_1")


def test_a_share_is_about_as_large_as_it_says_and_another_release_draws_anew() -> None:
    askers = [f"user {n}" for n in range(10_000)]
    first = {asker for asker in askers if falls_into(0.1, asker, "rel_1")}
    second = {asker for asker in askers if falls_into(0.1, asker, "rel_2")}
    assert 880 < len(first) < 1120 and 880 < len(second) < 1120  # 4 standard deviations
    assert len(first & second) < 180  # 100 by chance


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.25", 0.25), (" 5 % ", 0.05), ("100%", 1.0), (1, 1.0)])
def test_shares(text: Any, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0", "0%", "-1%", "101%", "10", "nan", "nan%", "ten", "", True])
def test_shares_that_are_none(text: Any) -> None:
    with pytest.raises(InvalidInput, match="share"):
        parse_share(text)


def test_a_canary_stands_beside_the_live_release_until_it_is_live(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant, (_, second, third) = tenant_with(session, 3)
        assert set_beside(session, tenant, CANARY, second, 0.1) and not set_beside(session, tenant, CANARY, second, 0.1)
        assert set_beside(session, tenant, CANARY, second, 0.2)
        assert set_beside(session, tenant, SHADOW, third, 0.5)
    with catalog.session() as session:
        tenant = get_tenant(session, "support")
        assert (tenant.canary_release_id, tenant.canary_share) == (second.id, 0.2)
        promote(session, tenant, third)  # another release: the canary goes on, the shadow became live and ends
        assert (tenant.canary_release_id, tenant.shadow_release_id, tenant.shadow_share) == (second.id, None, None)
        promote(session, tenant, second)
        assert (tenant.live_release_id, tenant.canary_release_id, tenant.canary_share) == (second.id, None, None)
        assert rollback(session, tenant).release_id == third.id
        assert set_beside(session, tenant, CANARY, second, 0.1) and set_beside(session, tenant, CANARY, None)
        assert not set_beside(session, tenant, CANARY, None)


def test_a_release_that_is_rolled_back_to_is_no_canary_any_longer(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant, (first, second) = tenant_with(session, 2)
        promote(session, tenant, second)
        set_beside(session, tenant, CANARY, first, 0.1)
        rollback(session, tenant)
        assert (tenant.live_release_id, tenant.canary_release_id) == (first.id, None)


@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)
def test_what_cannot_be_a_canary_or_a_shadow(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant, (first, second) = tenant_with(session, 2)
        other, (foreign,) = tenant_with(session, 1, "people", live=None)
        for part in (CANARY, SHADOW):
            with pytest.raises(Conflict, match="release 1 of tenant 'support' is live"):
                set_beside(session, tenant, part, first, 0.1)
            with pytest.raises(InvalidInput, match="does not belong"):
                set_beside(session, tenant, part, foreign, 0.1)
            with pytest.raises(InvalidInput, match="share"):
                set_beside(session, tenant, part, second, 0.0)
            with pytest.raises(Conflict, match="no live release"):
                set_beside(session, other, part, foreign, 0.1)
        with pytest.raises(InvalidInput, match="promote the release instead"):
            set_beside(session, tenant, CANARY, second, 1.0)
        assert tenant.canary_release_id is None and tenant.shadow_release_id is None


def test_how_the_parts_fare(catalog: Catalog) -> None:
    def row(release: Release, part: str | None, status: str = "ok", ms: float = 10.0, **more: Any) -> RequestLog:
        at = {"created_at": time.time(), **more}
        return RequestLog(
            id=new_id("req_"),
            tenant_id=release.tenant_id,
            release_id=release.id,
            messages=[],
            answer="",
            passages=[],
            completion_tokens=5,
            total_ms=ms,
            status=status,
            part=part,
            **at,
        )

    with catalog.session() as session:
        tenant, (first, second, third) = tenant_with(session, 3)
        set_beside(session, tenant, CANARY, second, 0.1)
        session.add_all([row(first, "live", ms=ms, first_token_ms=ms / 10) for ms in range(1, 101)])
        session.add_all([row(first, "live", "error", ms=9999), row(first, "live", passed_release_id=second.id, ms=50)])
        session.add_all([row(second, "canary", ms=7), row(third, "shadow", "dropped"), row(first, None)])
        session.add(row(first, "live", "error", created_at=time.time() - 7200))
        _, (foreign,) = tenant_with(session, 1, "people")
        session.add(row(foreign, "live", "error"))
        session.flush()
        live, canary, shadow = traffic_status(session, get_tenant(session, "support"), 3600)
    assert (live.part, live.version, live.current, live.share) == ("live", 1, True, None)
    assert (live.requests, live.errors, live.cancelled, live.passed) == (102, 1, 0, 0)
    assert live.median_ms == 50 and live.p95_ms == 95 and live.first_token_ms == pytest.approx(5.1)
    assert (canary.part, canary.version, canary.share, canary.requests) == ("canary", 2, 0.1, 1)
    assert (canary.passed, canary.median_ms, canary.completion_tokens) == (1, 7, 5)
    assert (shadow.part, shadow.version, shadow.current, shadow.dropped) == ("shadow", 3, False, 1)
    assert shadow.median_ms is None
    with catalog.session() as session:
        get_release(session, get_tenant(session, "people"), 1)
        assert [one.part for one in traffic_status(session, get_tenant(session, "people"), 3600)] == ["live"]
