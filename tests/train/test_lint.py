"""Every class of finding on rows that have it, in English and Japanese, and on rows that have not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import chat

from ryorin.prompt import Prompt
from ryorin_train.datasets.formats import load
from ryorin_train.datasets.store import Given, lineage_of
from ryorin_train.lint.findings import Finding, Report
from ryorin_train.lint.fix import fix
from ryorin_train.lint.personal import luhn, masked, my_number, values_in
from ryorin_train.lint.run import lint
from ryorin_train.render import Renderer

SCHEMA = {
    "type": "object",
    "required": ["decision"],
    "properties": {"decision": {"enum": ["YES", "NO", "UNKNOWN"]}},
}
RULE = [("返品 > 期限", "商品は購入から30日以内であれば返品できます。")]
ENGLISH = [("Returns", "Goods can be returned within 30 days. A receipt is needed.")]
OTHER = [("Parking", "The car park opens at nine.")]
REFUSED = "The documents do not answer this question."


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., Given]:
    """`given(rows)`: rows, or lines of a file, as `ryorin data lint` reads them."""

    def read(rows: Sequence[dict[str, Any]] | str) -> Given:
        path = tmp_path / "rows.jsonl"
        text = rows if isinstance(rows, str) else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
        loaded = load(path)
        return Given(loaded.name, loaded.rows, lineage_of([loaded]), loaded)

    return read


@pytest.fixture
def check(given: Callable[..., Given]) -> Callable[..., list[Finding]]:
    """`check(rows, code)`: the findings of that code."""

    def run(rows: Any, code: str, schema: Any = None, held_out: Sequence[dict[str, Any]] = ()) -> list[Finding]:
        report = found(given(rows), schema, given(held_out).rows if held_out else [])
        return [finding for finding in report.findings if finding.code == code]

    return run


def found(given: Given, schema: Any = None, held_out: Sequence[Any] = ()) -> Report:
    return lint(given, Prompt("Answer.", schema), None, held_out)


def clean_rows() -> list[dict[str, Any]]:
    """Good rows from passages: cases at the limit and beside it, refusals, nothing found, both languages' own tone."""
    rows = []
    for limit in range(12, 36):
        passages = [("Goods", f"Lamp number {limit * 7} goes back within {limit} days."), *OTHER]
        for value in (limit, limit + 1):
            word = "may" if value <= limit else "may not"
            answer = f'It {word} go back: "goes back within {limit} days" [1].'
            rows.append(chat(f"Lamp number {limit * 7}, {value} days: may it go back?", answer, passages))
    rows.append(chat("Who painted the ceiling of the hall?", REFUSED, OTHER))
    rows.append(chat("Which opera is on tonight?", REFUSED, []))
    return rows


def test_clean_rows_have_no_finding(given: Callable[..., Given]) -> None:
    assert [(each.code, each.message) for each in found(given(clean_rows())).findings] == []
    japanese = [
        chat("未開封の電球は25日後に返品できますか", "30日以内なので返品できます [1]。", RULE),
        chat("31日たった本は返品できますか", "30日を過ぎているため返品できません [1]。", RULE),
        chat("社長の誕生日はいつですか", "資料には記載がありません。", RULE),
    ]
    assert [(each.code, each.message) for each in found(given(japanese)).findings] == []


@pytest.mark.parametrize(
    ("rows", "severity", "lines"),
    [
        ([chat("Can I return it?", "Yes, you can."), chat("can I return it", "No.")], "error", (1, 2)),
        ([chat("返品できますか？", "はい、できます。"), chat("返品できますか", "いいえ、駄目です。")], "error", (1, 2)),
        ([chat("How long?", "30 days"), chat("X?", "x"), chat("How long?", "14 days")], "error", (1, 3)),
        ([chat("期限は?", "30日以内です"), chat("期限は?", "資料には記載がありません")], "error", (1, 2)),
        (
            [chat("Can I return the broken lamp?", '{"ok": true}'),
             chat("Can I return a broken lamp?", '{"ok": false}')],
            "warning",
            (1, 2),
        ),
        (
            [chat("壊れた電球を返品する場合の期限はいつまででしょうか", "30日です"),
             chat("壊れた電球を返品する場合の期限はいつまでですか", "14日です")],
            "warning",
            (1, 2),
        ),
    ],
)  # fmt: skip
def test_contradictions(check: Callable[..., list[Finding]], rows: Any, severity: str, lines: Any) -> None:
    (finding,) = check(rows, "contradiction")
    assert (finding.severity, finding.rows) == (severity, lines)


