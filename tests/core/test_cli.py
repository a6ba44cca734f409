"""The command line: tenants, keys, prompts and releases as a user or the demo drives them, and its refusals."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from model_folders import base_folder

from ryorin.catalog import Catalog
from ryorin.catalog.database import HEAD
from ryorin.catalog.keys import authenticate
from ryorin.catalog.tables import Adapter, VectorStore
from ryorin.catalog.tenants import current_prompt, get_tenant
from ryorin.digests import new_id
from ryorin.models.install import add_folder
from ryorin.models.registry import DEFAULT_BASE, get_base
from ryorin.release import Retrieval
from ryorin.settings import load_settings

Cli = Callable[..., Any]

HEAVY = [
    "torch",
    "transformers",
    "vllm",
    "trl",
    "peft",
    "faiss",
    "litellm",
    "numpy",
    "sqlalchemy",
    "alembic",
    "llama_index",
    "rich",
    "openai",
]


def asked(cli: Cli, *words: object) -> Any:
    """A command's JSON; it must succeed."""
    ran = cli(*words, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


@pytest.fixture
def base(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A base model that stands in for the bundled one; returns its digest."""
    from ryorin.models import registry

    add_folder(load_settings(), "tiny", base_folder(tmp_path / "model"), "base", lambda _: None)
    monkeypatch.setattr(registry, "DEFAULT_BASE", "tiny")
    return get_base(load_settings(), "tiny").digest


@pytest.fixture
def support(cli: Cli, migrated: Path, tmp_path: Path) -> str:
    """A tenant with a prompt."""
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("You answer.")
    assert cli("tenant", "create", "support").code == 0
    assert cli("prompt", "set", prompt, "--tenant", "support").code == 0
    return "support"


def insert_adapter(
    catalog: Catalog, base_digest: str, prompt_digest: str | None = None, tenant: str = "support"
) -> str:
    """An adapter row, for the current prompt unless another is named; returns its name."""
    digest = new_id("") * 2
    with catalog.session() as session:
        owner = get_tenant(session, tenant)
        row = Adapter(
            id=new_id("ada_"),
            tenant_id=owner.id,
            name=f"{tenant}-{digest[:12]}",
            digest=digest,
            base_digest=base_digest,
            prompt_digest=prompt_digest or current_prompt(session, owner).digest,
            rank=8,
            manifest={},
        )
        session.add(row)
        return row.name


def insert_store(catalog: Catalog, name: str) -> None:
    with catalog.session() as session:
        tenant = get_tenant(session, "support")
        session.add(
            VectorStore(
                id=new_id("vs_"), tenant_id=tenant.id, name=name, embedder="e", embedder_digest="e", dimensions=4
            )
        )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['ryorin', '--help']\n"
        "from ryorin.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "HEAVY []"
    assert "release" in out


@pytest.mark.parametrize("command", ["models", "tenant", "key", "prompt", "release", "db"])
def test_every_help_has_an_example(cli: Cli, command: str) -> None:
    import importlib

    group = getattr(importlib.import_module(f"ryorin.commands.{command}"), command)
    for words in [[command], *([command, name] for name in group.commands)]:
        ran = cli(*words, "--help")
        assert ran.code == 0
        assert re.search(r"Example:\n +(RYORIN_\S+ )?ryorin " + command, ran.out), words
    for name, subcommand in group.commands.items():
        assert any("--json" in parameter.opts for parameter in subcommand.params), f"{command} {name}"


def test_tenants(cli: Cli, catalog: Catalog) -> None:
    created = asked(cli, "tenant", "create", "support", "--description", "カスタマーサポート")
    assert asked(cli, "tenant", "list") == [created]
    assert (created["name"], created["description"]) == ("support", "カスタマーサポート")
    assert "カスタマーサポート" in cli("tenant", "list").out


def test_keys(cli: Cli, catalog: Catalog, support: str) -> None:
    created = asked(cli, "key", "create", "--tenant", support, "--label", "frontend", "--expires-days", "2")
    secret = created.pop("key")
    assert created["expires_at"] == pytest.approx(time.time() + 2 * 86_400, abs=60)
    with catalog.session() as session:
        assert authenticate(session, catalog.settings.pepper(), secret)["key_id"] == created["id"]
    assert created["scopes"] == ["chat"]
    assert asked(cli, "key", "list", "--tenant", support) == [created]
    rotated = asked(cli, "key", "rotate", created["prefix"], "--tenant", support, "--grace-hours", "1")
    assert (rotated["replaces"], rotated["scopes"], rotated["key"]) == (created["id"], ["chat"], rotated["key"])
    assert asked(cli, "key", "list", "--tenant", support)[0]["expires_at"] < time.time() + 3601
    limits = ("tenant", "limits", support, "--key", rotated["id"])
    assert asked(cli, *limits, "--tokens-per-month", "1000")["tokens_per_month"] == 1000
    assert asked(cli, *limits, "--tokens-per-month", "none")["tokens_per_month"] is None
    assert "no limit" in cli("tenant", "limits", support).out
    for wrong in ("-1", "many", "99999999999999999999"):
        assert cli("tenant", "limits", support, "--requests-per-minute", wrong).code == 2
    revoked = asked(cli, "key", "revoke", created["id"], "--tenant", support)
    assert revoked["revoked_at"] is not None
    assert secret not in cli("key", "list", "--tenant", support).out
    plain = cli("key", "create", "--tenant", support)
    assert plain.out.startswith("ryo-")  # the secret alone on standard output, so that it can be piped
    assert plain.out.count("\n") == 1


def test_prompts(cli: Cli, catalog: Catalog, support: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"system": "Answer as JSON.", "answer_schema": {"type": "object"}}))
    shown = asked(cli, "prompt", "set", path, "--tenant", support)
    assert asked(cli, "prompt", "show", "--tenant", support) == shown
    assert (shown["system"], shown["answer_schema"]) == ("Answer as JSON.", {"type": "object"})
    assert "Answer as JSON." in cli("prompt", "show", "--tenant", support).out


def test_a_release_takes_what_fits_by_default(cli: Cli, catalog: Catalog, support: str, base: str) -> None:
    first = asked(cli, "release", "create", "--tenant", support)
    assert (first["version"], first["adapter"], first["stores"], first["live"]) == (1, None, [], False)
    assert first["retrieval"] == asdict(Retrieval(top_k=0))
    assert (first["base"], first["note"]) == (base, "")
    insert_store(catalog, "handbook")
    insert_store(catalog, "faq")
    insert_adapter(catalog, base)
    newest = insert_adapter(catalog, base)
    insert_adapter(catalog, base, prompt_digest="0" * 64)
    insert_adapter(catalog, "0" * 64)
    second = asked(cli, "release", "create", "--tenant", support, "--promote", "--note", "all of it")
    assert (second["adapter"], second["stores"], second["live"]) == (newest, ["faq", "handbook"], True)
    assert second["retrieval"] == asdict(Retrieval(top_k=3))
    assert [row["live"] for row in asked(cli, "release", "list", "--tenant", support)] == [True, False]
    assert asked(cli, "release", "show", "2", "--tenant", support) == second


def test_a_release_pins_its_reranker(cli: Cli, catalog: Catalog, support: str, base: str, tmp_path: Path) -> None:
    insert_store(catalog, "handbook")
    create = ("release", "create", "--tenant", support, "--reranker", tmp_path / "cross")
    refused = cli(*create)
    assert refused.code == 2 and "no cross-encoder at" in refused.err
    (tmp_path / "cross").mkdir()
    (tmp_path / "cross" / "config.json").write_text("{}")
    (tmp_path / "cross" / "model.safetensors").write_bytes(b"1")
    digests = []
    for weights in (b"1", b"2", b"2"):
        (tmp_path / "cross" / "model.safetensors").write_bytes(weights)
        made = asked(cli, *create)
        assert made["retrieval"]["reranker"] == str(tmp_path / "cross")
        digests.append(made["retrieval"]["reranker_digest"])
    assert digests[0] != digests[1] == digests[2]


def test_a_release_takes_what_is_named(cli: Cli, catalog: Catalog, support: str, base: str) -> None:
    insert_store(catalog, "handbook")
    insert_store(catalog, "faq")
    older = insert_adapter(catalog, base)
    insert_adapter(catalog, base)
    other = insert_adapter(catalog, base, prompt_digest="0" * 64)
    create = ("release", "create", "--tenant", support)
    how = ("--top-k", "5", "--score-floor", "0.8", "--mode", "lexical", "--context", "section")
    named = asked(cli, *create, "--adapter", older, "--store", "faq", *how)
    assert (named["adapter"], named["stores"]) == (older, ["faq"])
    assert named["retrieval"] == asdict(Retrieval(top_k=5, score_floor=0.8, mode="lexical", context="section"))
    bare = asked(cli, *create, "--adapter", "none", "--no-store")
    assert (bare["adapter"], bare["stores"], bare["retrieval"]["top_k"]) == (None, [], 0)
    off = asked(cli, *create, "--adapter", "none", "--top-k", "0")
    assert (off["stores"], off["retrieval"]["top_k"]) == (["faq", "handbook"], 0)
    mismatched = asked(cli, *create, "--adapter", other, "--allow-prompt-mismatch")
    assert mismatched["adapter"] == other


def test_promoting_says_what_was_live_and_how_to_undo_it(cli: Cli, catalog: Catalog, support: str, base: str) -> None:
    for _ in range(2):
        asked(cli, "release", "create", "--tenant", support)
    assert "before: nothing" in cli("release", "promote", "1", "--tenant", support).err
    said = cli("release", "promote", "2", "--tenant", support).err
    assert "before: 1" in said
    assert "ryorin release rollback --tenant support" in said
    assert "live already" in cli("release", "promote", "2", "--tenant", support).err
    back = asked(cli, "release", "rollback", "--tenant", support)
    assert back == {"tenant": "support", "live": 1, "previous": 2, "changed": True}
    assert "live" in cli("release", "list", "--tenant", support).out


def test_database_upgrade(cli: Cli, catalog: Catalog) -> None:
    assert asked(cli, "db", "upgrade")["version"] == HEAD


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tenant", "create", "Bad Name"], "lower-case"),
        (["tenant", "create", "support"], "exists already"),
        (["key", "list", "--tenant", "suport"], "known: support"),
        (["key", "revoke", "key_none", "--tenant", "support"], "no key 'key_none'"),
        (["key", "create", "--tenant", "support", "--expires-days", "-1"], "--expires-days"),
        (["key", "create", "--tenant", "support", "--expires-days", "nan"], "--expires-days"),
        (["key", "list", "--tenant", "bad\udcff"], "cannot be written in utf-8"),
        (["key", "list"], "Missing option '--tenant'"),
        (["prompt", "set", "/none.json", "--tenant", "support"], "cannot be read"),
        (["release", "create", "--tenant", "support", "--adapter", "nope"], "no adapter 'nope'"),
        (["release", "create", "--tenant", "support", "--adapter", "latest"], "ryorin train sft"),
        (["release", "create", "--tenant", "support", "--store", "nope"], "no vector store 'nope'"),
        (["release", "create", "--tenant", "support", "--store", "x", "--no-store"], "exclude each other"),
        (["release", "create", "--tenant", "support", "--base", "nope"], "no base model 'nope'"),
        (["release", "create", "--tenant", "support", "--top-k", "3"], "no vector store"),
        (["release", "create", "--tenant", "support", "--top-k", "99"], "0 (no retrieval) to 50"),
        (["release", "create", "--tenant", "support", "--score-floor", "2"], "-1 to 1"),
        (["release", "promote", "9", "--tenant", "support"], "no release 9"),
        (["release", "rollback", "--tenant", "support"], "no earlier live release"),
        (["release", "show", "9" * 30, "--tenant", "support"], "no release 999"),
        (["release", "show", "x", "--tenant", "support"], "not a valid integer"),
        (["nonsense"], "No such command"),
    ],
)
def test_refusals(cli: Cli, support: str, base: str, words: list[str], said: str) -> None:
    ran = cli(*words)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


def test_an_adapter_for_another_prompt_is_refused(cli: Cli, catalog: Catalog, support: str, base: str) -> None:
    other = insert_adapter(catalog, base, prompt_digest="0" * 64)
    ran = cli("release", "create", "--tenant", support, "--adapter", other)
    assert (ran.code, "--allow-prompt-mismatch" in ran.err) == (2, True)


def test_without_the_base_model_the_next_step_is_named(cli: Cli, support: str) -> None:
    ran = cli("release", "create", "--tenant", support)
    assert (ran.code, f"ryorin models pull {DEFAULT_BASE}" in ran.err) == (2, True)


def test_a_tenant_without_a_prompt(cli: Cli) -> None:
    cli("tenant", "create", "bare")
    assert "ryorin prompt set" in cli("release", "create", "--tenant", "bare").err
    assert "ryorin prompt set" in cli("prompt", "show", "--tenant", "bare").err


def test_an_unreachable_database(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RYORIN_DATABASE_URL", "postgresql://ryorin:hidden@127.0.0.1:1/none")
    ran = cli("tenant", "list")
    assert (ran.code, "cannot be opened" in ran.err, "hidden" in ran.err) == (2, True, False)


def test_a_database_that_fails_in_the_middle(cli: Cli, catalog: Catalog, support: str) -> None:
    """PostgreSQL ends the very connection that inserts, SQLite refuses the row: one line, and nothing half done."""
    if catalog.engine.dialect.name == "postgresql":
        body = "BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END"
        statements = (
            f"CREATE OR REPLACE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$",
            "CREATE TRIGGER die BEFORE INSERT ON api_keys FOR EACH ROW EXECUTE FUNCTION die()",
        )
        on_table = " ON api_keys"
    else:
        statements = ("CREATE TRIGGER die BEFORE INSERT ON api_keys BEGIN SELECT RAISE(ABORT, 'disk is full'); END",)
        on_table = ""
    with catalog.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    try:
        ran = cli("key", "create", "--tenant", support, "--json")
    finally:
        with catalog.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP TRIGGER die{on_table}")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert ran.err.startswith("error: the catalog's database failed: ")
    assert asked(cli, "key", "list", "--tenant", support) == []


def test_a_home_that_cannot_be_one(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RYORIN_HOME", str(tmp_path / "file"))
    ran = cli("tenant", "list")
    assert (ran.code, ran.err) == (2, f"error: {tmp_path / 'file'}: File exists\n")


def test_ctrl_c_is_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from ryorin.commands import common

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "opened_catalog", interrupted)
    ran = cli("tenant", "list")
    assert (ran.code, ran.err.split()) == (130, ["interrupted"])
