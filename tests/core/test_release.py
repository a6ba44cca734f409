"""Releases: what may be pinned together, promoting, rolling back, and two operators at once; on both databases."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Adapter, Promotion, Prompt, Release, Tenant, VectorStore
from ryorin.catalog.tenants import create_tenant, current_prompt, get_tenant, keep_prompt, set_prompt
from ryorin.digests import digest_of, new_id
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin.prompt import Prompt as PromptValue
from ryorin.release import (
    Retrieval,
    create_release,
    ensure_release,
    get_release,
    list_releases,
    live_release,
    promote,
    record_evidence,
    rollback,
)

BASE = "b" * 64


def make_tenant(session: Session, name: str = "support") -> tuple[Tenant, Prompt]:
    tenant = create_tenant(session, name)
    return tenant, set_prompt(session, tenant, PromptValue("You answer."))


def make_store(session: Session, tenant: Tenant, name: str = "handbook", embedder: str = "e5") -> VectorStore:
    store = VectorStore(
        id=new_id("vs_"), tenant_id=tenant.id, name=name, embedder=embedder, embedder_digest=embedder, dimensions=4
    )
    session.add(store)
    session.flush()
    return store


def make_adapter(session: Session, tenant: Tenant, prompt_digest: str, base_digest: str = BASE) -> Adapter:
    digest = new_id("") * 2
    adapter = Adapter(
        id=new_id("ada_"),
        tenant_id=tenant.id,
        name=f"{tenant.name}-{digest[:12]}",
        digest=digest,
        base_digest=base_digest,
        prompt_digest=prompt_digest,
        rank=8,
        manifest={},
    )
    session.add(adapter)
    session.flush()
    return adapter


def live_version(catalog: Catalog, name: str = "support") -> int:
    with catalog.session() as session:
        return live_release(session, get_tenant(session, name)).version


def test_a_release_pins_everything(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant, prompt = make_tenant(session)
        store = make_store(session, tenant)
        adapter = make_adapter(session, tenant, prompt.digest)
        release = create_release(
            session, tenant, base_digest=BASE, prompt=prompt, adapter=adapter, stores=[store], note="first"
        )
    with catalog.session() as session:
        row = session.get_one(Release, release.id)
        assert (row.version, row.adapter_id, row.prompt_id, row.store_ids) == (1, adapter.id, prompt.id, [store.id])
        assert row.retrieval["top_k"] == 3 and row.retrieval["mode"] == "hybrid"
        assert Retrieval.stored(row.retrieval) == Retrieval()
        with pytest.raises(NotFound, match="no live release"):
            live_release(session, get_tenant(session, "support"))


def test_the_digest_says_what_answers_not_when(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant, prompt = make_tenant(session)
        parts: dict[str, Any] = {"base_digest": BASE, "prompt": prompt, "stores": [make_store(session, tenant)]}
        first = create_release(session, tenant, **parts)
        second = create_release(session, tenant, **parts, note="the same again")
        third = create_release(session, tenant, **parts, retrieval=Retrieval(top_k=2))
        assert first.digest == second.digest != third.digest
        assert [release.version for release in list_releases(session, tenant)] == [3, 2, 1]


def test_an_adapter_must_fit(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant, prompt = make_tenant(session)
        wrong_base = make_adapter(session, tenant, prompt.digest, base_digest="c" * 64)
        wrong_prompt = make_adapter(session, tenant, "d" * 64)
        with pytest.raises(Conflict, match="trained on base"):
            create_release(session, tenant, base_digest=BASE, prompt=prompt, adapter=wrong_base)
        with pytest.raises(Conflict, match="trained for prompt"):
            create_release(session, tenant, base_digest=BASE, prompt=prompt, adapter=wrong_prompt)
        release = create_release(
            session, tenant, base_digest=BASE, prompt=prompt, adapter=wrong_prompt, allow_prompt_mismatch=True
        )
        assert release.adapter_id == wrong_prompt.id


def test_nothing_of_another_tenant_gets_in(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant, prompt = make_tenant(session)
        other, other_prompt = make_tenant(session, "people")
        parts: dict[str, Any] = {"base_digest": BASE, "prompt": prompt}
        foreign: list[dict[str, Any]] = [
            {"prompt": other_prompt},
            {"stores": [make_store(session, other)]},
            {"adapter": make_adapter(session, other, prompt.digest)},
        ]
        for part in foreign:
            with pytest.raises(InvalidInput, match="does not belong"):
                create_release(session, tenant, **(parts | part))
        release = create_release(session, other, base_digest=BASE, prompt=other_prompt)
        with pytest.raises(InvalidInput, match="does not belong"):
            promote(session, tenant, release)
        with pytest.raises(NotFound):
            get_release(session, tenant, release.version)


def test_retrieval_needs_stores_of_one_embedder(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant, prompt = make_tenant(session)
        with pytest.raises(InvalidInput, match="no vector store"):
            create_release(session, tenant, base_digest=BASE, prompt=prompt, retrieval=Retrieval(top_k=3))
        stores = [make_store(session, tenant), make_store(session, tenant, "faq", embedder="minilm")]
        with pytest.raises(InvalidInput, match="share one embedder"):
            create_release(session, tenant, base_digest=BASE, prompt=prompt, stores=stores)


@pytest.mark.parametrize(
    "values",
    [
        {"top_k": -1},
        {"top_k": 51},
        {"score_floor": 1.5},
        {"score_floor": float("nan")},
        {"mode": "vectors"},
        {"mmr": 2},
        {"dense_weight": -1},
        {"dense_weight": 0, "lexical_weight": 0},
        {"context": "page"},
        {"filters": {"type": "like"}},
        {"lexical_weight": float("nan")},
        {"query": "all"},
        {"order": "random"},
    ],
)
def test_retrieval_limits(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Retrieval(**values)


def test_a_release_from_before_there_were_modes_searches_by_vectors() -> None:
    assert Retrieval.stored({"top_k": 2, "score_floor": 0.5}) == Retrieval(top_k=2, score_floor=0.5, mode="dense")


def test_fields_that_came_later_leave_the_digests_of_earlier_releases_alone() -> None:
    assert not {"query", "order"} & set(Retrieval().spec())
    assert digest_of(Retrieval().spec()) == "ba57276ddcd17cc9c87eb0a09541585eb182ad20be48ab2d98e6f21857fb75d9"
    later = Retrieval(query="rewritten", order="shared")
    assert Retrieval.stored(later.spec()) == later


def make_releases(catalog: Catalog, count: int) -> None:
    with catalog.session() as session:
        tenant, prompt = make_tenant(session)
        for _ in range(count):
            create_release(session, tenant, base_digest=BASE, prompt=prompt)


def switch(catalog: Catalog, version: int | None) -> None:
    """Promote a version, or roll back when it is None."""
    with catalog.session() as session:
        tenant = get_tenant(session, "support")
        if version is None:
            rollback(session, tenant)
        else:
            promote(session, tenant, get_release(session, tenant, version))


@pytest.mark.parametrize(
    ("steps", "live"),
    [
        ([1], 1),
        ([1, 2], 2),
        ([1, 2, None], 1),
        ([1, 2, 3, None], 2),
        ([1, 2, 3, None, None], 1),
        ([1, 2, 3, None, 3, None], 2),
        ([1, 2, 3, None, 4, None, None], 1),
        ([1, 2, 1, None, None], 1),
        ([1, 2, 2, 2, None], 1),  # promoting what is live already is no step
    ],
)
def test_rolling_back_walks_back_what_was_live(catalog: Catalog, steps: list[int | None], live: int) -> None:
    make_releases(catalog, 4)
    for step in steps:
        switch(catalog, step)
    assert live_version(catalog) == live


@pytest.mark.parametrize("steps", [[], [1], [1, 1], [1, 2, None]])
def test_rolling_back_further_than_the_first_is_refused(catalog: Catalog, steps: list[int | None]) -> None:
    make_releases(catalog, 2)
    for step in steps:
        switch(catalog, step)
    with pytest.raises(Conflict, match="no earlier live release"):
        switch(catalog, None)


def test_a_rolled_back_transaction_changes_nothing(catalog: Catalog) -> None:
    make_releases(catalog, 2)
    switch(catalog, 1)
    with pytest.raises(RuntimeError), catalog.session() as session:
        tenant = get_tenant(session, "support")
        promote(session, tenant, get_release(session, tenant, 2))
        raise RuntimeError
    assert live_version(catalog) == 1


def in_threads(count: int, work: Any) -> None:
    barrier = threading.Barrier(count, timeout=20)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_releases_created_at_once_get_versions_without_gaps(catalog: Catalog) -> None:
    with catalog.session() as session:
        make_tenant(session)

    def create(_: int) -> None:
        for _turn in range(5):
            with catalog.session() as session:
                tenant = get_tenant(session, "support")
                prompt = session.get_one(Prompt, tenant.prompt_id)
                create_release(session, tenant, base_digest=BASE, prompt=prompt)

    in_threads(4, create)
    with catalog.session() as session:
        versions = [release.version for release in list_releases(session, get_tenant(session, "support"))]
    assert versions == list(range(20, 0, -1))


def test_promotions_at_once_form_one_chain(catalog: Catalog) -> None:
    """Each line's previous release is what the line before it made live; otherwise rolling back would lose its way."""
    make_releases(catalog, 6)
    in_threads(4, lambda number: [switch(catalog, version) for version in (number + 1, number + 2, number + 3)])
    with catalog.session() as session:
        history = session.scalars(select(Promotion).order_by(Promotion.id)).all()
        tenant = get_tenant(session, "support")
    assert [line.previous_release_id for line in history] == [None, *(line.release_id for line in history[:-1])]
    assert tenant.live_release_id == history[-1].release_id


