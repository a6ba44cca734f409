"""Tenants and keys, on both databases."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from ryorin.catalog import Catalog
from ryorin.catalog.keys import authenticate, issue_key, list_keys, revoke_key
from ryorin.catalog.tables import ApiKey
from ryorin.catalog.tenants import create_tenant, current_prompt, get_tenant, list_tenants, set_prompt
from ryorin.errors import AuthenticationFailed, Conflict, InvalidInput, NotFound
from ryorin.prompt import Prompt
from ryorin.settings import Settings, find_home

PEPPER = b"pepper"


def test_a_name_is_taken_once(catalog: Catalog) -> None:
    with catalog.session() as session:
        create_tenant(session, "support", "Customer support")
        with pytest.raises(Conflict, match="exists already"):
            create_tenant(session, "support")
        assert [tenant.description for tenant in list_tenants(session)] == ["Customer support"]


@pytest.mark.parametrize("name", ["", "Support", "a b", "../x", "-x", "x-", "サポート", "a" * 49, "a/b", "a\n"])
def test_bad_names_are_refused(catalog: Catalog, name: str) -> None:
    with catalog.session() as session, pytest.raises(InvalidInput, match="lower-case"):
        create_tenant(session, name)


def test_an_unknown_tenant_names_the_known_ones(catalog: Catalog) -> None:
    with catalog.session() as session:
        create_tenant(session, "people")
        create_tenant(session, "support")
        with pytest.raises(NotFound, match="known: people, support"):
            get_tenant(session, "suport")


def test_a_key_leads_to_its_tenant(catalog: Catalog) -> None:
    with catalog.session() as session:
        support, people = create_tenant(session, "support"), create_tenant(session, "people")
        secrets = {tenant.id: issue_key(session, tenant, PEPPER)[1] for tenant in (support, people)}
    with catalog.session() as session:
        for tenant_id, secret in secrets.items():
            assert authenticate(session, PEPPER, secret)["tenant_id"] == tenant_id


def test_the_secret_is_not_kept(catalog: Catalog) -> None:
    with catalog.session() as session:
        key, secret = issue_key(session, create_tenant(session, "support"), PEPPER)
    with catalog.session() as session:
        row = session.get_one(ApiKey, key.id)
        kept = " ".join(str(getattr(row, column.name)) for column in ApiKey.__table__.columns)
    assert secret not in kept
    assert secret.startswith(row.prefix)
    assert secret[len(row.prefix) :] not in kept


def test_wrong_keys_are_all_refused_in_the_same_words(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant = create_tenant(session, "support")
        _, good = issue_key(session, tenant, PEPPER)
        revoked_key, revoked = issue_key(session, tenant, PEPPER)
        revoke_key(session, tenant, revoked_key.id)
        _, expired = issue_key(session, tenant, PEPPER, expires_at=time.time() - 1)
    last = "A" if good[-1] != "A" else "B"
    wrong = [
        "",
        "ryo-",
        "sk-other",
        good[:-1],
        good[:-1] + last,
        good + "x",
        revoked,
        expired,
        "ryo-" + "x" * 300,
        "ryo-é",
    ]
    words = set()
    with catalog.session() as session:
        assert authenticate(session, PEPPER, good)["tenant_name"] == "support"
        for secret in wrong:
            with pytest.raises(AuthenticationFailed) as raised:
                authenticate(session, PEPPER, secret)
            words.add(str(raised.value))
        with pytest.raises(AuthenticationFailed):
            authenticate(session, b"another pepper", good)
    assert len(words) == 1


def test_a_key_not_yet_expired_works(catalog: Catalog) -> None:
    with catalog.session() as session:
        _, secret = issue_key(session, create_tenant(session, "support"), PEPPER, expires_at=time.time() + 60)
        authenticate(session, PEPPER, secret)


def test_revoking_twice_keeps_the_first_time_and_other_tenants_keys_are_not_found(catalog: Catalog) -> None:
    with catalog.session() as session:
        support, people = create_tenant(session, "support"), create_tenant(session, "people")
        key, _ = issue_key(session, support, PEPPER)
        with pytest.raises(NotFound):
            revoke_key(session, people, key.id)
        first = revoke_key(session, support, key.prefix).revoked_at
        assert revoke_key(session, support, key.id).revoked_at == first
        assert [row.id for row in list_keys(session, support)] == [key.id]
        assert list_keys(session, people) == []


def test_setting_the_same_prompt_again_is_free(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant = create_tenant(session, "support")
        with pytest.raises(NotFound, match="ryorin prompt set"):
            current_prompt(session, tenant)
        first = set_prompt(session, tenant, Prompt("Be brief.")).id
        second = set_prompt(session, tenant, Prompt("Be long.")).id
        assert set_prompt(session, tenant, Prompt("Be brief.")).id == first != second
        assert Prompt.from_spec(current_prompt(session, tenant).spec) == Prompt("Be brief.")


def test_the_pepper_is_made_once_and_is_private(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pepper = settings.pepper()
    assert settings.pepper() == pepper
    assert len(pepper) == 64
    assert stat.S_IMODE(os.stat(settings.home / "pepper").st_mode) == 0o600
    assert [path.name for path in settings.home.iterdir()] == ["pepper"]
    monkeypatch.setenv("RYORIN_PEPPER", "shared")
    assert settings.pepper() == b"shared"


def test_the_home_is_found_in_a_parent(tmp_path: Path) -> None:
    (tmp_path / ".ryorin").mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert find_home(tmp_path / "a" / "b") == tmp_path / ".ryorin"
