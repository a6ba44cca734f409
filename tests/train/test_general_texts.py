"""The general texts that a run may be held on."""

from __future__ import annotations

import unicodedata
from difflib import SequenceMatcher
from typing import Any

from ryorin.training import GENERAL_TEXTS
from ryorin_train.general_texts import general_texts, kept_rows
from ryorin_train.judging.ability import general_questions


def question_of(example: Any) -> str:
    return unicodedata.normalize("NFKC", example.messages[-2]["content"])


def is_like(one: str, other: str) -> bool:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return min(matcher.real_quick_ratio(), matcher.quick_ratio()) >= 0.75 and matcher.ratio() >= 0.75


def test_there_are_as_many_as_a_recipe_allows_and_none_twice() -> None:
    texts = general_texts()
    assert len(texts) == GENERAL_TEXTS
    assert len({question_of(text).casefold() for text in texts}) == GENERAL_TEXTS


def test_none_is_like_a_question_that_ability_is_judged_by() -> None:
    texts = [question_of(text) for text in general_texts()]
    for asked in general_questions():
        question = unicodedata.normalize("NFKC", asked.question)
        alike = [text for text in texts if is_like(question, text)]
        assert not alike, (asked.question, alike)


def test_rows_are_drawn_by_the_seed_and_count_from_their_second_token(tokenizer: Any) -> None:
    rows = kept_rows(tokenizer, 20, seed=3, max_row_tokens=500)
    assert rows == kept_rows(tokenizer, 20, seed=3, max_row_tokens=500) != kept_rows(tokenizer, 20, 4, 500)
    assert all(row.kept and row.learned == (False, *[True] * (row.tokens - 1)) for row in rows)
    assert len({row.ids for row in rows}) == 20
