"""Counting what is used, over several gateways of one catalog."""

from __future__ import annotations

import asyncio
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


def test_what_cannot_be_saved_now_is_saved_later(
    catalog: Catalog, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotas = Quotas(catalog, lambda: NOW)
    assert admitted(quotas, caller, 2) == 2
    exchange = quotas._exchange

    def away(*_: Any) -> Any:
        raise ConnectionError("the database is away")

    monkeypatch.setattr(quotas, "_exchange", away)
    asyncio.run(quotas.save())
    assert admitted(quotas, caller, 9) == 3  # and is not forgotten meanwhile
    monkeypatch.setattr(quotas, "_exchange", exchange)
    asyncio.run(quotas.save())
    with catalog.session() as session:
        assert usage_of(session, [caller.tenant_id], [minute_of(NOW)])[caller.tenant_id, minute_of(NOW)].requests == 5
