"""`ryorin apply`: a file read strictly, what differs shown, made so once, and nothing touched that it does not name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from word_embedder import fake_embedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Adapter, Document, Promotion, Prompt, Release, Source, Tenant, VectorStore
from ryorin.catalog.tenants import create_tenant, current_prompt, get_tenant
from ryorin.digests import new_id
from ryorin.errors import InvalidInput
from ryorin.models import registry
from ryorin.models.registry import BaseModel
from ryorin.release import live_release, promote, record_evidence
from ryorin_index.declared.file import read_declared
from ryorin_index.store import create_store

BASE = "b" * 64
SQLITE = pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)
FILE = """\
tenants:
  support:
    description: Customer support
    prompt: You answer the customers.
    stores:
      handbook:
        sources:
          - uri: documents
            include: ["*.md"]
            attributes: {department: support}
    release:
      retrieval: {top_k: 5, score_floor: 0.5}
  people:
    prompt: {file: people.json}
    release: {}
"""


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    base = BaseModel("tiny", BASE, Path("/nowhere"), "test")
    monkeypatch.setattr(registry, "get_base", lambda *_: base)
    monkeypatch.setattr(registry, "get_embedder", lambda *_: fake_embedder())


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    (tmp_path / "documents").mkdir()
    (tmp_path / "people.json").write_text(json.dumps({"system": "You answer staff.", "answer_schema": None}))

    def write(text: str) -> Path:
        path = tmp_path / "tenants.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def apply(cli: Any, catalog: Catalog, write: Callable[[str], Path]) -> Callable[..., Any]:
    return lambda text, *words: cli("apply", "-f", write(text), *words)


def rows(catalog: Catalog, table: type) -> list[Any]:
    with catalog.session() as session:
        return list(session.scalars(select(table)))


def everything(catalog: Catalog) -> list[Any]:
    """All rows that apply may write, for comparing."""
    tables = (Tenant, Prompt, VectorStore, Source, Release, Promotion)
    columns = [[column.key for column in table.__table__.columns] for table in tables]
    return [
        sorted(repr([getattr(row, name) for name in names]) for row in rows(catalog, table))
        for table, names in zip(tables, columns, strict=True)
    ]


def insert_adapter(catalog: Catalog, tenant_name: str = "support", prompt_digest: str | None = None) -> str:
    digest = new_id("") * 2
    with catalog.session() as session:
        tenant = get_tenant(session, tenant_name)
        adapter = Adapter(
            id=new_id("ada_"),
            tenant_id=tenant.id,
            name=f"{tenant_name}-{digest[:12]}",
            digest=digest,
            base_digest=BASE,
            prompt_digest=prompt_digest or current_prompt(session, tenant).digest,
            rank=8,
            manifest={},
        )
        session.add(adapter)
        return adapter.name


def live(catalog: Catalog, name: str = "support") -> Release:
    with catalog.session() as session:
        return live_release(session, get_tenant(session, name))


def test_from_nothing_to_what_the_file_says_and_the_second_time_nothing(
    catalog: Catalog, apply, tmp_path: Path
) -> None:
    planned = apply(FILE, "--dry-run")
    assert planned.code == 1 and "+support:" in planned.out and "would make release 1 live" in planned.err
    assert not rows(catalog, Tenant)
    done = apply(FILE)
    assert done.code == 0, done.err
    assert "support: create the store handbook with embedder words: done" in done.err
    assert "ryorin index sync" in done.err
    release = live(catalog)
    assert (release.version, release.base_digest, release.retrieval["top_k"]) == (1, BASE, 5)
    (source,) = rows(catalog, Source)
    assert (source.uri, source.kind) == (str(tmp_path / "documents"), "folder")
    assert source.options == {"include": ["*.md"], "attributes": {"department": "support"}}
    (store,) = rows(catalog, VectorStore)
    assert release.store_ids == [store.id] and live(catalog, "people").store_ids == []
    with catalog.session() as session:
        assert current_prompt(session, get_tenant(session, "people")).spec["system"] == "You answer staff."
        assert get_tenant(session, "support").description == "Customer support"
    before = everything(catalog)
    again = apply(FILE)
    assert again.code == 0 and "nothing to do" in again.err
    assert apply(FILE, "--dry-run").code == 0
    assert everything(catalog) == before


def test_what_drifted_is_shown_as_a_diff_and_put_right(catalog: Catalog, apply) -> None:
    assert apply(FILE).code == 0
    with catalog.session() as session:
        tenant = get_tenant(session, "support")
        tenant.description = "Changed by hand"
    drifted = apply(FILE.replace("top_k: 5", "top_k: 7"), "--dry-run")
    assert drifted.code == 1
    lines = drifted.out.splitlines()
    assert "-  description: Changed by hand" in lines and "+  description: Customer support" in lines
    assert "-      top_k: 5" in lines and "+      top_k: 7" in lines
    assert live(catalog).version == 1
    assert apply(FILE.replace("top_k: 5", "top_k: 7")).code == 0
    assert (live(catalog).version, live(catalog).retrieval["top_k"]) == (2, 7)
    assert apply(FILE).code == 0  # back: the first release is there and is made live again
    assert live(catalog).version == 1 and len(rows(catalog, Release)) == 3


@SQLITE
def test_a_plan_in_json(catalog: Catalog, apply) -> None:
    planned = apply(FILE, "--dry-run", "--json")
    support, people = json.loads(planned.out)
    assert planned.code == 1 and support["drift"] and people["tenant"] == "people"
    assert support["steps"] == [
        "create the tenant",
        *[step for step in support["steps"] if step.startswith("set the prompt ")],
        "create the store handbook with embedder words",
        *[step for step in support["steps"] if step.startswith("add the source ")],
        "create release 1",
        "make release 1 live",
    ]
    assert len(support["steps"]) == 6
    apply(FILE)
    assert [plan["drift"] for plan in json.loads(apply(FILE, "--json").out)] == [False, False]


@SQLITE
def test_a_new_prompt_makes_a_new_release(catalog: Catalog, apply) -> None:
    apply(FILE)
    assert apply(FILE.replace("the customers", "briefly")).code == 0
    assert live(catalog).version == 2
    with catalog.session() as session:
        assert session.get_one(Prompt, live(catalog).prompt_id).spec["system"] == "You answer briefly."


@SQLITE
def test_adapters_by_name_and_the_latest(catalog: Catalog, apply) -> None:
    apply(FILE)
    first = insert_adapter(catalog)
    assert apply(FILE).code == 0 and live(catalog).version == 1  # none is meant when none is named
    named = FILE.replace("    release:\n", f"    release:\n      adapter: {first}\n")
    assert apply(named).code == 0 and live(catalog).version == 2
    second = insert_adapter(catalog)
    latest = FILE.replace("    release:\n", "    release:\n      adapter: latest\n")
    planned = apply(latest, "--dry-run")
    assert f"-    adapter: {first}" in planned.out and f"+    adapter: {second}" in planned.out
    other = insert_adapter(catalog, prompt_digest="0" * 64)
    refused = apply(FILE.replace("    release:\n", f"    release:\n      adapter: {other}\n"))
    assert refused.code == 2 and "was trained for prompt" in refused.err and live(catalog).version == 2
    unknown = apply(FILE.replace("    release:\n", "    release:\n      adapter: support-ffffffffffff\n"), "--dry-run")
    assert unknown.code == 2 and "has no adapter" in unknown.err


def test_canary_and_shadow_come_and_go(catalog: Catalog, apply) -> None:
    apply(FILE)
    adapter = insert_adapter(catalog)
    beside = FILE.replace(
        "  people:",
        f"    canary: {{share: 10%, adapter: {adapter}, retrieval: {{top_k: 2}}}}\n"
        "    shadow: {prompt: Be brief., share: 0.5}\n  people:",
    )
    done = apply(beside)
    assert done.code == 0, done.err
    with catalog.session() as session:
        tenant = get_tenant(session, "support")
        canary, shadow = (session.get_one(Release, tenant.canary_release_id), tenant.shadow_release_id)
        assert (tenant.canary_share, tenant.shadow_share, live(catalog).version) == (0.1, 0.5, 1)
        assert session.get_one(Adapter, canary.adapter_id).name == adapter
        assert (canary.retrieval["top_k"], canary.retrieval["score_floor"]) == (2, 0.5)
        prompt = session.get_one(Prompt, session.get_one(Release, shadow).prompt_id)
        assert prompt.spec["system"] == "Be brief."
        assert current_prompt(session, tenant).spec["system"] == "You answer the customers."
    assert "nothing to do" in apply(beside).err
    left = apply(FILE)
    assert "the canary is not in the file and left alone" in left.err
    assert apply(beside.replace("10%", "20%"), "--dry-run").code == 1
    promoted = FILE.replace(
        "      retrieval: {top_k: 5, score_floor: 0.5}",
        f"      adapter: {adapter}\n      retrieval: {{top_k: 2, score_floor: 0.5}}\n    shadow: off",
    )
    done = apply(promoted)
    assert done.code == 0, done.err
    with catalog.session() as session:
        tenant = get_tenant(session, "support")
        assert (tenant.live_release_id, tenant.canary_release_id) == (canary.id, None)
        assert tenant.shadow_release_id is None
    assert "nothing to do" in apply(promoted).err


@SQLITE
def test_a_canary_by_its_version(catalog: Catalog, apply) -> None:
    apply(FILE)
    apply(FILE.replace("top_k: 5", "top_k: 7"))
    by_version = FILE.replace("top_k: 5", "top_k: 7").replace(
        "  people:", "    canary: {version: 1, share: 0.25}\n  people:"
    )
    assert apply(by_version).code == 0
    with catalog.session() as session:
        assert get_tenant(session, "support").canary_share == 0.25
    wrong = apply(by_version.replace("version: 1", "version: 9"), "--dry-run")
    assert wrong.code == 2 and "no release 9" in wrong.err
    itself = apply(by_version.replace("version: 1", "version: 2"))
    assert itself.code == 2 and "is live; a canary must be another" in itself.err


@SQLITE
def test_of_releases_with_the_same_parts_the_live_one_stays(catalog: Catalog, apply, cli) -> None:
    apply(FILE)
    with catalog.session() as session:
        tenant = get_tenant(session, "support")
        first = live_release(session, tenant)
        twin = Release(
            **{c.key: getattr(first, c.key) for c in Release.__table__.columns} | {"id": "rel_2", "version": 2}
        )
        session.add(twin)
        session.flush()
        promote(session, tenant, twin)
        record_evidence(session, twin, {"figures": {}})
    assert "nothing to do" in apply(FILE).err and live(catalog).version == 2


@SQLITE
def test_what_the_file_does_not_name_is_left_alone(catalog: Catalog, apply) -> None:
    with catalog.session() as session:
        tenant = create_tenant(session, "support", "By hand")
        create_store(session, tenant, "other", fake_embedder())
        create_tenant(session, "third")
    done = apply("tenants:\n  support:\n    stores: {handbook: {}}\n")
    assert done.code == 0 and "store other is not in the file and left alone" in done.err
    with catalog.session() as session:
        assert get_tenant(session, "support").description == "By hand"
    assert {store.name for store in rows(catalog, VectorStore)} == {"other", "handbook"}
    assert {tenant.name for tenant in rows(catalog, Tenant)} == {"support", "third"}


@SQLITE
def test_nothing_is_deleted_unless_the_file_says_so(catalog: Catalog, apply, tmp_path: Path) -> None:
    apply(FILE)
    (store,), (source,) = rows(catalog, VectorStore), rows(catalog, Source)
    with catalog.session() as session:
        for n in range(2):
            session.add(
                Document(
                    id=f"doc_{n}",
                    tenant_id=store.tenant_id,
                    store_id=store.id,
                    source_id=source.id,
                    source=f"{n}.md",
                    filename=f"{n}.md",
                    title="",
                    media_type="text/markdown",
                    sha256="0" * 64,
                )
            )
    without = FILE.replace(
        '          - uri: documents\n            include: ["*.md"]\n            attributes: {department: support}\n',
        "          []\n",
    ).replace("sources:\n          []", "sources: []")
    assert apply(without).code == 0 and len(rows(catalog, Source)) == 1
    removed = FILE.replace('            include: ["*.md"]\n', "            remove: keep-documents\n")
    planned = apply(removed, "--dry-run")
    assert planned.code == 1 and "its documents stay" in planned.err
    assert f"-      - {tmp_path / 'documents'}:" in planned.out
    assert len(rows(catalog, Source)) == 1
    assert apply(removed).code == 0
    assert not rows(catalog, Source) and len(rows(catalog, Document)) == 2
    assert "nothing to do" in apply(removed).err
    gone = "tenants:\n  support:\n    stores: {handbook: {remove: true}}\n"
    refused = apply(gone, "--dry-run")
    assert refused.code == 2 and "live release" in refused.err and rows(catalog, VectorStore)
    apply("tenants:\n  support:\n    stores: {other: {}}\n")
    done = apply(gone.replace("handbook", "other"))
    assert done.code == 0 and "delete the store other and its documents: done" in done.err
    assert [store.name for store in rows(catalog, VectorStore)] == ["handbook"]


@SQLITE
def test_what_cannot_be_changed_in_place_is_refused_with_the_way(catalog: Catalog, apply) -> None:
    apply(FILE)
    for change, words in (
        (('include: ["*.md"]', 'include: ["*.txt"]'), "ryorin index source remove"),
        (("handbook:\n", "handbook:\n        embedder: e5\n"), "ryorin index embedder handbook e5"),
        (("handbook:\n", "handbook:\n        max_tokens: 200\n"), "said when it is made"),
    ):
        refused = apply(FILE.replace(*change), "--dry-run")
        assert refused.code == 2 and words in refused.err
    assert apply(FILE, "--dry-run").code == 0


@SQLITE
def test_a_tenant_that_fails_leaves_those_before_done_and_itself_as_it_was(catalog: Catalog, apply) -> None:
    broken = FILE.replace("    release: {}\n", "    release: {adapter: people-ffffffffffff}\n")
    failed = apply(broken)
    assert failed.code == 2 and "has no adapter" in failed.err and "support: make release 1 live: done" in failed.err
    assert [tenant.name for tenant in rows(catalog, Tenant)] == ["support"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "tenants:\n  support:\n    relese: {}\n",
            "line 3: tenants.support.relese: unknown field; did you mean 'release'?",
        ),
        ("tenant: {}\n", "line 1: tenant: unknown field; did you mean 'tenants'?"),
        (
            "tenants:\n  support:\n    release:\n      retrieval:\n        topk: 3\n",
            "line 5: tenants.support.release.retrieval.topk",
        ),
        (
            "tenants:\n  support:\n    stores:\n      a:\n        sources:\n          - url: x\n",
            "line 6: tenants.support.stores.a.sources.0.url: unknown field; did you mean 'uri'?",
        ),
        (
            "tenants:\n  support:\n    stores:\n      a:\n        sources:\n          - kind: git\n",
            "sources.0.uri: Field required",
        ),
        (
            "tenants:\n  support:\n    release: {retrieval: {top_k: '3'}}\n",
            "line 3: tenants.support.release.retrieval.top_k: Input should be a valid integer",
        ),
        ("tenants:\n  support:\n    release: {retrieval: {mode: fast}}\n", "'hybrid', 'dense' or 'lexical'"),
        (
            "tenants:\n  support:\n    description: 3\n",
            "line 3: tenants.support.description: Input should be a valid string",
        ),
        ("tenants:\n  support:\n    release: {}\n    canary: {version: 2}\n", "canary needs a share"),
        (
            "tenants:\n  support:\n    release: {}\n    canary: {version: 2, share: 0%}\n",
            "line 4: tenants.support.canary.share: share is '0%'",
        ),
        (
            "tenants:\n  support:\n    release: {}\n    canary: {version: 2, adapter: x, share: 1%}\n",
            "either a version or",
        ),
        ("tenants:\n  support:\n    canary: {adapter: x, share: 1%}\n", "needs a release to differ from"),
        ("tenants:\n  support:\n    shadow: {share: 1%}\n", "give a version"),
        (
            "tenants:\n  support:\n    prompt: {file: a, system: b}\n",
            "line 3: tenants.support.prompt: give either file or system",
        ),
        (
            "tenants:\n  support:\n    description: a\n    description: b\n",
            "line 4: 'description' stands in line 3 already",
        ),
        ("tenants:\n  Support Desk: {}\n", "line 2: tenant name 'Support Desk'"),
        ("tenants:\n  support: [\n", "not YAML"),
        ("tenants: 3\n", "line 1: tenants: Input should be a valid dictionary"),
        ("- a\n", "line 1: the file: "),
        ("", "is empty"),
        (
            "tenants:\n  support: {stores: {a: {sources: [{uri: x, remove: yes}]}}}\n",
            "'keep-documents' or 'delete-documents'",
        ),
        ("a: &a [*a]\n", "line 1: a: unknown field"),
        ("\x00", "not YAML"),
    ],
)
def test_what_the_file_must_not_say(write: Callable[[str], Path], text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_declared(write(text))
    assert said in caught.value.message and "tenants.yaml" in caught.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_declared(tmp_path / "none.yaml")
