"""Moving traffic while gateways run: what is promoted is loaded first, and what cannot be loaded changes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scripted_house import House, built, eventually
from sqlalchemy import update

from ryorin import rollout
from ryorin.catalog import gateways
from ryorin.catalog.clock import NowS
from ryorin.catalog.tables import Gateway, Load, Tenant
from ryorin.catalog.tenants import get_tenant
from ryorin.errors import Conflict, Unavailable
from ryorin.release import get_release, live_release
from ryorin.rollout import Rollout
from ryorin_serve import presence

QUESTION = [{"role": "user", "content": "How long does a refund take?"}]
ADAPTER, OTHER = "support-0123456789ab", "support-ba9876543210"


@pytest.fixture(autouse=True)
def looking_often(monkeypatch):
    monkeypatch.setattr(presence, "LOOK_S", 0.02)
    monkeypatch.setattr(rollout, "LOOK_S", 0.02)


@pytest.fixture
def promoting(house: House) -> Iterator[Rollout]:
    yield Rollout(house.catalog, wait_s=30)
    with house.catalog.session() as session:
        assert not session.query(Load).all(), "wishes are deleted, whatever became of them"


def live(house: House, tenant: str = "support") -> int:
    with house.catalog.session() as session:
        return live_release(session, get_tenant(session, tenant)).version


def candidate(house: House, adapter: str | None = ADAPTER, rank: int = 16) -> int:
    if adapter and adapter not in house.adapter_digests:
        house.adapter_folder(adapter, rank=rank)
    return house.release("support", adapter=adapter, promote=False)


def test_a_gateway_looks_for_wishes_only_when_somebody_wrote(house: House, monkeypatch):
    monkeypatch.setattr(presence, "SEEN_EVERY_S", 60.0)
    looks = []
    wished_of = gateways.wished_of
    monkeypatch.setattr(gateways, "wished_of", lambda *asked: looks.append(1) or wished_of(*asked))
    time.sleep(0.5)  # its own sign of life has been seen
    before = len(looks)
    time.sleep(0.4)  # twenty times LOOK_S
    assert len(looks) == before
    with house.catalog.session() as session:
        session.execute(update(Tenant).values(name=Tenant.name))
    eventually(lambda: len(looks) > before)


def test_an_adapter_is_in_the_engine_before_its_first_request(house: House, promoting: Rollout):
    moved = promoting.promote("support", candidate(house))
    assert (moved.version, moved.before, moved.changed, moved.gateways) == (2, 1, True, 1)
    assert house.engine.loads == [ADAPTER] and not house.engine.requests
    ((tenant_id, stores),) = house.shelf.warmed
    assert tenant_id == house.ids["support"] and len(stores) == 1
    house.client().chat.completions.create(model="support", messages=QUESTION)
    assert house.engine.loads == [ADAPTER] and house.engine.requests[0]["model"] == ADAPTER
    assert not promoting.promote("support", 2).changed


def test_the_old_release_answers_while_the_new_one_is_loaded(house: House, promoting: Rollout):
    version = candidate(house)
    house.engine.load_delay_s = 1.0
    lines: list[tuple[str, bool]] = []
    promoting = Rollout(house.catalog, wait_s=30, on_progress=lambda line, done: lines.append((line, done)))
    with ThreadPoolExecutor(1) as threads:
        moving = threads.submit(promoting.promote, "support", version)
        answered = 0
        while not moving.done():
            house.client().chat.completions.create(model="support", messages=QUESTION)
            answered += 1
        assert moving.result().gateways == 1
    assert answered > 1
    models = [body["model"] for body in house.engine.requests]
    assert set(models[:-1]) == {"ryorin-base"}
    assert ("release 2 is loaded by 0 of 1 gateways", False) in lines and lines[-1][1]


def damage_files(house: House) -> None:
    (house.catalog.settings.adapters_dir / ADAPTER / "adapter_model.safetensors").write_bytes(b"altered")


def remove_files(house: House) -> None:
    (house.catalog.settings.adapters_dir / ADAPTER / "adapter_model.safetensors").unlink()


def refuse_in_vllm(house: House) -> None:
    house.engine.refuse_load = (400, "no such module")


def refuse_store(house: House) -> None:
    house.shelf.refuse_warm = Conflict("the reranker is another model")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (damage_files, "not what was trained"),
        (remove_files, "lacks adapter_model.safetensors"),
        (refuse_in_vllm, "no such module"),
        (refuse_store, "the reranker is another model"),
    ],
)
def test_what_cannot_be_loaded_changes_nothing_and_says_why(house: House, promoting: Rollout, damage, why):
    version = candidate(house)
    damage(house)
    for move, share in ((promoting.promote, ()), (promoting.canary, (0.5,)), (promoting.shadow, (0.5,))):
        with pytest.raises(Conflict, match=why) as caught:
            move("support", version, *share)
        assert caught.value.code == "release_not_loaded" and "nothing has changed" in caught.value.message
    with house.catalog.session() as session:
        tenant = get_tenant(session, "support")
        assert (live(house), tenant.canary_release_id, tenant.shadow_release_id) == (1, None, None)
    house.client().chat.completions.create(model="support", messages=QUESTION)


def test_a_rank_above_the_engines_is_refused_with_the_way_out(house: House, promoting: Rollout):
    with pytest.raises(Conflict, match="--max-lora-rank 64"):
        promoting.promote("support", candidate(house, rank=64))
    assert live(house) == 1


def test_rolling_back_loads_too(house: House, promoting: Rollout):
    promoting.promote("support", candidate(house))
    promoting.promote("support", candidate(house, OTHER))
    assert house.engine.loads == [ADAPTER, OTHER]
    house.engine.restart()
    moved = promoting.rollback("support")
    assert (moved.version, moved.before, live(house)) == (2, 3, 2)
    assert ADAPTER in house.engine.adapters
    house.release("support")
    damage_files(house)
    with pytest.raises(Conflict, match="not what was trained"):
        promoting.rollback("support")
    assert live(house) == 4


def test_a_rollback_that_somebody_overtook_does_nothing(house: House, promoting: Rollout):
    promoting.promote("support", candidate(house))
    house.release("support")  # 3, whose predecessor is 2
    house.engine.restart()
    house.engine.load_delay_s = 0.5
    with ThreadPoolExecutor(1) as threads:
        going_back = threads.submit(promoting.rollback, "support")
        eventually(lambda: wishes(house))
        house.release("support")  # 4
        with pytest.raises(Conflict, match="changed by somebody else"):
            going_back.result()
    assert live(house) == 4


def wishes(house: House) -> int:
    with house.catalog.session() as session:
        return session.query(Load).count()


def test_a_canary_and_a_shadow_are_loaded_first_and_another_share_needs_no_loading(house: House, promoting: Rollout):
    version = candidate(house)
    moved = promoting.canary("support", version, 0.1)
    assert (moved.part, moved.version, moved.share, moved.gateways) == ("canary", 2, 0.1, 1)
    assert house.engine.loads == [ADAPTER]
    assert promoting.canary("support", version, 0.2).gateways == 0
    off = promoting.canary("support", None)
    assert (off.version, off.before, off.changed) == (None, 2, True)
    assert promoting.shadow("support", candidate(house, OTHER), 1.0).gateways == 1
    assert house.engine.loads == [ADAPTER, OTHER]
    assert not promoting.canary("support", None).changed


def test_an_engine_that_is_away_is_waited_for_and_then_named(house: House, promoting: Rollout):
    version = candidate(house)
    house.engine.stop()
    with pytest.raises(Unavailable, match=r"did not load it within 0.5 s \(The engine went away") as caught:
        Rollout(house.catalog, wait_s=0.5).promote("support", version)
    assert "--wait SECONDS" in caught.value.message and live(house) == 1
    with ThreadPoolExecutor(1) as threads:
        moving = threads.submit(promoting.promote, "support", version)
        eventually(lambda: wishes(house))
        house.engine.restart()
        assert moving.result().changed
    assert live(house) == 2


def test_without_waiting_the_first_request_loads_it(house: House):
    version = candidate(house)
    assert Rollout(house.catalog, wait_s=0).promote("support", version).gateways == 0
    assert not house.engine.loads and live(house) == version


def test_a_tenants_first_release_is_live_at_once(house: House):
    version = candidate(house)
    with house.catalog.session() as session:
        get_tenant(session, "support").live_release_id = None
    house.engine.state = "starting"
    assert Rollout(house.catalog, wait_s=30).promote("support", version).gateways == 0
    assert not house.engine.loads and live(house) == version


def test_a_gateway_that_died_is_not_waited_for_and_one_of_another_base_not_asked(house: House, promoting: Rollout):
    with house.catalog.session() as session:
        gateways.see(session, "gw_dead", "a dead one", house.base.digest)
        gateways.see(session, "gw_else", "one of another base", "f" * 64)
        session.execute(update(Gateway).where(Gateway.id == "gw_dead").values(seen_at=NowS() - 60))
    assert promoting.promote("support", candidate(house)).gateways == 1


def test_one_that_dies_while_it_is_waited_for_holds_nobody_up(house: House, promoting: Rollout):
    with house.catalog.session() as session:
        gateways.see(session, "gw_dying", "a dying one", house.base.digest)
        session.execute(update(Gateway).where(Gateway.id == "gw_dying").values(seen_at=NowS() - 14))
    assert promoting.promote("support", candidate(house)).gateways == 1


def test_a_release_that_no_running_gateway_can_serve_is_not_promoted(house: House, promoting: Rollout):
    with house.catalog.session() as session:
        session.execute(update(Gateway).values(base_digest="f" * 64))
    with pytest.raises(Conflict, match="running gateways serve ffffffffffff"):
        promoting.promote("support", candidate(house, None))
    assert live(house) == 1


def test_a_gateway_that_ends_takes_its_leave(tmp_path, empty_sqlite, options):
    with built(tmp_path / "home", empty_sqlite, options) as house, house.catalog.session() as session:
        assert len(gateways.running_gateways(session)) == 1
    with house.catalog.session() as session:
        assert not session.query(Gateway).all()
    version = house.release("support", promote=False)
    assert Rollout(house.catalog, wait_s=30).promote("support", version).gateways == 0  # at once
    house.catalog.close()


def test_a_gateway_says_that_it_lives(house: House, monkeypatch):
    monkeypatch.setattr(presence, "SEEN_EVERY_S", 0.1)
    with house.catalog.session() as session:
        session.execute(update(Gateway).values(seen_at=NowS() - 60))

    def alive() -> int:
        with house.catalog.session() as session:
            return len(gateways.running_gateways(session))

    assert eventually(alive) == 1


def test_what_a_killed_process_left_is_swept_away(house: House, monkeypatch):
    monkeypatch.setattr(presence, "SEEN_EVERY_S", 0.1)
    with house.catalog.session() as session:
        tenant = session.get_one(Tenant, house.ids["support"])
        gateways.see(session, "gw_killed", "a killed one", house.base.digest)
        (wished,) = gateways.wish(session, get_release(session, tenant, 1), ["gw_killed"])
        session.execute(update(Gateway).where(Gateway.id == "gw_killed").values(seen_at=NowS() - 7200))
        session.execute(update(Load).values(created_at=time.time() - 7200))

    def left() -> int:
        with house.catalog.session() as session:
            return len(gateways.loads(session, [wished])) + session.query(Gateway).filter_by(id="gw_killed").count()

    eventually(lambda: left() == 0)


def test_two_promotions_at_once_both_load_and_one_is_live(house: House, promoting: Rollout):
    versions = [candidate(house), candidate(house, OTHER)]
    together = threading.Barrier(2)

    def move(version: int) -> Any:
        together.wait()
        return promoting.promote("support", version)

    with ThreadPoolExecutor(2) as threads:
        moved = list(threads.map(move, versions))
    assert all(one.changed for one in moved) and live(house) in versions
    assert sorted(house.engine.loads) == [ADAPTER, OTHER]
