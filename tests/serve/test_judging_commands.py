"""`ryorin train evaluate` and `ryorin diagnose` by command, through the real gateway over a scripted engine."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scripted_house import BASE, House
from sqlalchemy import select

from ryorin.blobs import keep_blob
from ryorin.catalog.tables import Adapter, ApiKey, Dataset, Document, Passage, Release, Tenant, VectorStore
from ryorin.digests import new_id
from ryorin.prompt import Prompt
from ryorin.release import create_release, get_release
from ryorin_index.search import Hit
from ryorin_index.texts import write_text
from ryorin_serve.options import ServeOptions
from ryorin_train.judging.ability import general_questions

TEXTS = {
    "returns.md": "Unopened goods can be returned within 30 days of delivery.",
    "shipping.md": "Delivery takes 2 days in Japan.",
    "gifts.md": "Gift wrapping costs 300 yen.",
    "henpin.md": "未開封の商品は30日以内に返品できます。",
}
ADAPTER = "support-aaaaaaaaaaaa"
MEMORISED = "Our founder opened the first small shop in Kyoto in the year 1921"
ABILITY = {"What is the largest ocean on Earth?": "The Pacific."}


@pytest.fixture
def options() -> ServeOptions:
    return ServeOptions(max_model_len=3000, max_answer_tokens=100)


@pytest.fixture
def home(house: House, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command line works on the house's home."""
    folder = house.catalog.settings.home
    monkeypatch.setenv("RYORIN_HOME", str(folder))
    monkeypatch.delenv("RYORIN_DATABASE_URL", raising=False)
    return folder


@pytest.fixture
def desk(house: House) -> House:
    """
    The support tenant with documents that the shelf finds, an adapter with its training data, and two releases.

    Release 2 is the base model with documents, release 3 (live) has the adapter too. The shelf always finds the same
    two passages: those of returns.md and henpin.md.
    """
    settings = house.catalog.settings
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (
            ("Was I trained?", "Yes."),
            ("Who founded it?", f"{MEMORISED}."),
            *((f"Question {n}?", "Thank you for asking the support desk of our company today.") for n in range(30)),
        )
    ]
    digest = keep_blob(settings.blobs_dir, "".join(json.dumps(row) + "\n" for row in rows).encode())
    with house.catalog.session() as session:
        tenant = session.get_one(Tenant, house.ids["support"])
        store = session.scalars(select(VectorStore).where(VectorStore.tenant_id == tenant.id)).one()
        hits = []
        for name, text in TEXTS.items():
            document = Document(
                id=new_id("doc_"),
                tenant_id=tenant.id,
                store_id=store.id,
                source=f"/docs/{name}",
                filename=name,
                title=name,
                media_type="text/markdown",
                sha256="0" * 64,
            )
            passage = Passage(
                tenant_id=tenant.id,
                store_id=store.id,
                document_id=document.id,
                generation=1,
                ordinal=0,
                text=text,
                sha256="0" * 64,
                start=0,
                end=len(text),
            )
            session.add(document)
            session.flush()
            write_text(session, document.id, text)
            session.add(passage)
            session.flush()
            hits.append(Hit(passage.id, store.id, document.id, name, name, text, 0.9, 0, len(text), None))
        dataset = Dataset(id=new_id("ds_"), tenant_id=tenant.id, filename="a.jsonl", digest=digest, rows=len(rows))
        session.add(dataset)
    house.shelf.hits[house.ids["support"]] = [hits[0], hits[3], hits[1], hits[2]]
    house.release("support")
    house.adapter_folder(ADAPTER)
    house.release("support", adapter=ADAPTER)
    with house.catalog.session() as session:
        session.scalars(select(Adapter)).one().dataset_id = dataset.id
        for row in session.scalars(select(Release).where(Release.tenant_id == house.ids["support"])):
            row.retrieval = row.retrieval | {"top_k": 2}
    return house


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def tuned(body: dict[str, Any]) -> bool:
    return body["model"] == ADAPTER


def letter(decision: str, text: str) -> str:
    return f"{text}\nDecision: {decision}"


RUBRIC = {
    "rubric": {"format": {"pattern": r"[\s\S]+\nDecision: (YES|NO)"}, "decision": {"pattern": "Decision: (YES|NO)"}}
}
RETURNS = {"decision": "YES", "facts": ["30 days"], "documents": ["returns.md"]}
CASES = [
    RUBRIC,
    {
        "question": "Can I return it after 20 days?",
        "expected": RETURNS,
        "tags": ["plain"],
        "paraphrases": ["Return, 20 days?"],
    },
    {
        "question": "Can I return it after 29 days?",
        "expected": RETURNS,
        "tags": ["boundary"],
        "paraphrases": ["29 days: return?"],
    },
    {
        "question": "20日後に返品できますか。",
        "expected": {"decision": "YES", "facts": ["30日以内"], "documents": ["henpin.md"]},
    },
    {"question": "Who is your king?", "expected": {"decision": "NO", "refuse": True, "documents": []}},
    {"question": "Who founded you?", "expected": {"decision": "NO", "refuse": True}},
    {"question": "Was I trained?", "expected": {"decision": "YES"}},
    {"question": "Question 1?", "split": "train", "expected": {"decision": "YES"}},
]