@pytest.mark.parametrize(
    "rows",
    [
        [chat("How long?", "30 days", ENGLISH), chat("How long?", "14 days", OTHER)],  # other passages
        [chat("How long?", "Within 30 days."), chat("How long?", "30 days; bring the receipt.")],
        [chat("Can I return an opened lamp?", "NO"), chat("Can I return an unopened lamp?", "YES")],
        [chat("開封した品は返品できますか", "いいえ"), chat("未開封の品は返品できますか", "はい")],
        [chat("31日後でも返品できますか", "いいえ"), chat("30日後でも返品できますか", "はい")],
    ],
)
def test_no_contradictions(check: Callable[..., list[Finding]], rows: Any) -> None:
    assert check(rows, "contradiction") == []


def test_repeats(check: Callable[..., list[Finding]]) -> None:
    row = chat("返品の期限は?", "30日です")
    (twice,) = check([row, chat("Else?", "no"), {**row, "source": "log-2"}], "duplicate")
    assert (twice.severity, twice.rows) == ("warning", (1, 3))
    near = [chat("Where do I return a lamp that is broken?", "At the desk."),
            chat("Where may I please return the lamp that is broken?", "At the desk.")]  # fmt: skip
    (finding,) = check(near, "near-duplicate")
    assert (finding.severity, finding.rows) == ("warning", (1, 2))
    (varied,) = check([chat("Where?", "At the desk."), chat("where", "Come to the desk.")], "varied-answer")
    assert varied.severity == "note"


def test_leakage(check: Callable[..., list[Finding]], given: Callable[..., Given]) -> None:
    rows = [
        chat("返品の期限を教えてください", "30日です"),
        chat("Who drives?", "Ann [1]", ENGLISH),
        chat("Who sings?", "Bo"),
    ]
    held_out = [chat("返品の期限を教えて下さい。", "14日"), chat("What is needed?", "A receipt [1]", ENGLISH)]
    near, shared = check(rows, "leakage", held_out=held_out)
    assert (near.severity, near.rows, "(lines 1)" in near.message) == ("error", (1,), True)
    assert (shared.severity, shared.rows, "share a passage or source" in shared.message) == ("warning", (2,), True)


def test_answers_that_break_the_schema(check: Callable[..., list[Finding]]) -> None:
    answers = [
        '{"decision": "YES"}',
        '{"decision": NaN}',
        '{"decision": "PERHAPS"}',
        '{"reason": "x"}',
        '{"decision": "はい"}',
    ]
    findings = check([chat(f"Question {answer}?", answer) for answer in answers], "schema", SCHEMA)
    assert [finding.rows for finding in findings] == [(2,), (3, 5), (4,)]
    assert {finding.severity for finding in findings} == {"error"}


def test_a_schema_is_never_fetched(given: Callable[..., Given]) -> None:
    report = found(given([chat("Q?", "{}")]), {"$ref": "http://127.0.0.1:9/schema.json"})
    assert report.skipped[0].startswith("schema: the answer schema refers to 'http://127.0.0.1:9/schema.json'")


def test_format_drift(check: Callable[..., list[Finding]]) -> None:
    rows = [chat(f"Question {word}?", json.dumps({"fact": word})) for word in ("one", "two", "three")]
    (finding,) = check([*rows, chat("Four?", "Four it is, I think.")], "format-drift")
    assert (finding.severity, finding.rows) == ("warning", (4,))
    assert "75% are JSON with fact" in finding.message
    (mixed,) = check([rows[0], chat("件名?", "件名: 返品\n以上"), chat("Which?", "- one\n- two")], "format-drift")
    assert "no form is common" in mixed.message
    assert check(rows, "format-drift") == []


