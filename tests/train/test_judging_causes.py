"""Causes of failures, what prompts held, and what is said by heart; on both databases."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ryorin.blobs import blob_path, keep_blob
from ryorin.catalog import Catalog
from ryorin.catalog.tables import Adapter, Dataset, Document, Passage, RequestLog, VectorStore
from ryorin.catalog.tenants import create_tenant
from ryorin.digests import new_id
from ryorin_index.evaluate import Place
from ryorin_index.texts import write_text
from ryorin_train.judging.asking import passages_in_log
from ryorin_train.judging.attribution import Given, Needed, attribute, given_passages, needed_passages
from ryorin_train.judging.cases import Case, Expected, Rubric
from ryorin_train.judging.grade import Answer, Grader
from ryorin_train.judging.memory import TrainedOn, repeated_strings, trained_on, was_trained_on

PARTS = ["Returns take 30 days.", "Keep the box.", "送料は無料です。", "Gifts cannot be returned."]


@pytest.fixture
def store(catalog: Catalog) -> VectorStore:
    """A store of handbook.md with four passages; the first two and the last two are a section each."""
    with catalog.session() as session:
        tenant = create_tenant(session, "support")
        made = VectorStore(
            id=new_id("vs_"), tenant_id=tenant.id, name="h", embedder="e5", embedder_digest="e5", dimensions=4
        )
        session.add(made)
        session.flush()
        text = "\n".join(PARTS)
        document = Document(
            id="doc_1",
            tenant_id=tenant.id,
            store_id=made.id,
            source="/docs/handbook.md",
            filename="handbook.md",
            title="Handbook",
            media_type="text/markdown",
            sha256="0" * 64,
        )
        session.add(document)
        session.flush()
        write_text(session, document.id, text)
        for number, part in enumerate(PARTS):
            start = text.index(part)
            session.add(
                Passage(
                    id=number + 1,
                    tenant_id=tenant.id,
                    store_id=made.id,
                    document_id="doc_1",
                    generation=1,
                    ordinal=number,
                    text=part,
                    sha256="0" * 64,
                    heading=f"Handbook > {number // 2}",
                    start=start,
                    end=start + len(part),
                    tokens=5,
                )
            )
    return made


def case(expected: Expected, question: str = "Q", **more: Any) -> Case:
    return Case(1, ({"role": "user", "content": question},), expected, **more)


def facts(*words: str) -> tuple[tuple[str, ...], ...]:
    return tuple((word,) for word in words)


def test_what_a_case_needs(catalog: Catalog, store: VectorStore) -> None:
    handbook = Place("handbook.md")
    cases = {
        Expected(facts=facts("30 days"), documents=(handbook,)): Needed((frozenset({1}),)),
        Expected(documents=(handbook,)): Needed((frozenset({1, 2, 3, 4}),)),
        Expected(documents=(Place("handbook.md", heading="1"),)): Needed((frozenset({3, 4}),)),
        Expected(documents=(Place("/docs/handbook.md", quote="送料は 無料"),)): Needed((frozenset({3}),)),
        Expected(facts=facts("無料")): Needed((frozenset({3}),)),
        Expected(facts=facts("45 days"), documents=(handbook,)): Needed(
            (frozenset({1, 2, 3, 4}),), ("handbook.md does not state '45 days'",)
        ),
        # A fact that is worked out stands in no document: the quote says where it comes from.
        Expected(facts=facts("one month"), documents=(Place("handbook.md", quote="30 days"),)): Needed(
            (frozenset({1}),)
        ),
        Expected(documents=(Place("other.md"),)): Needed((), ("other.md is not in the store",)),
        Expected(documents=(Place("handbook.md", heading="9"),)): Needed(
            (), ("handbook.md is in the store without the place that the case names",)
        ),
        Expected(facts=facts("45 days")): Needed((), ("no passage states '45 days'",)),
        Expected(decision="NO", refuse=True): Needed(),
        Expected(decision="NO"): Needed(known=False),
    }
    with catalog.session() as session:
        found = needed_passages(session, store.tenant_id, [store.id], [case(expected) for expected in cases])
        assert found == list(cases.values())
        # Another tenant, or no store: there is nothing.
        first = case(next(iter(cases)))
        missing = (("handbook.md is not in the store",),) * 2
        assert (
            tuple(
                needed_passages(session, tenant, stores, [first])[0].missing
                for tenant, stores in (("ten_other", [store.id]), (store.tenant_id, []))
            )
            == missing
        )


@pytest.mark.parametrize(
    ("context", "ids", "text"),
    [
        ("passage", {1}, PARTS[0]),
        ("section", {1, 2}, "\n".join(PARTS[:2])),
        ("neighbours", {1, 2}, "\n".join(PARTS[:2])),
    ],
)
def test_what_a_prompt_held(catalog: Catalog, store: VectorStore, context: str, ids: set[int], text: str) -> None:
    with catalog.session() as session:
        assert given_passages(session, store.tenant_id, [1, 99], context) == Given(frozenset(ids), text)
        assert given_passages(session, "ten_other", [1], context).ids == frozenset()


def test_the_causes() -> None:
    grader = Grader(Rubric(), None)
    asked = case(Expected(facts=facts("30 days")))
    right, wrong = grader.grade(asked, Answer("30 days")), grader.grade(asked, Answer("40 days"))
    two = Needed((frozenset({1, 2}), frozenset({3})))

    def cause(needed: Needed, given: Given | None) -> str | None:
        found = attribute(wrong, needed, given)
        return found and found.cause

    assert attribute(right, two, None) is None
    assert cause(two, Given(frozenset({2, 3}), "")) == "behaviour"
    assert cause(two, Given(frozenset({1, 2}), "")) == "retrieval"
    assert cause(two, None) == "unclear"
    assert cause(Needed((), ("gone",)), Given(frozenset({1}), "")) == "knowledge"
    assert cause(Needed(), None) == "behaviour"
    assert cause(Needed(known=False), Given(frozenset({1}), "")) == "unclear"


def test_the_log_is_read_for_the_tenant_alone(catalog: Catalog, store: VectorStore) -> None:
    from ryorin.catalog.tenants import set_prompt
    from ryorin.prompt import Prompt
    from ryorin.release import create_release

    with catalog.session() as session:
        other = create_tenant(session, "people")
        for tenant_id, name in ((store.tenant_id, "req_1"), (other.id, "req_2")):
            owner = session.get_one(type(other), tenant_id)
            release = create_release(
                session, owner, base_digest="b" * 64, prompt=set_prompt(session, owner, Prompt("S"))
            )
            passages = [{"passage_id": 3, "score": 1.0}, {"passage_id": 1, "score": 0.5}]
            session.add(
                RequestLog(
                    id=name,
                    tenant_id=tenant_id,
                    release_id=release.id,
                    messages=[],
                    answer="",
                    passages=passages,
                    status="ok",
                )
            )
    with catalog.session() as session:
        wanted = ["req_1", "req_2", *(f"req_none{n}" for n in range(1200))]
        assert passages_in_log(session, store.tenant_id, wanted) == {"req_1": (3, 1)}


def test_training_data_is_followed_to_where_an_adapter_came_from(catalog: Catalog) -> None:
    chat = {"messages": [{"role": "user", "content": "返品は?"}, {"role": "assistant", "content": "できます。"}]}
    pair = {"prompt": [{"role": "user", "content": "Why?"}], "chosen": [{"role": "assistant", "content": "So."}],
            "rejected": [{"role": "assistant", "content": "Never."}]}  # fmt: skip
    with catalog.session() as session:
        tenant = create_tenant(session, "support")
        start = None
        for name, row in (("support-1", chat), ("support-2", pair), ("support-3", None)):
            dataset = None
            if row:
                digest = keep_blob(catalog.settings.blobs_dir, (json.dumps(row) + "\n").encode())
                dataset = Dataset(id=new_id("ds_"), tenant_id=tenant.id, filename="a", digest=digest, rows=1)
                session.add(dataset)
                session.flush()
            session.add(
                Adapter(
                    id=new_id("ad_"),
                    tenant_id=tenant.id,
                    name=name,
                    digest=name,
                    base_digest="b" * 64,
                    prompt_digest="p" * 64,
                    dataset_id=dataset.id if dataset else None,
                    rank=8,
                    manifest={"start_from": {"name": start} if start else None},
                )
            )
            session.flush()
            start = name
        data = trained_on(session, catalog.settings, "support-3")
    with catalog.session() as session:  # a damaged dataset is told, and no reason not to judge
        blob_path(catalog.settings.blobs_dir, digest).write_bytes(b"{}")
        damaged = trained_on(session, catalog.settings, "support-3")
    assert (damaged.unknown, damaged.answers) == (("support-3", "support-2"), ("できます。",))
    assert (data.datasets, data.unknown, data.answers) == (2, ("support-3",), ("So.", "できます。"))
    assert was_trained_on(case(Expected(refuse=True), "返品は？"), data)
    assert was_trained_on(case(Expected(refuse=True), "How?", paraphrases=("why",)), data)
    assert not was_trained_on(case(Expected(refuse=True), "返品は可能?"), data)


def test_what_is_said_by_heart() -> None:
    learned = "The warranty of an iron kettle lasts exactly seven years from the day of purchase."
    japanese = "南部鉄器の保証期間は購入日から数えてちょうど七年間と定められております。"
    house = "Thank you very much for writing to the support desk."
    data = TrainedOn(1, (), frozenset(), (f"{learned} {house}", json.dumps({"reason": japanese}), *[house] * 40))
    answers = [
        learned,
        learned,
        f"No. {house}",
        japanese,
        "The warranty of an iron kettle is short.",
        f"Well: {learned}",
    ]
    prompts = [
        "",
        f"[1] {learned}",
        "",
        "質問",
        "",
        "It lasts exactly seven years from the day of purchase, says a note.",
    ]
    found = repeated_strings(answers, prompts, data)
    assert found[0] == [learned.lower().rstrip(".")]
    assert found[1] == [] and found[2] == [] and found[4] == []
    assert found[3] == [japanese.rstrip("。")]
    assert found[5] and found[5] != found[0]  # what the prompt held does not count, the rest does
