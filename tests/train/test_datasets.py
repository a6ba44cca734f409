"""`ryorin data`: what is kept, found, mended, parted and written; on SQLite and PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import PROMPT, chat

from ryorin.catalog.tables import Dataset
from ryorin.catalog.tables import Purpose as PurposeRow
from ryorin.catalog.tenants import create_tenant, set_prompt
from ryorin.errors import InvalidInput
from ryorin.purpose import METRICS, Purpose, read_purpose_file

ROWS = [chat(question, "Yes.") for question in ("May I park?", "返品できますか", "Is lunch free?", "Who is the chair?")]
STATEMENT = {
    "problem": "Answers differ between clerks.",
    "why_not_prompt": "書式が3割の回答で崩れる。",
    "why_not_retrieval": "The passages are right; the judgement is not.",
    "success": [{"metric": "decision", "at_least": 0.9}, {"metric": "latency", "at_most": 0.9}],
}


@pytest.fixture
def tenant(catalog: Any) -> str:
    with catalog.session() as session:
        set_prompt(session, create_tenant(session, "support"), PROMPT)
        create_tenant(session, "people")
    return "support"


@pytest.fixture
def run(cli: Any, tenant: str) -> Callable[..., Any]:
    """`run("list")`: the JSON of a command; `code`, its exit code."""

    def called(*words: Any, code: int = 0, tenant_name: str = tenant) -> Any:
        ran = cli("data", *words, "--tenant", tenant_name, "--json")
        assert ran.code == code, ran.err
        return json.loads(ran.out) if ran.out else ran.err

    return called


def test_a_dataset_is_kept_once_with_its_lineage(run: Callable[..., Any], write_rows: Any, catalog: Any) -> None:
    one, other = write_rows(ROWS[:3], "one.jsonl"), write_rows(ROWS[3:], "two.jsonl")
    made = run("add", one, other, "--from", "people", "--note", "reviewed")
    assert (made["new"], made["rows"], made["kind"], made["origin"]) == (True, 4, "chat", "people")
    assert [(file["name"], file["rows"], len(file["sha256"])) for file in made["lineage"]["files"]] == [
        ("one.jsonl", 3, 64), ("two.jsonl", 1, 64)
    ]  # fmt: skip
    again = run("add", write_rows(ROWS, "all.jsonl"))
    assert (again["new"], again["digest"], again["lineage"]) == (False, made["digest"], made["lineage"])
    assert [row["digest"] for row in run("list")] == [made["digest"]]
    assert run("show", made["digest"][:8])["id"] == made["id"] == run("show", made["id"])["id"]
    with catalog.session() as session:
        assert session.query(Dataset).count() == 1


def test_datasets_are_their_tenants_own(run: Callable[..., Any], write_rows: Any) -> None:
    made = run("add", write_rows(ROWS))
    assert "has no dataset" in run("show", made["id"], code=2, tenant_name="people")
    assert "has no dataset" in run("show", made["digest"][:12], code=2, tenant_name="people")
    assert run("list", tenant_name="people") == []
    assert run("add", write_rows(ROWS), tenant_name="people")["new"] is True


def test_bad_lines_of_all_files_are_named_and_nothing_is_kept(run: Callable[..., Any], write_rows: Any) -> None:
    message = run("add", write_rows([{}], "a.jsonl"), write_rows([ROWS[0], {"x": 1}], "b.jsonl"), code=2)
    assert "a.jsonl, line 1: there is no field 'messages'" in message
    assert "b.jsonl, line 2: the row has the unknown field 'x'" in message
    preference = {"prompt": [{"role": "user", "content": "Q"}], "chosen": [{"role": "assistant", "content": "A"}],
                  "rejected": [{"role": "assistant", "content": "B"}]}  # fmt: skip
    assert "cannot be one dataset" in run("add", write_rows(ROWS), write_rows([preference], "p.jsonl"), code=2)
    assert run("list") == []


@pytest.mark.parametrize("format", ["openai-chat", "trl-prompt-completion", "csv", "hf"])
def test_what_is_exported_is_the_same_dataset(
    run: Callable[..., Any], write_rows: Any, tmp_path: Path, format: str
) -> None:
    made = run("add", write_rows([*ROWS, chat("期限は?", "30日", [("規程", "30日")])]))
    written = run("export", made["digest"][:12], tmp_path / "out", "--format", format)
    assert (written["format"], written["rows"]) == (format, 5)
    assert run("add", tmp_path / "out")["digest"] == made["digest"]
    assert "exists already" in run("export", made["id"], tmp_path / "out", "--format", format, code=2)


def test_a_damaged_blob_is_told(run: Callable[..., Any], write_rows: Any, home: Path) -> None:
    made = run("add", write_rows(ROWS))
    blob = home / "blobs" / made["digest"][:2] / made["digest"]
    blob.write_bytes(blob.read_bytes() + b"\n")
    assert "is damaged" in run("lint", made["digest"][:12], code=2)


def test_purposes_are_appended_and_follow_the_rows(run: Callable[..., Any], write_rows: Any, tmp_path: Path,
                                                   catalog: Any) -> None:  # fmt: skip
    import yaml

    first, second = tmp_path / "purpose.yaml", tmp_path / "purpose.json"
    first.write_text(yaml.safe_dump(STATEMENT, allow_unicode=True), encoding="utf-8")
    second.write_text(json.dumps({**STATEMENT, "problem": "Too slow."}))
    made = run("add", write_rows([*ROWS, ROWS[0]]), "--purpose", first)
    assert made["purpose"] == STATEMENT
    run("purpose", made["id"], "--set", first)
    assert run("purpose", made["id"], "--set", second)["purpose"]["problem"] == "Too slow."
    with catalog.session() as session:
        assert session.query(PurposeRow).count() == 2
    mended = run("lint", made["id"], "--fix")
    assert mended["purpose"]["problem"] == "Too slow."
    assert run("purpose", mended["fixed"]["dataset"]["id"])["purpose"]["problem"] == "Too slow."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": " "}, "problem is missing or empty"),
        ({"why": "x"}, "unknown field 'why'"),
        ({"success": []}, "success must list at least one bound"),
        (
            {"success": [{"metric": "beauty", "at_least": 1}]},
            "success 1: unknown metric 'beauty'; known: right, format",
        ),
        ({"success": [{"metric": "tone", "at_least": 1, "at_most": 2}]}, "tone needs one bound"),
        ({"success": [{"metric": "tone", "at_least": "high"}]}, "at_least is 'high'; it must be a number"),
        ({"success": [{"metric": "tone", "at_least": True}]}, "at_least is True"),
    ],
)
def test_a_purpose_is_checked(change: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Purpose.from_spec({**STATEMENT, **change})


def test_a_purpose_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "purpose.yaml"
    for text, message in (("a: [", "is not YAML"), ("{", "is not JSON"), ("- a", "must be an object")):
        path.write_text(text)
        with pytest.raises(InvalidInput, match=message):
            read_purpose_file(path)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_purpose_file(tmp_path / "none.yaml")
    stated = Purpose.from_spec(STATEMENT)
    assert Purpose.from_spec(stated.spec()) == stated
    assert [target.is_met(0.9) for target in stated.success] == [True, True]
    assert not stated.success[0].is_met(float("nan"))
    assert "held_out_loss" in METRICS


def test_fix_keeps_a_new_dataset_that_names_its_parent(run: Callable[..., Any], write_rows: Any) -> None:
    path = write_rows([ROWS[0], ROWS[0], chat("Where?", " Here ")])
    made = run("add", path)
    mended = run("lint", made["digest"][:12], "--fix")["fixed"]
    assert (mended["rows_in"], mended["rows_out"]) == (3, 2)
    assert {change["code"]: change["rows"] for change in mended["changes"]} == {"whitespace": [3], "duplicate": [2]}
    child = run("show", mended["dataset"]["id"])
    assert (child["rows"], child["origin"], child["lineage"]["parents"]) == (2, "fix", [made["digest"]])
    assert child["lineage"]["fixed"]["changes"] == mended["changes"]
    assert run("show", made["id"])["rows"] == 3
    assert run("lint", child["id"], "--fix")["fixed"]["dataset"] is None
    assert run("lint", path, "--fix")["fixed"]["dataset"]["digest"] == child["digest"]


def test_lint_ends_with_2_when_there_are_errors(run: Callable[..., Any], write_rows: Any, cli: Any) -> None:
    report = run("lint", write_rows([*ROWS, chat("Who?", "...")]), code=2)
    assert report["counts"]["error"] == 1
    assert report["findings"][0]["code"] == "trivial"
    assert report["skipped"][0].startswith("length: model")
    said = cli("data", "lint", write_rows([*ROWS, chat("Who?", "me@corp.jp")]), "--tenant", "support")
    assert said.code == 0
    assert "warning  personal-data  rows 5" in said.out and "me@corp.jp" not in said.out
    no_prompt = run("lint", write_rows(ROWS), tenant_name="people")
    assert "no prompt yet" in no_prompt["skipped"][0]


def test_lint_against_held_out_cases(run: Callable[..., Any], write_rows: Any) -> None:
    cases = write_rows([{"question": "may I park"}, {"question": "Who sings?"}], "cases.jsonl")
    (finding,) = [each for each in run("lint", write_rows(ROWS), "--held-out", cases, code=2)["findings"]
                  if each["code"] == "leakage"]  # fmt: skip
    assert (finding["rows"], finding["severity"]) == ([1], "error")


def test_split_makes_two_datasets_of_one(run: Callable[..., Any], write_rows: Any) -> None:
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett", "kilo"]
    rows = [chat(f"{word}?", word.upper(), None) for word in words]
    rows += [{**chat(f"{word} again, differently asked", word), "source": "log"} for word in words[:3]]
    parted = run("split", write_rows(rows), "--held-out", "0.3")
    assert parted["groups"] == 12
    sides = [run("show", parted[side]["dataset"][:12]) for side in ("training", "held_out")]
    assert sum(side["rows"] for side in sides) == 14
    assert sides[0]["lineage"]["parents"] == sides[1]["lineage"]["parents"]
    report = run("lint", sides[0]["id"], "--held-out", sides[1]["digest"][:12])
    assert [each for each in report["findings"] if each["code"] == "leakage"] == []
    one_group = [{**row, "source": "log"} for row in rows]
    assert "can be held out: its 14 rows make 1 group" in run("split", write_rows(one_group), code=2)
    assert "above 0 and 0.5 at most" in run("split", write_rows(rows), "--held-out", "0.9", code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "abc"), "has no dataset 'abc'"),
        (("show", "ds_000000000000000000000000"), "'ryorin data list --tenant support' shows"),
        (("lint", "none.jsonl"), "no file none.jsonl"),
        (("lint", "abcdef012345", "--format", "csv"), "--format, --map and --encoding are for files"),
        (("lint", "abcdef012345"), "there is no such file"),
        (("add", "none.jsonl", "--map", "a=robot"), "targets: system, user"),
    ],
)
def test_what_is_not_there_is_named(run: Callable[..., Any], words: Any, message: str) -> None:
    assert message in run(*words, code=2)