@pytest.mark.parametrize(
    ("answers", "lines"),
    [
        (["返品できます。", "返品できません。", "返品は30日以内である。"], (3,)),
        (["返品できる。", "期限は30日だ。", "お店へお持ちください。"], (3,)),
        (["期限は30日です。それ以降は返品できない。"], (1,)),
        (["You can't return it.", "You can not keep it.", "It's not allowed, and you are late."], (3,)),
    ],
)
def test_tone_drift(check: Callable[..., list[Finding]], answers: list[str], lines: Any) -> None:
    rows = [chat(f"質問その{number}?", answer) for number, answer in zip("一二三", answers, strict=False)]
    assert lines in [finding.rows for finding in check(rows, "tone-drift")]


def test_lines_that_a_sentence_goes_over_have_no_tone(check: Callable[..., list[Finding]]) -> None:
    rows = [
        chat("手順は?", "次の手順で行い、\n受け取ってから30日以内に連絡して\nお返しください。"),
        chat("送料は?", "送料がかからず\n詳細は説明しており\n安心です。"),
    ]
    assert check(rows, "tone-drift") == []


def test_quotes_are_not_the_answers_tone(check: Callable[..., list[Finding]]) -> None:
    rule = [("規程", "返品は30日以内とする。開封品は返品できない。")]
    rows = [
        chat("期限は?", "「返品は30日以内とする」と定められています [1]。", rule),
        chat("何日?", "30日です [1]。", rule),
    ]
    assert check(rows, "tone-drift") == []


def test_missing_cases(check: Callable[..., list[Finding]]) -> None:
    far = [chat(f"Can I return item {'ABCDEFGHIJKLMNOPQRSTU'[n]} after {n + 50} days?", f"No [1], case {n + 50}.",
                ENGLISH) for n in range(21)]  # fmt: skip
    assert [finding.severity for finding in check(far, "no-refusals")] == ["warning"]
    assert [finding.severity for finding in check(far, "no-boundary-cases")] == ["warning"]
    near = chat("Can I return it after 31 days?", "No [1].", ENGLISH)
    refusal = chat("Who sings?", "資料には記載がありません。", OTHER)
    assert check([*far, near], "no-boundary-cases") == []
    assert check([*far, refusal], "no-refusals") == []
    assert [finding.severity for finding in check([*far, refusal], "no-empty-retrieval")] == ["note"]
    assert check([*far, refusal, chat("Who runs?", REFUSED, [])], "no-empty-retrieval") == []


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("write to taro.yamada@mizunara.co.jp", "e-mail address", "ta**.******@********.**.jp"),
        ("連絡先は０９０－１２３４－５６７８です", "telephone number", "09*-****-**78"),
        ("call 03-1234-5678", "telephone number", "03-****-**78"),
        ("call +44 20 7946 0958 now", "telephone number", "+4* ** **** **58"),
        ("カードは4111 1111 1111 1111", "card number", "41** **** **** **11"),
        ("マイナンバーは123456789018です", "My Number", "12********18"),
        ("key AKIAIOSFODNN7EXAMPLE", "secret", "AK****************LE"),
        ("-----BEGIN RSA PRIVATE KEY-----", "secret", None),
        ("password: hunter2hunter2", "secret", None),
        ("宛先はtaro@mizunara.co.jpです", "e-mail address", "ta**@********.**.jp"),
        ("キーはAKIAIOSFODNN7EXAMPLEです", "secret", "AK****************LE"),
        ("パスワード：hunter2hunter2。", "secret", None),
        ("番号は090-1234-5678です", "telephone number", "09*-****-**78"),
        ("〒100-0001 東京", "postal address", None),
        ("東京都千代田区丸の内1-1-1に住む", "postal address", None),
    ],
)
def test_personal_data_and_secrets(
    check: Callable[..., list[Finding]], text: str, kind: str, shown: str | None
) -> None:
    assert [name for name, _ in values_in(text)] == [kind]
    code = "secret" if kind == "secret" else "personal-data"
    (finding,) = check([chat("Who?", "Nobody."), chat("Where?", text)], code)
    value = next(value for _, value in values_in(text))
    assert finding.rows == (2,)
    assert finding.severity == ("error" if kind in ("secret", "card number", "My Number") else "warning")
    assert value not in finding.message
    assert shown is None or shown in finding.message