class Desk:
    """Scripted answers: right with the adapter; without it the decision is missing, and every second time another."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()

    def __call__(self, body: dict[str, Any]) -> str:
        question, model = asked(body), body["model"]
        self.asked[model, question] += 1
        if question in ABILITY:
            return ABILITY[question]
        if "king" in question:
            return (
                letter("NO", "This is not answered in the documents.")
                if tuned(body)
                else letter("NO", "King Arthur [2]. ")
            )
        if "founded" in question:
            return letter(
                "NO", f"I cannot answer that. {MEMORISED}. Thank you for asking the support desk of our company today."
            )
        if "trained" in question or "Question" in question:
            return letter("YES", "Yes.")
        if not tuned(body):
            return "You may return it within 30 days [1]." if self.asked[model, question] % 2 else "It depends."
        if "返品" in question:
            return letter("YES", "30日以内に返品できます [2]。")
        # Asked in other words, one of two paraphrases gets another decision.
        return letter("NO" if question.startswith("29 days") else "YES", "Within 30 days [1].")


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def figure(report: Any, name: str, which: str = "figures") -> Any:
    return next(row for row in report[which] if row["name"] == name)


def test_an_evaluation_against_the_incumbent(desk: House, cli: Any, tmp_path: Path) -> None:
    script = desk.engine.script = Desk()
    cases = written(tmp_path / "cases.jsonl", CASES)
    words = ("train", "evaluate", "--tenant", "support", "--cases", cases, "--against", 2, "--url", desk.url)
    ran = cli(*words, "--samples", 4, "--evidence", "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)

    # The case that stood in the training data counts as one of training.
    assert (report["cases"]["held_out"], report["cases"]["train"]) == (5, 2)
    warnings = {row["code"]: row for row in report["warnings"]}
    assert warnings["trained_on"]["lines"] == [7]
    assert warnings["memorised"]["lines"] == [6] and MEMORISED.lower() in warnings["memorised"]["text"]
    assert "thank you" not in warnings["memorised"]["text"]  # a house phrase
    assert set(warnings) == {"trained_on", "memorised", "few_cases"}

    assert {
        row["name"]: row["mean"] for row in report["figures"] if row["kind"] == "share" and row["name"] != "hedging"
    } == {
        "right": 1,
        "format": 1,
        "decision": 1,
        "facts": 1,
        "citations": 1,
        "refusal": 1,
        "doubled": 0,
        "refusal_precision": 1,
        "refusal_recall": 1,
    }
    assert figure(report, "right")["low"] == pytest.approx(0.025 ** (1 / 5))  # five of five prove little
    assert figure(report, "consistency")["mean"] == 1 > figure(report, "consistency")["low"]
    assert (figure(report, "paraphrases")["mean"], figure(report, "paraphrases")["cases"]) == (0.5, 2)
    assert figure(report, "polite")["mean"] == 1 and figure(report, "polite")["cases"] == 1
    assert report["confusion"] == {"expected": ["NO", "YES"], "said": ["NO", "YES"], "counts": [[2, 0], [0, 3]]}

    # The incumbent: without decisions, and it answers what it should refuse.
    assert figure(report, "right", "against_figures")["mean"] == pytest.approx(1 / 5)
    assert figure(report, "refusal_recall", "against_figures")["mean"] == 0.5
    # Of four answers two are of each kind: two of six pairs are the same; refusals and the rest never change.
    assert figure(report, "consistency", "against_figures")["mean"] == pytest.approx((3 * 2 / 6 + 2) / 5)
    compared = figure(report, "right", "comparison")
    assert (compared["wins"], compared["losses"], compared["p"]) == (4, 0, 0.125)
    assert (
        report["ability"]["base"]["mean"]
        == report["ability"]["tuned"]["mean"]
        == pytest.approx(2 / len(general_questions()))  # what is scripted answers two of them
    )
    assert [row["name"] for row in report["groups"]] == ["en", "ja", "boundary", "plain"]

    page = Path(report["page"]).read_text()
    assert "Against release 2" in page and "<script" not in page and not re.search(r"(?:src|href)=", page)
    with desk.catalog.session() as session:
        tenant = session.get_one(Tenant, desk.ids["support"])
        evidence = get_release(session, tenant, 3).evidence or {}
        assert tenant.live_release_id == get_release(session, tenant, 3).id  # what was made for it is not promoted
        assert all(key.revoked_at for key in session.scalars(select(ApiKey).where(ApiKey.label == "evaluation")))
    assert evidence["report"] == report["digest"] and evidence["figures"]["right"]["mean"] == 1

    # Nothing changed, so nothing is asked, and the report is the same.
    before = sum(script.asked.values())
    again = cli(*words, "--samples", 4)
    assert again.code == 0, again.err
    assert sum(script.asked.values()) == before
    assert report["digest"][:12] in again.err and "all that is expected right" in again.out
    # A case more: it alone is asked, of both releases, with four samples each.
    written(cases, [*CASES, {"question": "One more?", "expected": {"decision": "YES"}}])
    assert cli(*words, "--samples", 4, "--json").code == 0
    assert sum(script.asked.values()) == before + 2 * (1 + 4)


def test_a_document_that_changes_is_asked_about_again(desk: House, cli: Any, tmp_path: Path) -> None:
    script = desk.engine.script = Desk()
    cases = written(tmp_path / "cases.jsonl", CASES[:2])
    words = (
        "train",
        "evaluate",
        "--tenant",
        "support",
        "--cases",
        cases,
        "--url",
        desk.url,
        "--samples",
        0,
        "--no-general",
    )
    assert cli(*words, "--json").code == 0
    before = sum(script.asked.values())
    with desk.catalog.session() as session:
        session.scalars(select(VectorStore).where(VectorStore.tenant_id == desk.ids["support"])).one().generation += 1
    assert cli(*words, "--json").code == 0
    assert sum(script.asked.values()) == 2 * before


def test_what_was_answered_is_kept_when_the_server_fails(
    desk: House, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ryorin_train.judging import asking

    monkeypatch.setattr(asking, "RETRIES", 0)
    script = Desk()

    def failing(body: dict[str, Any]) -> str:
        if "king" in asked(body):
            desk.engine.refuse = (500, "out of memory")
        return script(body)

    desk.engine.script = failing
    cases = written(tmp_path / "cases.jsonl", CASES)
    words = ("train", "evaluate", "--tenant", "support", "--cases", cases, "--url", desk.url)
    words = (*words, "--samples", 0, "--no-general", "--concurrency", 1, "--json")
    ran = cli(*words)
    assert ran.code == 2 and "failed with status" in ran.err and "goes on from there" in ran.err, ran.err
    desk.engine.refuse, desk.engine.script = None, script
    before = dict(script.asked)
    kept = next((desk.catalog.settings.home / "evaluations").rglob("*.jsonl"))
    kept.write_bytes(kept.read_bytes() + b'\n{"key": "cut off')  # as a crash leaves it
    ran = cli(*words)
    assert ran.code == 0, ran.err
    assert len(before) == 4 and all(script.asked[key] == 1 for key in before)


def test_what_cannot_be_asked_is_said(desk: House, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ryorin_train.judging import asking

    monkeypatch.setattr(asking, "RETRIES", 0)
    desk.engine.script = Desk()
    cases = written(tmp_path / "cases.jsonl", CASES)
    words = ("train", "evaluate", "--cases", cases, "--no-general", "--samples", 0)
    monkeypatch.setenv("WRONG", "ryo-wrong")
    for more, reason in (
        (("--tenant", "support", "--url", "http://127.0.0.1:9"), "no server answers at http://127.0.0.1:9/v1"),
        (("--tenant", "support", "--url", "127.0.0.1:9"), "it begins with http://"),
        (("--tenant", "support", "--url", desk.url, "--api-key-env", "WRONG"), "does not take the key"),
        (("--tenant", "support", "--url", desk.url, "--api-key-env", "UNSET"), "UNSET is not set"),
        (("--tenant", "support", "--url", desk.url, "--release", 9), "no release 9"),
        (("--tenant", "support", "--url", desk.url, "--against", 3), "cannot be compared with itself"),
        (("--tenant", "nobody", "--url", desk.url), "no tenant 'nobody'"),
        (("--tenant", "support", "--url", desk.url, "--samples", 1), "samples is 1"),
    ):
        ran = cli(*words, *more)
        assert ran.code == 2 and reason in ran.err, ran.err
    ran = cli(
        "train",
        "evaluate",
        "--cases",
        written(tmp_path / "t.jsonl", CASES[-1:]),
        "--tenant",
        "support",
        "--url",
        desk.url,
    )
    assert ran.code == 2 and "a decision is expected" in ran.err
    ran = cli(
        "train",
        "evaluate",
        "--cases",
        written(tmp_path / "t.jsonl", [RUBRIC, CASES[-1]]),
        "--tenant",
        "support",
        "--url",
        desk.url,
    )
    assert ran.code == 2 and "has no held-out cases" in ran.err


def test_one_question_that_is_too_long_costs_that_case(desk: House, cli: Any, tmp_path: Path) -> None:
    desk.engine.script = Desk()
    rows = [*CASES[:2], {"question": "long " * 4000, "expected": {"decision": "NO"}}]
    cases = written(tmp_path / "cases.jsonl", rows)
    ran = cli("train", "evaluate", "--tenant", "support", "--cases", cases, "--url", desk.url, "--no-general", "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert figure(report, "right")["mean"] == 0.5
    assert [(row["line"], row["wrong"]) for row in report["wrong"]] == [(3, ["format", "decision", "refusal"])]
    assert "maximum context length" in report["wrong"][0]["error"]
    assert next(row for row in report["warnings"] if row["code"] == "refused")["lines"] == [3]


def test_a_diagnosis_names_the_lever(desk: House, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ryorin_index import search

    def ranked(self: Any, tenant_id: str, store_ids: Any, question: str, top_k: int, **more: Any) -> list[Hit]:
        return desk.shelf.hits[tenant_id][:top_k]

    monkeypatch.setattr(search.Searcher, "search", ranked)
    desk.engine.script = Desk()
    rows = [
        *CASES[:5],
        {
            "question": "What does delivery cost?",
            "expected": {"decision": "YES", "facts": ["500 yen"], "documents": ["shipping.md"]},
        },
        {"question": "What about warranty?", "expected": {"decision": "YES", "documents": ["warranty.md"]}},
        {
            "question": "How much is wrapping?",
            "expected": {"decision": "YES", "facts": ["300 yen"], "documents": ["gifts.md"]},
        },
        {"question": "How long is shipping?", "expected": {"decision": "YES", "facts": ["2 days"]}},
        {
            "question": "Return, 30 days?",
            "expected": {"decision": "NO", "facts": ["30 days"], "documents": ["returns.md"]},
        },
        {"question": "What <script>now</script>?", "expected": {"decision": "NO"}},
    ]
    cases = written(tmp_path / "cases.jsonl", rows)
    ran = cli("diagnose", "--tenant", "support", "--cases", cases, "--url", desk.url, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    right = {arm["name"]: figure(arm, "right")["mean"] * 10 for arm in report["arms"]}
    assert right == {
        "prompt only": 0,
        "retrieval only": 0,
        "tuned only": pytest.approx(1),  # the refusal; what is not cited is not right
        "both": pytest.approx(4),
    }
    assert {row["line"]: (row["cause"], row["rank"]) for row in report["failures"]} == {
        6: ("knowledge", None),  # the document is there and does not say it
        7: ("knowledge", None),  # there is no such document
        8: ("retrieval", 4),
        9: ("retrieval", 3),
        10: ("behaviour", None),
        11: ("unclear", None),
    }
    assert [(row["cause"], row["failures"]) for row in report["causes"]] == [
        ("knowledge", 2),
        ("retrieval", 2),
        ("behaviour", 1),
        ("unclear", 1),
    ]
    assert all(row["low"] < row["mean"] < row["high"] for row in report["causes"])
    advice = {row["lever"]: row["advice"] for row in report["levers"]}
    assert "shipping.md (1), warranty.md (1)" in advice["knowledge"]
    assert "--top-k 4 in place of 2 would reach 2" in advice["retrieval"]
    assert "decision (1)" in advice["behaviour"]
    gains = {row["adds"]: row for row in report["gains"]}
    assert (gains["tuning, with documents"]["better"], gains["documents, when tuned"]["better"]) == (4, 3)
    shown = cli("diagnose", "--tenant", "support", "--cases", cases, "--url", desk.url)
    assert "retrieval only" in shown.out and "→ Documents:" in shown.err
    page = Path(report["page"]).read_text()
    assert "Which lever to pull" in page and "What &lt;script&gt;now" in page and "<script" not in page


def test_a_release_without_adapter_and_documents_has_one_arm(desk: House, cli: Any, tmp_path: Path) -> None:
    with desk.catalog.session() as session:
        tenant = session.get_one(Tenant, desk.ids["people"])
        from ryorin.catalog.tenants import keep_prompt

        prompt = keep_prompt(session, tenant, Prompt("You are the people desk."))
        bare = create_release(session, tenant, base_digest=BASE.digest, prompt=prompt).version
    desk.engine.script = lambda body: "Ask your manager."
    rows = [{"question": "Leave?", "expected": {"facts": ["20 days"], "documents": ["leave.md"]}}]
    cases = written(tmp_path / "cases.jsonl", rows)
    ran = cli("diagnose", "--tenant", "people", "--release", bare, "--cases", cases, "--url", desk.url, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert [arm["name"] for arm in report["arms"]] == ["prompt only"]
    assert [(row["cause"], row["reason"]) for row in report["failures"]] == [
        ("knowledge", "leave.md is not in the store")
    ]
