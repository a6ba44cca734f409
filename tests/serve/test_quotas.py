"""Counting what is used, over several gateways of one catalog."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from ryorin.catalog import Catalog
from ryorin.catalog.keys import issue_key
from ryorin.catalog.tenants import create_tenant
from ryorin.catalog.usage import Limits, minute_of, usage_of
from ryorin.errors import OverLimit
from ryorin_serve.auth import Caller
from ryorin_serve.limits import Quotas

NOW = 1_700_000_000.0


@pytest.fixture
def caller(catalog: Catalog) -> Caller:
    with catalog.session() as session:
        tenant = create_tenant(session, "support")
        key, _ = issue_key(session, tenant, b"pepper")
        return Caller(tenant.id, tenant.name, key.id, key.prefix, frozenset(["chat"]), Limits(5, 100, 1000), Limits())


def admitted(quotas: Quotas, caller: Caller, count: int) -> int:
    async def run() -> int:
        for number in range(count):
            try:
                await quotas.admit(caller)
            except OverLimit:
                return number
        return count

    return asyncio.run(run())


def test_gateways_share_a_limit_but_for_what_they_have_not_told_yet(catalog: Catalog, caller: Caller) -> None:
    first, second = (Quotas(catalog, lambda: NOW) for _ in range(2))
    assert admitted(first, caller, 3) == 3
    asyncio.run(first.save())
    assert admitted(second, caller, 9) == 2
    asyncio.run(second.save())
    asyncio.run(first.save())
    assert admitted(first, caller, 1) == 0
    with catalog.session() as session:
        assert usage_of(session, [caller.tenant_id], [minute_of(NOW)])[caller.key_id, minute_of(NOW)].requests == 5


def test_a_new_minute_begins_anew_and_the_month_goes_on(catalog: Catalog, caller: Caller) -> None:
    now = [NOW]
    quotas = Quotas(catalog, lambda: now[0])
    assert admitted(quotas, caller, 9) == 5
    quotas.count_tokens(caller, 100)
    now[0] += 60
    assert admitted(quotas, caller, 1) == 1
    quotas.count_tokens(caller, 900)
    now[0] += 60
    with pytest.raises(OverLimit) as refused:
        asyncio.run(quotas.admit(caller))
    assert refused.value.code == "insufficient_quota"
    assert 0 < refused.value.retry_after_s <= 31 * 86_400
    now[0] += refused.value.retry_after_s
    assert admitted(quotas, caller, 1) == 1


@pytest.mark.parametrize("part", ["_write", "_read"])
def test_what_cannot_be_saved_now_is_counted_once_all_the_same(
    catalog: Catalog, caller: Caller, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    quotas = Quotas(catalog, lambda: NOW)
    assert admitted(quotas, caller, 2) == 2

    def away(*_: Any) -> Any:
        raise ConnectionError("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(quotas, part, away)
        asyncio.run(quotas.save())
        assert admitted(quotas, caller, 9) == 3  # and is not forgotten meanwhile
    asyncio.run(quotas.save())
    assert used(catalog, caller) == 5 and admitted(quotas, caller, 1) == 0


def used(catalog: Catalog, caller: Caller) -> int:
    with catalog.session() as session:
        return usage_of(session, [caller.tenant_id], [minute_of(NOW)])[caller.tenant_id, minute_of(NOW)].requests


@pytest.mark.parametrize("part", ["_write", "_read"])
def test_what_is_being_saved_counts_too(
    catalog: Catalog, caller: Caller, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    quotas = Quotas(catalog, lambda: NOW)
    assert admitted(quotas, caller, 5) == 5
    whole = getattr(quotas, part)

    def slow(*given: Any) -> Any:
        time.sleep(0.3)
        return whole(*given)

    async def meanwhile() -> None:
        saving = asyncio.create_task(quotas.save())
        await asyncio.sleep(0.1)
        with pytest.raises(OverLimit):
            await quotas.admit(caller)
        await saving

    monkeypatch.setattr(quotas, part, slow)
    asyncio.run(meanwhile())
    assert used(catalog, caller) == 5


def test_of_many_that_come_at_once_to_a_gateway_that_is_new_none_is_over_the_limit(
    catalog: Catalog, caller: Caller
) -> None:
    first = Quotas(catalog, lambda: NOW)
    assert admitted(first, caller, 5) == 5
    asyncio.run(first.save())
    second = Quotas(catalog, lambda: NOW)

    async def burst() -> list[Any]:
        return await asyncio.gather(*(second.admit(caller) for _ in range(20)), return_exceptions=True)

    assert all(isinstance(each, OverLimit) for each in asyncio.run(burst()))