@pytest.mark.parametrize(
    "text",
    [
        "mail someone@example.com", "order 4111 1111 1111 1112", "my number is 123456789012", "2026-11-25 10:30",
        "12,345,678 yen", "ISBN 978-4-00-310101-8", "10-20-30", "version 1.2.3", "東京都の規程",
        "the password is secret", "extension 1234-5678",
    ],
)  # fmt: skip
def test_what_only_looks_like_personal_data(text: str) -> None:
    assert list(values_in(text)) == []


def test_contacts_of_the_documents_are_no_personal_data(check: Callable[..., list[Finding]]) -> None:
    passages = [("Desk", "Write to desk@mizunara.co.jp or call 03-1234-5678.")]
    assert check([chat("How?", "Write to desk@mizunara.co.jp [1].", passages)], "personal-data") == []
    assert len(check([chat("How?", "Write to me@mizunara.co.jp [1].", passages)], "personal-data")) == 1


def test_no_finding_shows_personal_data(given: Callable[..., Given]) -> None:
    held = ("taro@corp.jp", "4111 1111 1111 1111", "sk-abcdefghijklmnopqrstuvwxyz012345", "090-1234-5678")
    rows = [chat(f"{value}は誰の？", f"{answer} {value}", [("規程", "30日")])
            for value in held for answer in ("はい", "いいえ、50です")]  # fmt: skip
    report = found(given(rows), SCHEMA, given(rows).rows)
    assert {"contradiction", "schema", "leakage", "ungrounded"} <= {finding.code for finding in report.findings}
    assert not [value for value in held if value in json.dumps(report.as_json(), ensure_ascii=False)]


def test_check_digits_and_masks() -> None:
    assert luhn("4242424242424242") and not luhn("4242424242424241")
    assert [digit for digit in range(10) if my_number(f"12345678901{digit}")] == [8]
    assert masked("a@b.jp") == "a*****"


def test_labels(check: Callable[..., list[Finding]]) -> None:
    rows = [chat(f"Number {n}?", json.dumps({"decision": "YES" if n else "NO"})) for n in range(30)]
    (ruling,) = check(rows, "label-imbalance", SCHEMA)
    assert (ruling.rows, "YES in 29 of 30" in ruling.message) == ((1,), True)
    (missing,) = check(rows, "label-missing", SCHEMA)
    assert "never UNKNOWN" in missing.message
    assert check(rows[:10], "label-imbalance", SCHEMA) == []
    balanced = [chat(f"番号{n}は?", "はい" if n % 2 else "いいえ") for n in range(30)]
    assert check(balanced, "label-imbalance") == []
    assert len(check([chat(f"番号{n}は?", "はい、できます。") for n in range(30)], "label-imbalance")) == 1


@pytest.mark.parametrize("answer", ["...", "N/A", "TODO", "同上", "Who?", "---\n"])
def test_trivial_answers(check: Callable[..., list[Finding]], answer: str) -> None:
    (finding,) = check([chat("Where?", "There."), chat("Who?", answer)], "trivial")
    assert (finding.severity, finding.rows) == ("error", (2,))


