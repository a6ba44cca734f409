"""Who asks: proofs that stand while nothing was committed, and fall with the first commit; on both databases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from ryorin.catalog import Catalog
from ryorin.catalog.keys import issue_key, revoke_key
from ryorin.catalog.tables import Tenant
from ryorin.catalog.tenants import create_tenant, set_prompt
from ryorin.catalog.usage import set_limits
from ryorin.errors import AuthenticationFailed
from ryorin.prompt import Prompt
from ryorin.release import create_release, promote
from ryorin_serve import auth
from ryorin_serve.auth import Caller, Callers

PEPPER = b"pepper"


@pytest.fixture
def tenant(catalog: Catalog) -> Tenant:
    with catalog.session() as session:
        return create_tenant(session, "support")


@pytest.fixture
def callers(catalog: Catalog) -> Iterator[Callers]:
    opened = Callers(catalog, PEPPER)
    yield opened
    opened.close()


def key_of(catalog: Catalog, tenant: Tenant, **more: Any) -> tuple[str, str]:
    """A key's id, and what a client sends of it."""
    with catalog.session() as session:
        key, secret = issue_key(session, tenant, PEPPER, **more)
        return key.id, f"Bearer {secret}"


def asked(callers: Callers, *sent: str) -> list[Caller]:
    async def all_of_them() -> list[Caller]:
        return await asyncio.gather(*(callers.identify(each) for each in sent))

    return asyncio.run(all_of_them())


@contextmanager
def statements(catalog: Catalog) -> Iterator[list[str]]:
    """What the catalog is asked meanwhile."""
    found: list[str] = []

    def note(*given: Any) -> None:
        found.append(given[2])

    event.listen(catalog.engine, "before_cursor_execute", note)
    yield found
    event.remove(catalog.engine, "before_cursor_execute", note)


def test_a_proof_stands_while_nothing_is_committed(catalog: Catalog, tenant: Tenant, callers: Callers) -> None:
    _, sent = key_of(catalog, tenant)
    first = asked(callers, sent)
    with statements(catalog) as found:
        assert asked(callers, sent, sent) == first * 2
    assert len(found) == (0 if catalog.engine.dialect.name == "sqlite" else 2)


def revoked(catalog: Catalog, tenant: Tenant, key: str) -> None:
    with catalog.session() as session:
        revoke_key(session, tenant, key)


def test_a_revoked_key_opens_nothing_from_the_next_request_on(
    catalog: Catalog, tenant: Tenant, callers: Callers
) -> None:
    key, sent = key_of(catalog, tenant)
    asked(callers, sent)
    revoked(catalog, tenant, key)
    for _ in range(2):
        with pytest.raises(AuthenticationFailed):
            asked(callers, sent)


def promoted(catalog: Catalog, tenant: Tenant) -> str:
    with catalog.session() as session:
        row = session.get_one(Tenant, tenant.id)
        prompt = set_prompt(session, row, Prompt("Answer."))
        release = create_release(session, row, base_digest="b" * 64, prompt=prompt)
        promote(session, row, release)
        return release.id


def test_a_promotion_and_a_limit_count_from_the_next_request_on(
    catalog: Catalog, tenant: Tenant, callers: Callers
) -> None:
    _, sent = key_of(catalog, tenant)
    assert asked(callers, sent)[0].points_to.live is None
    for _ in range(2):
        release = promoted(catalog, tenant)
        assert asked(callers, sent)[0].points_to.live == release
    with catalog.session() as session:
        row = session.get_one(Tenant, tenant.id)
        set_limits(session, row, row, {"requests_per_minute": 3})
    assert asked(callers, sent)[0].tenant_limits.requests_per_minute == 3


def test_what_is_committed_while_a_key_is_read_is_not_missed(
    catalog: Catalog, tenant: Tenant, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is read, then the key is revoked, then the proof is kept: as of a look that was before both."""
    key, sent = key_of(catalog, tenant)
    reading: Callable[..., Caller] = auth.identify

    def slowly(*given: Any) -> Caller:
        found = reading(*given)
        revoked(catalog, tenant, key)
        return found

    monkeypatch.setattr(auth, "identify", slowly)
    asked(callers, sent)
    monkeypatch.setattr(auth, "identify", reading)
    with pytest.raises(AuthenticationFailed):
        asked(callers, sent)


def test_a_key_expires_though_nothing_is_committed(catalog: Catalog, tenant: Tenant, callers: Callers) -> None:
    _, sent = key_of(catalog, tenant, expires_at=time.time() + 0.5)
    asked(callers, sent)
    time.sleep(0.55)
    with pytest.raises(AuthenticationFailed):
        asked(callers, sent)


def test_no_secret_is_kept_and_no_more_proofs_than_there_is_room_for(
    catalog: Catalog, tenant: Tenant, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MOST_PROVED", 3)
    sent = [key_of(catalog, tenant)[1] for _ in range(8)]
    asked(callers, *sent)
    assert len(callers._proved) <= 3
    assert not any(secret.removeprefix("Bearer ") in repr(callers._proved) for secret in sent)
