"""Gateways in the catalog: who lives by the database's clock, what is wished of them and what they answer."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import update

from ryorin.catalog import Catalog, gateways
from ryorin.catalog.clock import NowS
from ryorin.catalog.tables import Gateway
from ryorin.catalog.tenants import create_tenant, get_tenant, set_prompt
from ryorin.errors import Conflict, Unavailable
from ryorin.prompt import Prompt
from ryorin.release import create_release, get_release, live_release, promote
from ryorin.rollout import Arrangement, Rollout

BASE = "b" * 64


@pytest.fixture
def support(catalog: Catalog) -> str:
    """A tenant with three releases, the first of them live."""
    with catalog.session() as session:
        tenant = create_tenant(session, "support")
        prompt = set_prompt(session, tenant, Prompt("You answer."))
        first, *_ = [create_release(session, tenant, base_digest=BASE, prompt=prompt) for _ in range(3)]
        promote(session, tenant, first)
    return "support"


def live(catalog: Catalog) -> int:
    with catalog.session() as session:
        return live_release(session, get_tenant(session, "support")).version


def answering(catalog: Catalog, gateway_id: str, status: str, reason: str | None = None) -> threading.Thread:
    """A gateway that answers every wish so, until its thread is told to end by a row that is gone."""

    def run() -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with catalog.session() as session:
                wished = gateways.wished_of(session, gateway_id)
                for load in wished:
                    gateways.answer(session, load.id, status, reason)
                if wished:
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_who_lives_is_told_by_the_databases_clock(catalog: Catalog, support: str) -> None:
    with catalog.session() as session:
        for name in ("gw_1", "gw_2"):
            gateways.see(session, name, name, BASE)
        assert [one.id for one in gateways.running_gateways(session)] == ["gw_1", "gw_2"]
        session.execute(update(Gateway).where(Gateway.id == "gw_1").values(seen_at=NowS() - 16))
        assert [one.id for one in gateways.running_gateways(session)] == ["gw_2"]
        gateways.see(session, "gw_1", "gw_1", BASE)
        assert len(gateways.running_gateways(session)) == 2
        gateways.forget(session, "gw_1")
        assert [one.id for one in gateways.running_gateways(session)] == ["gw_2"]


def test_all_gateways_are_waited_for_and_one_that_cannot_ends_it(catalog: Catalog, support: str) -> None:
    with catalog.session() as session:
        for name in ("gw_1", "gw_2"):
            gateways.see(session, name, f"the gateway {name}", BASE)
    threads = [answering(catalog, "gw_1", gateways.DONE), answering(catalog, "gw_2", gateways.DONE)]
    assert Rollout(catalog, wait_s=30).promote(support, 2).gateways == 2 and live(catalog) == 2
    threads += [answering(catalog, "gw_1", gateways.DONE), answering(catalog, "gw_2", gateways.FAILED, "no disk")]
    with pytest.raises(Conflict, match="the gateway gw_2 could not load it: no disk"):
        Rollout(catalog, wait_s=30).promote(support, 3)
    threads.append(answering(catalog, "gw_1", gateways.DONE))
    with pytest.raises(Unavailable, match=r"gw_2 did not load it within 0\.3 s"):
        Rollout(catalog, wait_s=0.3).promote(support, 3)
    assert live(catalog) == 2
    for thread in threads:
        thread.join(30)


def test_a_tenants_traffic_moves_in_one_go_or_not_at_all(catalog: Catalog, support: str) -> None:
    rollout = Rollout(catalog)
    with pytest.raises(Conflict, match="release 2 of tenant 'support' is live; a canary must be another"):
        rollout.arrange(support, Arrangement(live=2, canary=(2, 0.1), shadow=(3, 1.0)))
    assert live(catalog) == 1
    rollout.arrange(support, Arrangement(live=2, canary=(1, 0.1), shadow=(3, 1.0)))
    with catalog.session() as session:
        tenant = get_tenant(session, support)
        ids = [get_release(session, tenant, version).id for version in (2, 1, 3)]
        assert [tenant.live_release_id, tenant.canary_release_id, tenant.shadow_release_id] == ids
    rollout.arrange(support, Arrangement(canary=(None, None)))
    with catalog.session() as session:
        tenant = get_tenant(session, support)
        assert (tenant.canary_release_id, tenant.shadow_release_id) == (None, ids[2])