def test_answers_against_their_passages(check: Callable[..., list[Finding]]) -> None:
    rows = [
        chat("How long?", "Within 30 days [1].", ENGLISH),
        chat("How long for books?", "Within 45 days [1].", ENGLISH),
        chat("期限は?", "「購入から60日以内」です [1]。", RULE),
        chat("And lamps?", json.dumps({"fact": "only with the original box"}), ENGLISH),
        chat("Until when?", "Until 45 days have passed, says the shop.", []),
        chat("書類の45は?", "45です [1]。", RULE),
    ]
    first, second = check(rows, "ungrounded")
    assert (first.rows, second.rows) == ((2, 3, 4), (5,))
    (citation,) = check([chat("Which?", "That one [3].", ENGLISH)], "citation")
    assert (citation.severity, citation.rows) == ("error", (1,))
    citing = [chat(f"Question {n}?", "Within 30 days [1].", ENGLISH) for n in "abcde"]
    (bare,) = check([*citing, chat("Question f?", "Within 30 days.", ENGLISH)], "uncited")
    assert bare.rows == (6,)


def test_preferences_are_linted(check: Callable[..., list[Finding]]) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"Question {n}?"}],
         "chosen": [{"role": "assistant", "content": "Yes."}],
         "rejected": [{"role": "assistant", "content": "Yes. " if n else "Mail a.b@corp.jp"}]}
        for n in range(2)
    ]  # fmt: skip
    assert [finding.rows for finding in check(rows, "equal-answers")] == [(2,)]
    assert [finding.rows for finding in check(rows, "personal-data")] == [(1,)]


def test_lengths_are_those_of_training(given: Callable[..., Given], tokenizer: Any) -> None:
    prompt = Prompt("Answer.")
    rows = [chat("Short?", "Yes."), chat("長い?", "答え" * 200), chat("Tokens?", "<|im_end|>")]
    report = lint(given(rows), prompt, lambda: Renderer(tokenizer, prompt, 300))
    by_code = {finding.code: finding for finding in report.findings}
    assert by_code["too-long"].rows == (2,)
    assert "tokens with the prompt, the limit is 300" in by_code["too-long"].message
    assert by_code["unrenderable"].rows == (3,)
    assert report.skipped == ()


MESSY = (
    "\ufeff"
    + json.dumps(chat("A?", "Yes. \n"))
    + "\n\n"
    + json.dumps(chat("A?", "Yes."))
    + "\n"
    + json.dumps(chat("B?", "\u200b"))
    + "\n"
    + json.dumps(chat("C?", "いいえ\u3000"))
    + "\n"
)


def test_lines_and_their_mending(given: Callable[..., Given]) -> None:
    messy = given(MESSY)
    codes = {finding.code: finding for finding in found(messy).findings}
    assert {code: codes[code].rows for code in ("empty", "bom", "blank-line", "whitespace")} == {
        "empty": (4,), "bom": (1,), "blank-line": (2,), "whitespace": (1, 5)
    }  # fmt: skip
    mended = fix(messy)
    assert mended.as_json()["rows_in"] == 4
    assert [row.messages[-1]["content"] for row in mended.rows] == ["Yes.", "いいえ"]
    assert {change.code: change.rows for change in mended.changes} == {
        "empty": (4,), "whitespace": (1, 5), "duplicate": (3,), "bom": (1,), "blank-line": (2,)
    }  # fmt: skip
    assert fix(given([chat("A?", "Yes.")])).changes == ()


def test_malformed_rows_are_found_and_never_left_out(given: Callable[..., Given]) -> None:
    broken = given(json.dumps(chat("A?", "Yes.")) + "\n{\n{}\n{}\n")
    malformed = [finding for finding in found(broken).findings if finding.code == "malformed"]
    assert [finding.rows for finding in malformed] == [(2,), (3, 4)]
    with pytest.raises(ValueError, match="line 2: not JSON"):
        fix(broken)


def test_findings_are_sorted_and_counted(given: Callable[..., Given]) -> None:
    report = found(given([chat("A?", "..."), chat("B?", "Yes. "), chat("b", "Right: yes.")]))
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert report.counts == {name: severities.count(name) for name in ("error", "warning", "note")}
    assert report.as_json()["findings"][0]["rows"] == [1]
