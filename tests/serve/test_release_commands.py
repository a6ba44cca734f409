"""`ryorin release` beside a gateway that runs: promote, rollback, canary, shadow, status, diff, swap-adapter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_house import House, built

from ryorin.catalog.tenants import get_tenant
from ryorin.release import get_release, record_evidence
from ryorin_serve.options import ServeOptions

QUESTION = [{"role": "user", "content": "How long does a refund take?"}]
ADAPTER, OTHER = "support-0123456789ab", "support-ba9876543210"


@pytest.fixture
def house(tmp_path: Path, cli, empty_sqlite: Path, monkeypatch) -> Iterator[House]:
    """A house whose catalog the command line uses."""
    with built(tmp_path / "house", empty_sqlite, ServeOptions(max_model_len=400)) as house:
        monkeypatch.setenv("RYORIN_HOME", str(tmp_path / "house"))
        yield house


@pytest.fixture
def release(house: House, cli) -> Callable[..., Any]:
    return lambda *words: cli("release", *words, "--tenant", "support")


def asked(ran: Any) -> Any:
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def ask(house: House, **more: Any) -> str:
    house.client().chat.completions.create(model="support", messages=QUESTION, **more)
    return house.engine.requests[-1]["model"]


def candidate(house: House, adapter: str | None = ADAPTER, **more: Any) -> int:
    if adapter and adapter not in house.adapter_digests:
        house.adapter_folder(adapter)
    return house.release("support", adapter=adapter, promote=False, **more)


def damage(house: House) -> None:
    (house.catalog.settings.adapters_dir / ADAPTER / "adapter_model.safetensors").write_bytes(b"altered")


def test_promoting_and_rolling_back_wait_for_the_gateway(house: House, release):
    version = candidate(house)
    said = release("promote", version)
    assert said.code == 0 and "release 2 of tenant support is live; before: 1" in said.err
    assert house.engine.loads == [ADAPTER]
    assert "live again; before: 2" in release("rollback").err
    damage(house)
    refused = release("promote", version)
    assert refused.code == 2 and "not what was trained" in refused.err and "Traceback" not in refused.err
    assert asked(release("promote", version, "--wait", "0", "--json")) == {
        "tenant": "support",
        "live": 2,
        "previous": 1,
        "changed": True,
    }


def test_a_release_that_is_made_and_cannot_be_loaded_is_there_and_not_live(house: House, release, monkeypatch):
    from ryorin.models import registry

    monkeypatch.setattr(registry, "get_base", lambda *_: house.base)
    candidate(house)
    damage(house)
    refused = release("create", "--adapter", ADAPTER, "--promote")
    assert refused.code == 2 and "release 3 of tenant 'support' was not made live" in refused.err
    assert [row["traffic"] for row in asked(release("list", "--json"))] == [None, None, "live"]


def test_swapping_the_adapter_is_one_command(house: House, release):
    house.adapter_folder(ADAPTER)
    house.adapter_folder(OTHER, rank=8)
    house.release("support", adapter=ADAPTER)
    house.release("support", adapter=OTHER, system="Another prompt.", promote=False)
    assert ask(house) == ADAPTER
    assert "trained for prompt" in release("swap-adapter", OTHER).err
    assert asked(release("swap-adapter", OTHER, "--allow-prompt-mismatch", "--note", "n", "--json"))["live"] == 4
    assert ask(house) == OTHER
    one, other = (asked(release("show", version, "--json")) for version in (2, 4))
    assert {name for name in one if one[name] != other[name]} == {
        *("version", "live", "traffic", "adapter", "digest", "note", "created_at", "id")
    }
    assert "live already" in release("swap-adapter", OTHER, "--allow-prompt-mismatch").err
    assert asked(release("swap-adapter", ADAPTER, "--json"))["live"] == 2  # that release is there already
    assert asked(release("swap-adapter", "none", "--json"))["live"] == 1
    assert ask(house) == "ryorin-base"
    assert "known: support-" in release("swap-adapter", "support-ffffffffffff").err


def test_an_adapter_that_cannot_be_loaded_is_not_swapped_in(house: House, release):
    candidate(house)
    damage(house)
    refused = release("swap-adapter", ADAPTER)
    assert refused.code == 2 and "nothing has changed" in refused.err
    assert ask(house) == "ryorin-base"


def test_a_canary_from_its_share_to_its_end(house: House, release):
    version = candidate(house)
    said = release("canary", version, "--share", "50%")
    assert "release 2 answers 50% of tenant support" in said.err
    askers = [user for inside in (True, False) for user in house.askers(version, 0.5, inside=inside)]
    models = [ask(house, user=user) for user in askers]
    assert models == [ADAPTER, ADAPTER, "ryorin-base", "ryorin-base"]
    assert "canary 50%" in release("list").out
    house.logs(4)
    live, canary = asked(release("status", "--json"))
    assert (live["part"], live["requests"]) == ("live", models.count("ryorin-base"))
    assert (canary["part"], canary["share"], canary["requests"]) == ("canary", 0.5, models.count(ADAPTER))
    table = release("status").out
    assert "canary 50%" in table and "median ms" in table
    assert "already" in release("canary", version, "--share", "0.5").err
    release("promote", version)
    assert "no canary" in release("canary", "--off").err
    assert {ask(house, user=user) for user in askers} == {ADAPTER}
    assert "canary (before)" in release("status").out


def test_a_canary_that_is_called_off(house: House, release):
    release("canary", candidate(house), "--share", "99%")
    assert asked(release("canary", "--off", "--json")) == {
        "tenant": "support",
        "canary": None,
        "share": None,
        "previous": 2,
        "changed": True,
    }
    assert {ask(house, user=f"user {n}") for n in range(4)} == {"ryorin-base"}


def test_a_shadow_answers_for_the_log(house: House, release):
    version = candidate(house)
    assert "answers once more, unseen, 100%" in release("shadow", version).err
    house.client().chat.completions.create(model="support", messages=QUESTION)
    house.logs(2)
    assert [(row["part"], row["requests"]) for row in asked(release("status", "--json"))] == [
        ("live", 1),
        ("shadow", 1),
    ]
    assert asked(release("shadow", "--off", "--json"))["previous"] == version


def test_refusals(house: House, release):
    candidate(house)
    for words, said in (
        (["canary", "2"], "Give VERSION and --share"),
        (["canary", "2", "--off"], "Give VERSION and --share"),
        (["canary"], "Give VERSION and --share"),
        (["canary", "2", "--share", "0%"], "write a percentage"),
        (["canary", "2", "--share", "100%"], "promote the release instead"),
        (["canary", "1", "--share", "10%"], "release 1 of tenant 'support' is live"),
        (["canary", "9", "--share", "10%"], "no release 9"),
        (["shadow"], "Give VERSION, or --off alone"),
        (["shadow", "--off", "--share", "10%"], "Give VERSION, or --off alone"),
        (["shadow", "1"], "is live"),
        (["diff", "1", "9"], "no release 9"),
        (["promote", "2", "--wait", "-1"], "--wait"),
        (["status", "--hours", "0"], "--hours"),
    ):
        ran = release(*words)
        assert (ran.code, ran.out) == (2, "") and said in ran.err, words


def test_what_differs_between_two_releases(house: House, release):
    candidate(house, system="You are the support desk.\nAnswer briefly.", top_k=0)
    found = asked(release("diff", "1", "2", "--json"))
    assert {row["part"]: (row["first"], row["second"]) for row in found["parts"]} == {
        "adapter": (None, ADAPTER),
        "stores": (["handbook"], []),
        "retrieval.top_k": (3, 0),
    }
    assert found["prompt"].splitlines()[-1] == "+Answer briefly." and not found["same"] and not found["figures"]
    said = release("diff", "1", "2")
    assert ADAPTER in said.out and "+Answer briefly." in said.out and "neither keeps an evaluation" in said.err
    with house.catalog.session() as session:
        tenant = get_tenant(session, "support")
        figures = {"right": {"mean": 0.8, "low": 0.7, "high": 0.9, "cases": 40}}
        record_evidence(session, get_release(session, tenant, 2), {"report": "d", "figures": figures})
    assert asked(release("diff", "1", "2", "--json"))["figures"] == [
        {"name": "right", "first": None, "second": figures["right"]}
    ]
    assert "0.800 [0.700, 0.900] of 40" in release("diff", "1", "2").out
    same = release("diff", "1", "1")
    assert "answer from the same parts" in same.err and same.out == ""


def test_a_file_moves_all_traffic_of_a_tenant_or_none(house: House, cli, monkeypatch, tmp_path: Path):
    from ryorin.models import registry

    monkeypatch.setattr(registry, "get_base", lambda *_: house.base)
    house.adapter_folder(ADAPTER)
    house.adapter_folder(OTHER, rank=8)
    for adapter in (ADAPTER, OTHER):
        house.release("support", adapter=adapter, promote=False)
    path = tmp_path / "tenants.yaml"
    path.write_text(
        "tenants:\n  support:\n    stores: {handbook: {}}\n"
        f"    release: {{adapter: {OTHER}}}\n    canary: {{share: 10%, adapter: {ADAPTER}}}\n"
    )
    damage(house)
    refused = cli("apply", "-f", path)
    assert refused.code == 2 and "not what was trained" in refused.err
    assert [row["traffic"] for row in asked(cli("release", "list", "--tenant", "support", "--json"))] == [
        *(None, None, "live")
    ]
    (house.catalog.settings.adapters_dir / ADAPTER / "adapter_model.safetensors").write_bytes(b"weights")
    done = cli("apply", "-f", path)
    assert done.code == 0 and "make release 2 the canary with 10%: done" in done.err
    assert [row["traffic"] for row in asked(cli("release", "list", "--tenant", "support", "--json"))] == [
        *("live", "canary", None)
    ]
    assert sorted(house.engine.loads)[-1] == OTHER and ADAPTER in house.engine.loads
    assert "nothing to do" in cli("apply", "-f", path).err
