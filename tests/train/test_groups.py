"""Near texts and groups: against comparing all pairs, in Japanese and English; the split never parts a group."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryorin.prompt import PromptPassage
from ryorin_train.data import Example
from ryorin_train.datasets import near
from ryorin_train.datasets.groups import group_rows, split_rows
from ryorin_train.datasets.near import ALIKE, Components, asks_the_same, likeness, near_pairs, shingles

STEMS = [
    "未開封の商品は購入から何日以内であれば返品できますか",
    "夜勤手当は一時間あたりいくら支給されますか",
    "How many days do I have to return an unopened lamp to the shop",
    "Who approves a business trip that takes longer than one week",
    "ギフト包装は有料ですか、それとも無料ですか",
]


def example(question: str, answer: str = "A", passages: tuple[PromptPassage, ...] | None = None,
            source: str | None = None) -> Example:  # fmt: skip
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Example(1, messages, (False, True), passages, source)  # type: ignore[arg-type]


@st.composite
def variants(draw: st.DrawFn) -> list[str]:
    """Questions with letters changed, numbers put in, endings added."""
    texts = []
    for _ in range(draw(st.integers(2, 25))):
        letters = list(draw(st.sampled_from(STEMS)))
        for _ in range(draw(st.integers(0, 3))):
            letters[draw(st.integers(0, len(letters) - 1))] = draw(st.sampled_from("あxz漢 "))
        texts.append("".join(letters) + draw(st.sampled_from(["", "?", "か", " please", " 30", " 45"])))
    return texts


@settings(max_examples=25)
@given(variants())
def test_connected_as_if_all_pairs_were_compared(texts: list[str]) -> None:
    hashes = [shingles(text) for text in texts]
    exact, found = Components(len(texts)), Components(len(texts))
    for one, other in combinations(range(len(texts)), 2):
        if likeness(hashes[one], hashes[other]) >= ALIKE:
            exact.join(one, other)
    for later, earlier in near_pairs(texts):
        assert earlier < later
        assert likeness(hashes[later], hashes[earlier]) >= ALIKE
        found.join(later, earlier)
    # what a text that is 0.95 alike stands for may hide a pair that is just alike enough; nothing more
    for group in found.groups():
        assert len({exact.first(item) for item in group}) == 1
    for one, other in combinations(range(len(texts)), 2):
        if likeness(hashes[one], hashes[other]) >= ALIKE + 0.05:
            assert found.first(one) == found.first(other)


def test_rows_of_one_template_are_not_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    things = ["".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(600)]
    texts = [f"May a member of the club return an opened {thing} after the sale" for thing in things]
    compared = 0

    def counted(one: near.Hashes, other: near.Hashes) -> float:
        nonlocal compared
        compared += 1
        return likeness(one, other)

    monkeypatch.setattr(near, "likeness", counted)
    near_pairs(texts)
    assert 0 < compared <= 40 * len(texts)  # all pairs would be 300 a text; the last bucket looked into is used whole


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Can I return the lamp?", "May I please return a lamp?", True),
        ("Can I return the unopened lamp?", "Can I return the unopned lamp?", True),
        ("Can I return an opened lamp?", "Can I return an unopened lamp?", False),
        ("Can I return it within 30 days?", "Can I return it within 45 days?", False),
        ("May staff approve it?", "May staff not approve it?", False),
        ("返品できますか", "返品はできますか。", True),
        ("返品できますか", "返品できませんか", False),
        ("開封済みの品を返品できますか", "未開封の品を返品できますか", False),
    ],
)
def test_what_differs_in_wording_only(one: str, other: str, same: bool) -> None:
    assert asks_the_same(one, other) is same


def test_rows_group_by_question_passage_and_source() -> None:
    rule = PromptPassage("返品", "30日以内なら返品できます")
    other = PromptPassage("配送", "送料は無料です")
    rows = [
        example("返品の期限を教えてください", "30日です [1]", (rule, other)),
        example(
            "How long may I keep goods?", "30 days [2]", (other, PromptPassage("返品 ", "30日以内なら返品できます。"))
        ),
        example("返品の期限を教えて下さい。", "30日です"),
        example("Who drives?", "Ann", source="log-1"),
        example("Who cooks?", "Bo", source="log-1"),
        example("いくらですか", "無料です", (other,)),
        example("何色ですか", "文書にはありません", (other, rule)),
    ]
    assert group_rows(rows) == [0, 0, 0, 3, 3, 5, 6]


texts = st.text("abcdefgh か", min_size=1, max_size=30)
rows_of = st.lists(st.builds(example, texts, st.just("A"), st.none(), st.none() | st.sampled_from("st")), max_size=40)


@settings(max_examples=25)
@given(rows_of, st.floats(0, 0.5), st.integers(0, 3))
def test_a_split_never_parts_a_group(rows: list[Example], share: float, seed: int) -> None:
    split = split_rows(rows, share, seed)
    assert sorted([*split.training, *split.held_out]) == list(range(len(rows)))
    assert not {split.group[row] for row in split.training} & {split.group[row] for row in split.held_out}
    assert bool(split.training) == bool(rows)
    if share > 0 and len(rows) >= 10 and split.groups > 1:
        assert split.held_out
    if share == 0:
        assert not split.held_out


@settings(max_examples=25)
@given(rows_of, rows_of, st.integers(0, 3))
def test_rows_keep_their_side_when_others_are_appended(rows: list[Example], more: list[Example], seed: int) -> None:
    """But for groups that a new row joins, that were too large, or that are there only because none was."""
    before, after = split_rows(rows, 0.3, seed), split_rows([*rows, *more], 0.3, seed)
    assert all(after.group[row] <= before.group[row] for row in range(len(rows)))
    held_before, held_after = set(before.held_out), set(after.held_out)
    sizes = {first: before.group.count(first) for first in before.group}
    later_sizes = {first: after.group.count(first) for first in after.group}
    for row in range(len(rows)):
        joined = after.group[row] != before.group[row]
        small = sizes[before.group[row]] <= max(1, 0.3 * len(rows)) and later_sizes[after.group[row]] <= max(
            1, 0.3 * (len(rows) + len(more))
        )
        if not joined and small and len({before.group[each] for each in held_before}) > 1 and held_after:
            assert (row in held_before) == (row in held_after)


def test_about_a_tenth_is_held_out() -> None:
    rows = [example(f"question number {number}") for number in range(1000)]
    assert 70 <= len(split_rows(rows, 0.1, 0).held_out) <= 130
