"""What keys may do, what was used, what was done and by whom, what the log forgets; on both databases."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog, audit
from ryorin.catalog.audit import acting, audit_events
from ryorin.catalog.keys import authenticate, issue_key, list_keys, revoke_key, rotate_key
from ryorin.catalog.logs import asker_hash, erase_asker, prune_logs, set_log_days
from ryorin.catalog.tables import ApiKey, Release, RequestLog, Tenant, Usage
from ryorin.catalog.tenants import create_tenant, set_prompt
from ryorin.catalog.usage import (
    Used,
    add_usage,
    forget_minutes,
    minute_of,
    month_of,
    monthly_usage,
    set_limits,
    usage_of,
)
from ryorin.digests import new_id
from ryorin.errors import AuthenticationFailed, Conflict, InvalidInput, NotFound
from ryorin.prompt import Prompt
from ryorin.release import create_release, promote
from ryorin.scopes import SCOPES

PEPPER = b"pepper"
DAY_S = 86_400.0


@pytest.fixture
def support(catalog: Catalog) -> Tenant:
    with catalog.session() as session:
        return create_tenant(session, "support")


def test_a_key_may_ask_and_nothing_else_unless_it_is_said(catalog: Catalog, support: Tenant) -> None:
    with catalog.session() as session:
        assert issue_key(session, support, PEPPER)[0].scopes == "chat"
        assert issue_key(session, support, PEPPER, scopes=("admin", "chat", "admin"))[0].scopes == "chat,admin"
        for wrong, said in ((["root"], "'root'"), ([], "without a scope")):
            with pytest.raises(InvalidInput, match=said):
                issue_key(session, support, PEPPER, scopes=wrong)


def test_a_rotated_key_goes_on_for_a_while_and_its_successor_may_do_the_same(catalog: Catalog, support: Tenant) -> None:
    with catalog.session() as session:
        old, secret = issue_key(session, support, PEPPER, "frontend", scopes=SCOPES)
        set_limits(session, support, old, {"requests_per_minute": 7})
        new, its_secret = rotate_key(session, support, PEPPER, old.id, grace_s=60)
        assert (new.label, new.scopes, new.requests_per_minute, new.replaces) == ("frontend", old.scopes, 7, old.id)
        assert [authenticate(session, PEPPER, each)["key_id"] for each in (secret, its_secret)] == [old.id, new.id]
        ended, _ = rotate_key(session, support, PEPPER, new.prefix, grace_s=0)
        with pytest.raises(AuthenticationFailed):
            authenticate(session, PEPPER, its_secret)
        with pytest.raises(Conflict, match="not valid any longer"):
            rotate_key(session, support, PEPPER, new.id)
        revoke_key(session, support, ended.id)
        with pytest.raises(Conflict, match="not valid any longer"):
            rotate_key(session, support, PEPPER, ended.id)
        with pytest.raises(NotFound):
            rotate_key(session, create_tenant(session, "people"), PEPPER, old.id)


def test_a_rotation_makes_no_key_live_longer(catalog: Catalog, support: Tenant) -> None:
    with catalog.session() as session:
        soon = time.time() + 30
        old, _ = issue_key(session, support, PEPPER, expires_at=soon)
        new, _ = rotate_key(session, support, PEPPER, old.id, grace_s=3600)
        assert old.expires_at == new.expires_at == soon


def test_what_was_used_adds_up_over_keys_and_writers(catalog: Catalog, support: Tenant) -> None:
    now = time.time()
    minute, month = minute_of(now), month_of(now)
    with catalog.session() as session:
        first, second = (issue_key(session, support, PEPPER)[0].id for _ in range(2))
    for _ in range(3):
        with catalog.session() as session:
            used = [(support.id, key, window, Used(1, 10)) for key in (second, first) for window in (minute, month)]
            add_usage(session, used)
    with catalog.session() as session:
        add_usage(session, [])
        found = usage_of(session, [support.id], [minute, month])
        assert found[first, minute] == found[second, month] == Used(3, 30)
        assert found[support.id, minute] == found[support.id, month] == Used(6, 60)
        shown = monthly_usage(session, support, 3)
        assert {row["key_id"]: (row["month"], row["tokens"]) for row in shown} == {
            first: (month, 30),
            second: (month, 30),
        }
        forget_minutes(session, now + 2 * 3600)
        assert set(session.scalars(select(Usage.window))) == {month}


def test_windows_are_named_by_utc() -> None:
    assert (minute_of(0.0), month_of(0.0)) == ("1970-01-01T00:00", "1970-01")
    assert (minute_of(59.9), minute_of(60.0)) == ("1970-01-01T00:00", "1970-01-01T00:01")


def test_limits_that_cannot_be(catalog: Catalog, support: Tenant) -> None:
    with catalog.session() as session:
        for wrong in (-1, 1.5, True, "9", 2**31):
            given: dict[str, Any] = {"requests_per_minute": wrong}
            with pytest.raises(InvalidInput, match="requests_per_minute is"):
                set_limits(session, support, support, given)
        assert set_limits(session, support, support, {"tokens_per_month": 2**40}).tokens_per_month == 2**40
        assert set_limits(session, support, support, {"tokens_per_month": None}).tokens_per_month is None


def test_acts_are_written_with_who_did_them(catalog: Catalog, support: Tenant) -> None:
    with acting("key ryo-abc", "req_1"), catalog.session() as session:
        key, _ = issue_key(session, support, PEPPER, "a label")
        revoke_key(session, support, key.id)
        revoke_key(session, support, key.id)  # which changes nothing
        set_limits(session, support, support, {"tokens_per_minute": 5})
        set_limits(session, support, support, {"tokens_per_minute": 5})
    with catalog.session() as session:
        support = session.get_one(Tenant, support.id)
        prompt = set_prompt(session, support, Prompt(system="Hello."))
        release = create_release(session, support, base_digest="b" * 64, prompt=prompt, adapter=None, stores=[])
        promote(session, support, release)
    with pytest.raises(RuntimeError), catalog.session() as session:
        audit.note(session, support.id, "never", "it was undone")
        raise RuntimeError
    with catalog.session() as session:
        events = list(audit_events(session, support.id))
    assert [event.act for event in reversed(events)] == [
        "tenant.create", "key.create", "key.revoke", "limits.set", "prompt.set", "release.create", "release.promote"
    ]  # fmt: skip
    by_key = events[-2]
    assert (by_key.actor, by_key.request_id, by_key.target) == ("key ryo-abc", "req_1", key.id)
    assert by_key.detail["scopes"] == ["chat"] and by_key.detail["label"] == "a label"
    assert events[0].actor.startswith("user ") and events[0].request_id is None
    assert events[0].target == "support@1"
    with catalog.session() as session:
        assert not audit_events(session, support.id, since=time.time() + 1)
        assert len(audit_events(session, support.id, limit=2)) == 2


def test_the_database_lets_nobody_change_the_audit_log(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant = create_tenant(session, "support")
    statements = ["UPDATE audit_events SET actor = 'nobody'", "DELETE FROM audit_events"]
    if catalog.engine.dialect.name == "postgresql":
        statements.append("TRUNCATE audit_events")
    for statement in statements:
        with pytest.raises(DBAPIError, match="append-only"), catalog.session() as session:
            session.execute(text(statement))
    with catalog.session() as session:
        (event,) = audit_events(session, tenant.id)
        assert event.actor.startswith("user ")


def asked(session: Session, tenant: Tenant, release: Release, age_days: float, name: str | None) -> str:
    row = RequestLog(
        id=new_id("req_"),
        tenant_id=tenant.id,
        release_id=release.id,
        created_at=time.time() - age_days * DAY_S,
        messages=[],
        answer="",
        passages=[],
        status="ok",
        asker=None if name is None else asker_hash(PEPPER, tenant.id, name),
    )
    session.add(row)
    return row.id


def test_the_log_forgets_what_is_old_and_who_is_to_be_forgotten(catalog: Catalog, support: Tenant) -> None:
    with catalog.session() as session:
        support = session.get_one(Tenant, support.id)
        people = create_tenant(session, "people")
        made = {}
        for tenant in (support, people):
            prompt = set_prompt(session, tenant, Prompt(system="Hello."))
            release = create_release(session, tenant, base_digest="b" * 64, prompt=prompt, adapter=None, stores=[])
            made[tenant.name] = [
                asked(session, tenant, release, age, name) for age, name in ((40, "anna"), (2, "anna"), (1, None))
            ]
        set_log_days(session, support, 30)
        for wrong in (0, 40_000):
            with pytest.raises(InvalidInput, match="log days is"):
                set_log_days(session, support, wrong)
    with catalog.session() as session:
        assert prune_logs(session) == 1 and prune_logs(session) == 0
    with catalog.session() as session:
        assert erase_asker(session, support, PEPPER, "anna") == 1
        assert erase_asker(session, support, PEPPER, "bert") == 0
    with catalog.session() as session:
        assert set(session.scalars(select(RequestLog.id))) == {made["support"][2], *made["people"]}
        acts = [event.act for event in audit_events(session, support.id)]
    assert acts.count("logs.erase") == 2 and "logs.keep" in acts


def test_keys_of_before_may_do_what_they_could(settings: Any) -> None:
    """The migration gives them every scope."""
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine, text

    from ryorin.catalog.database import MIGRATIONS, open_catalog

    engine = create_engine(settings.database_url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0008")
        connection.execute(text("INSERT INTO tenants (id, name, description, created_at) VALUES ('t', 'old', '', 0)"))
        values = "('k', 't', 'ryo-old', 'h', '', 0)"
        columns = "(id, tenant_id, prefix, hmac, label, created_at)"
        connection.execute(text(f"INSERT INTO api_keys {columns} VALUES {values}"))
    engine.dispose()
    catalog = open_catalog(settings)
    with catalog.session() as session:
        tenant = session.get_one(Tenant, "t")
        assert [key.scopes for key in list_keys(session, tenant)] == [",".join(SCOPES)]
        assert session.get_one(ApiKey, "k").requests_per_minute is None
    catalog.close()
