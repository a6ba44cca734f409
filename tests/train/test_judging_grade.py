"""Cases, their rubric and the grades of answers: what must pass and, more important, what must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ryorin.errors import InvalidInput, NotFound, RowError
from ryorin_train.data import RowErrors
from ryorin_train.judging.cases import Cases, read_cases
from ryorin_train.judging.grade import SEVERAL, Answer, Grade, Grader

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["citation", "fact", "reason", "decision"],
    "properties": {
        "citation": {"type": ["string", "null"], "pattern": "^\\[[0-9]+\\]$"},
        "fact": {"type": ["string", "null"], "minLength": 1},
        "reason": {"type": "string", "minLength": 1},
        "decision": {"enum": ["YES", "NO"]},
    },
}
JSON_RUBRIC = {"facts": {"field": "fact"}, "refusal": {"field": "citation", "equals": None}}
LETTER_RUBRIC = {
    "format": {"pattern": r"件名：[^\n]+\n\n[\s\S]+\n決定：(?:可|不可)\n\n人事部"},
    "decision": {"pattern": "決定：(可|不可)"},
    "tone": {"ja": {"register": "polite"}},
}
EXPECTED = {"decision": "NO", "facts": ["30 days"], "documents": ["returns.md"]}
REFUSE = {"decision": "NO", "documents": [], "refuse": True}
LETTER = {"decision": "不可", "facts": [["5日以内", "五日以内"]], "documents": ["yukyu.md"]}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def cases_of(path: Path, expected: Any, rubric: Any = None, question: str = "Can I?", **more: Any) -> Cases:
    rows = [{"rubric": rubric}] if rubric else []
    return read_cases(written(path / "cases.jsonl", *rows, {"question": question, "expected": expected, **more}))


def graded(path: Path, expected: Any, rubric: Any, schema: Any, answer: Answer, question: str = "Can I?") -> Grade:
    cases = cases_of(path, expected, rubric, question)
    grader = Grader(cases.rubric, schema)
    grader.check(cases)
    return grader.grade(cases.cases[0], answer)


def support(**changes: Any) -> str:
    return json.dumps({"citation": "[2]", "fact": "within 30 days", "reason": "Over.", "decision": "NO"} | changes)


def verdicts(grade: Grade) -> tuple[bool | None, ...]:
    return (grade.format, grade.decision, grade.facts, grade.citations, grade.refusal)


def test_a_right_answer_in_json(tmp_path: Path) -> None:
    answer = Answer(support(), ("returns.md",), passages=(7, 8))
    grade = graded(tmp_path, EXPECTED, JSON_RUBRIC, SCHEMA, answer)
    assert verdicts(grade) == (True, True, True, True, True)
    assert grade.right and grade.said == "NO" and not grade.refused and grade.tone is None


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (Answer(support(decision="YES"), ("returns.md",)), ["decision"]),
        (Answer(support(fact="within 130 days"), ("returns.md",)), ["facts"]),
        (Answer(support(fact="soon", reason="30 days"), ("returns.md",)), ["facts"]),  # said, but not as the fact
        (Answer(support(), ("warranty.html",)), ["citations"]),
        (Answer(support(), ("returns.md", "warranty.html")), ["citations"]),  # citing everything is no citing
        (Answer(support()), ["citations"]),  # a marker of no passage
        (Answer(support(), ("returns.md",), passages=(7,)), ["citations"]),  # [2] where there is one passage
        (Answer(support(citation=None), ()), ["citations", "refusal"]),
        (Answer(support(extra=1), ("returns.md",)), ["format", "decision", "facts", "citations"]),
        (Answer(support() + " Bye.", ("returns.md",)), ["format", "decision", "facts", "citations"]),
        (Answer("NO, within 30 days [2]", ("returns.md",)), ["format", "decision", "facts", "citations"]),
        (Answer("", error="too long"), ["format", "decision", "facts", "citations", "refusal"]),
        (Answer(""), ["format", "decision", "facts", "citations"]),
    ],
)
def test_wrong_answers_in_json(tmp_path: Path, answer: Answer, wrong: list[str]) -> None:
    grade = graded(tmp_path, EXPECTED, JSON_RUBRIC, SCHEMA, answer)
    assert grade.wrong() == wrong and not grade.right


def test_a_refusal_when_it_should_and_only_then(tmp_path: Path) -> None:
    refusal = Answer(support(citation=None, fact=None))
    assert verdicts(graded(tmp_path, REFUSE, JSON_RUBRIC, SCHEMA, refusal)) == (True, True, None, True, True)
    assert graded(tmp_path, EXPECTED, JSON_RUBRIC, SCHEMA, refusal).wrong() == ["facts", "citations", "refusal"]
    answered = graded(tmp_path, REFUSE, JSON_RUBRIC, SCHEMA, Answer(support(), ("returns.md",)))
    assert answered.wrong() == ["citations", "refusal"]
    # Without a rule the phrases of the language tell it, and an error is no refusal.
    said = graded(tmp_path, {"refuse": True}, None, None, Answer("I cannot answer that from the documents."))
    assert said.right and not graded(tmp_path, {"refuse": True}, None, None, Answer("", error="no")).right


def letter(body: str = "申請は5日以内にお出しください [1]。期限を過ぎています。", decision: str = "不可") -> str:
    return f"件名：有給休暇\n\n{body}\n決定：{decision}\n\n人事部"


def japanese(path: Path, text: str, cited: tuple[str, ...] = ("yukyu.md",)) -> Grade:
    return graded(path, LETTER, LETTER_RUBRIC, None, Answer(text, cited), "有給休暇は取れますか。")


def test_a_letter_in_japanese(tmp_path: Path) -> None:
    grade = japanese(tmp_path, letter())
    assert verdicts(grade) == (True, True, True, True, True) and grade.tone is True
    assert japanese(tmp_path, letter("申請は五日以内です [1]。")).right  # the other wording
    assert japanese(tmp_path, letter("申請は15日以内です [1]。")).wrong() == ["facts"]
    assert japanese(tmp_path, letter(decision="可")).wrong() == ["decision"]
    assert japanese(tmp_path, letter() + "\n追伸").wrong() == ["format", "decision", "facts", "citations"]
    plain = japanese(tmp_path, letter("申請は5日以内に出すこと。期限を過ぎている [1]。"))
    assert plain.wrong() == ["tone"] and plain.right  # tone is told apart from what is right
    both = japanese(tmp_path, letter("決定：可\n申請は5日以内です [1]。"))
    assert both.said == SEVERAL and both.wrong() == ["decision"]


def test_a_fact_in_json_is_read_behind_its_escapes(tmp_path: Path) -> None:
    answer = Answer(json.dumps({"答え": "5日以内です", "根拠": ["[1]"]}), ("yukyu.md",))
    assert "\\u" in answer.text
    assert graded(tmp_path, {"facts": ["5日以内"], "documents": ["yukyu.md"]}, None, None, answer).right


def test_what_is_not_expected_is_not_judged(tmp_path: Path) -> None:
    grade = graded(tmp_path, {"facts": []}, None, None, Answer("Anything [9]"))
    assert verdicts(grade) == (None, None, True, None, True)


def test_a_decision_that_nobody_can_find_is_an_error(tmp_path: Path) -> None:
    for schema, words in ((None, "have no schema"), ({"properties": {"answer": {}}}, "has no such field")):
        with pytest.raises(InvalidInput, match=words):
            graded(tmp_path, EXPECTED, None, schema, Answer("NO"))


def test_cases_as_read(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "返品?"},
    ]
    path = written(
        tmp_path / "cases.jsonl",
        {"question": "Can I?", "expected": EXPECTED, "paraphrases": ["May I?"], "split": "train", "tags": ["boundary"]},
        {"messages": turns, "expected": {"documents": [{"document": "r.md", "heading": "Returns", "quote": "30"}]}},
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    first, second = read_cases(path).cases
    assert (first.line, first.split, first.tags, first.language) == (1, "train", ("boundary",), "en")
    assert (second.line, second.question, second.language, second.split) == (3, "返品?", "ja", "held_out")
    assert second.reworded("May I?")[:2] == second.messages[:2] and second.reworded("May I?")[2]["content"] == "May I?"


def test_every_line_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    good = {"question": "Can I?", "expected": EXPECTED}
    bad = {
        "not JSON": "{",
        "the case has the unknown field 'answer'": good | {"answer": "NO"},
        "a case has either 'question' or 'messages'": {"expected": EXPECTED},
        "there is no object 'expected'": {"question": "Q"},
        "'expected' is empty": {"question": "Q", "expected": {}},
        "expected has the unknown field 'fact'": {"question": "Q", "expected": {"fact": "30 days"}},
        "decision must be text": {"question": "Q", "expected": {"decision": True}},
        "facts must be a list": {"question": "Q", "expected": {"facts": "30 days"}},
        "a document has the unknown field 'page'": {
            "question": "Q",
            "expected": {"documents": [{"document": "a", "page": 1}]},
        },
        "split is 'test'": good | {"question": "Q", "split": "test"},
        "language is 'fr'": good | {"question": "Q", "language": "fr"},
        "it must be 'user'": {"messages": [{"role": "assistant", "content": "a"}], "expected": EXPECTED},
        "paraphrases must be a list of texts": good | {"question": "Q", "paraphrases": [""]},
        "a rubric must be the first line": {"rubric": {}},
    }
    path = tmp_path / "bad.jsonl"
    for reason, row in bad.items():
        text = row if isinstance(row, str) else json.dumps(row)
        path.write_text(f"{json.dumps(good)}\n{text}\n")
        with pytest.raises(RowError, match=r"bad\.jsonl, line 2: ") as caught:
            read_cases(path)
        assert reason in caught.value.message
    path.write_text("\n".join([json.dumps(good), json.dumps({"question": "Q"}), json.dumps({"expected": EXPECTED})]))
    with pytest.raises(RowErrors) as several:
        read_cases(path)
    assert [error.line for error in several.value.errors] == [2, 3]
    path.write_text("\n".join([json.dumps(good), json.dumps(good | {"split": "train"})]))
    with pytest.raises(RowError, match="line 2: it asks the same as line 1"):
        read_cases(path)
    with pytest.raises(NotFound, match="--cases takes"):
        read_cases(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("rubric", "reason"),
    [
        ({"decisions": {}}, "the rubric has the unknown field 'decisions'"),
        ({"decision": {}}, "decision has either field or pattern"),
        ({"decision": {"field": "a", "pattern": "b"}}, "decision has either field or pattern"),
        ({"format": {"pattern": "("}}, "format: the pattern cannot be read"),
        ({"refusal": {"field": "citation"}}, "a field needs 'equals'"),
        ({"tone": {"fr": {}}}, "tone has the unknown field 'fr'"),
        ({"tone": {"en": {"register": "polite"}}}, "tone in 'en' has the unknown field 'register'"),
        ({"tone": {"ja": {"register": "plain"}}}, "register is 'plain'"),
        ({"tone": {"en": {"max_grade": True}}}, "max_grade must be a number"),
    ],
)
def test_rubrics_that_cannot_be_used(tmp_path: Path, rubric: Any, reason: str) -> None:
    with pytest.raises(RowError, match="line 1: ") as caught:
        cases_of(tmp_path, EXPECTED, rubric)
    assert reason in caught.value.message