def test_a_release_of_the_same_parts_is_found_again(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant, prompt = make_tenant(session)
        store = make_store(session, tenant)
        adapter = make_adapter(session, tenant, "0" * 64)
        parts: dict[str, Any] = {
            "base_digest": BASE,
            "prompt": prompt,
            "stores": [store],
            "retrieval": Retrieval(top_k=2),
        }
        live = create_release(session, tenant, **parts)
        promote(session, tenant, live)
        assert ensure_release(session, tenant, adapter=None, note="evaluation", **parts) is live
        tuned = ensure_release(session, tenant, adapter=adapter, note="evaluation", **parts)  # of another prompt
        assert tuned.version == 2 and ensure_release(session, tenant, adapter=adapter, note="other", **parts) is tuned
        other = ensure_release(session, tenant, adapter=None, note="", **parts | {"retrieval": Retrieval(top_k=3)})
        assert other.version == 3 and tenant.live_release_id == live.id


def test_evidence_says_something_of_a_release_and_is_no_part_of_it(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant, prompt = make_tenant(session)
        release = create_release(session, tenant, base_digest=BASE, prompt=prompt)
        digest = release.digest
        assert record_evidence(session, release, {"report": "1", "figures": {"right": {"mean": 0.5}}}) is None
    with catalog.session() as session:
        release = get_release(session, get_tenant(session, "support"), 1)
        before = record_evidence(session, release, {"report": "2"})
        assert before == {"report": "1", "figures": {"right": {"mean": 0.5}}} and release.digest == digest


def test_a_prompt_that_is_only_kept_changes_nothing_that_is_used(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant, prompt = make_tenant(session)
        kept = keep_prompt(session, tenant, PromptValue(""))
        assert current_prompt(session, tenant) is prompt
        assert keep_prompt(session, tenant, PromptValue("")) is kept
