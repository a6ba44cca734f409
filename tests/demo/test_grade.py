"""The grader: what it must accept and, more important, what it must not."""

import json

import pytest

from ryorin_demo.data import REFUSED, people_answer, support_answer
from ryorin_demo.grade import Grade, count, grade, states

CASE = {"decision": "NO", "fact": "30 days", "document": "returns.md"}
REFUSAL = {"decision": "NO", "fact": None, "document": None}
GIVEN = ["warranty.html", "returns.md"]
DESKS = {"support": support_answer, "people": people_answer}


@pytest.mark.parametrize("desk", DESKS)
def test_right_and_wrong_answers(desk):
    say = DESKS[desk]
    right = say(2, "within 30 days", "31 days against a limit of 30: over the limit.", "NO")
    assert grade(desk, CASE, right, GIVEN) == Grade(True, True, True)
    assert grade(desk, CASE, say(2, "within 30 days", "Within.", "YES"), GIVEN) == Grade(True, False, True)
    assert not grade(desk, CASE, say(1, "within 30 days", "Over.", "NO"), GIVEN).fact_right  # another document
    assert not grade(desk, CASE, say(3, "within 30 days", "Over.", "NO"), GIVEN).fact_right  # no such passage
    assert not grade(desk, CASE, say(2, "within 130 days", "Over.", "NO"), GIVEN).fact_right
    assert not grade(desk, CASE, right, []).fact_right  # nothing was retrieved: nothing can be cited
    assert grade(desk, REFUSAL, say(None, None, REFUSED, "NO"), GIVEN) == Grade(True, True, True)
    assert not grade(desk, REFUSAL, right, GIVEN).fact_right


@pytest.mark.parametrize(
    "answer",
    [
        "NO",
        "[]",
        '{"decision": "NO"}',
        support_answer(2, "30 days", "Over.", "MAYBE"),
        support_answer(2, "30 days", "", "NO"),
        support_answer(2, "30 days", "Over.", "NO") + " Goodbye.",
        support_answer(2, "30 days", "Over.", "NO").replace('"[2]"', "2"),
        json.dumps({**json.loads(support_answer(2, "30 days", "Over.", "NO")), "extra": 1}),
    ],
)
def test_broken_json_gets_nothing(answer):
    assert grade("support", CASE, answer, GIVEN) == Grade(False, False, False)


@pytest.mark.parametrize(
    ("old", "new"),
    [("Subject:", "Topic:"), ("Dear colleague,", "Hi,"), ("Decision: NO", "Decision: maybe"), ("Yours sincerely,", "")],
)
def test_a_letter_that_lacks_a_part_gets_nothing(old, new):
    letter = people_answer(2, "30 days", "Over.", "NO")
    assert grade("people", CASE, letter.replace(old, new), GIVEN) == Grade(False, False, False)
    assert not grade("people", CASE, letter + "\nP.S. Call me.", GIVEN).format_valid


def test_facts_are_matched_as_words():
    assert states("Within 30\ndays of delivery", "30 days")
    assert states("up to 2,000 yen.", "2,000 yen")
    assert not states("up to 12,000 yen", "2,000 yen")
    assert not states("30 daystrips", "30 days")


def test_counts():
    grades = [Grade(True, True, False), Grade(False, False, False)]
    assert count(grades) == {"cases": 2, "format_valid": 1, "decision_right": 1, "fact_right": 0}
