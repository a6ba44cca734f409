"""How answers sound: registers, honorifics, phrases, reading level, hedging, refusals; in both languages."""

from __future__ import annotations

import pytest

from ryorin_train.judging.cases import Tone
from ryorin_train.judging.tone import HEDGES, REFUSALS, has_honorific, listen, reading_grade, register, says


@pytest.mark.parametrize(
    "sentence",
    [
        "返品は30日以内です。",
        "返品できません",
        "返品できました。",
        "返品は可能でしょうか。",
        "お問い合わせください。",
        "返品できませんでした。",
        "承っておりますので。",
        "ご案内いたします！",
        "在庫はございます（店舗による）。",
    ],
)
def test_polite_sentences(sentence: str) -> None:
    assert register(sentence) == "polite"


@pytest.mark.parametrize(
    "sentence",
    [
        "返品は30日以内だ。",
        "返品は可能である。",
        "返品できる。",
        "返品できない。",
        "返品は30日以内だった。",
        "値段は高い。",
        "しなければならない。",
        "返品してもよいと思われる",
        "まだ使えるよ。",
    ],
)
def test_plain_sentences(sentence: str) -> None:
    assert register(sentence) == "plain"


@pytest.mark.parametrize("sentence", ["返品は30日以内。", "決定：不可", "[1]", "。"])
def test_sentences_that_end_in_a_noun_are_neither(sentence: str) -> None:
    assert register(sentence) == "neither"


def test_the_share_of_polite_sentences() -> None:
    heard = listen("返品は30日以内です。送料は無料だ。決定：可。お問い合わせください。", "ja", None)
    assert (heard.sentences, heard.polite, heard.plain) == (4, 2, 1)
    assert heard.polite_share == pytest.approx(2 / 3)
    assert listen("Returns are free.", "en", None).polite_share is None


@pytest.mark.parametrize(
    "sentence",
    [
        "お客様がおっしゃいました。",
        "担当者が参ります。",
        "こちらで承ります。",
        "ご確認ください。",
        "お読みになりますか。",
    ],
)
def test_honorific_and_humble_forms(sentence: str) -> None:
    assert has_honorific(sentence)


@pytest.mark.parametrize("sentence", ["猫がいます。", "返品できます。", "お茶を飲みました。", "会議は九時に始まる。"])
def test_politeness_alone_is_no_honorific(sentence: str) -> None:
    assert not has_honorific(sentence)


def test_doubled_honorifics_are_named() -> None:
    heard = listen(
        "社長がおっしゃられました。資料をご覧になられますか。本をお読みになられました。", "ja", Tone(register="polite")
    )
    assert len(heard.doubled) == 3 and heard.broken is not None and len(heard.broken) == 3
    assert listen("社長がおっしゃいました。資料をご覧になりますか。", "ja", Tone(register="polite")).broken == ()


def test_the_rules_of_the_house() -> None:
    tone = Tone(banned=("no problem", "ASAP"), required=("Yours sincerely",), max_grade=8, max_characters=120)
    good = "You can return it within 30 days.\nYours sincerely,\nPeople Desk"
    assert listen(good, "en", tone).broken == ()
    bad = "No  problem, we will do it asap!" + " " * 100
    assert listen(bad, "en", tone).broken == (
        "says 'no problem'",
        "says 'ASAP'",
        "does not say 'Yours sincerely'",
        "132 characters, at most 120",
    )
    assert listen("We refund NO PROBLEMS.", "en", Tone(banned=("no problem",))).broken == ()
    japanese = Tone(banned=("絶対に",), required=("よろしくお願い",), register="polite")
    assert listen("絶対に返品できる。", "ja", japanese).broken == (
        "says '絶対に'",
        "does not say 'よろしくお願い'",
        "1 sentence not in です or ます",
    )


def test_reading_grades_of_known_texts() -> None:
    # By hand: 6 words, 1 sentence, 6 syllables: 0.39 * 6 + 11.8 * 1 - 15.59
    assert reading_grade("The cat sat on the mat.") == pytest.approx(-1.45)
    # 2 sentences, 12 words; syllables 3 + 4 + 3 + 5 and eight of one, by the dictionary
    legal = "Reimbursement applications are subject to verification. All of them take ten days."
    assert reading_grade(legal) == pytest.approx(
        0.39 * 12 / 2 + 11.8 * (5 + 4 + 1 + 2 + 1 + 5 + 6) / 12 - 15.59, abs=1.0
    )
    assert reading_grade("返品は30日以内です。") is None
    hard = "Notwithstanding the aforementioned stipulations, reimbursement is contingent upon verification."
    assert (reading_grade(hard) or 0) > 15 > (reading_grade("You can send it back. It is free.") or 0)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Within 30\ndays of delivery", "30 days"),
        ("It costs 12,000 yen.", "12000 yen"),
        ("It costs 12000 yen.", "12,000 YEN"),
        ("申請は5日以内に出します。", "5日以内"),
        ("申請は５日以内に出します。", "5日以内"),
        ("申請は 5 日以内に出します。", "5日以内"),
        ("料金は1,500円です。", "1500円"),
        ("Version 3.5.", "3.5"),
    ],
)
def test_what_is_said(text: str, phrase: str) -> None:
    assert says(text, phrase)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("within 130 days", "30 days"),
        ("1.30 days", "30 days"),
        ("30 daystrips", "30 days"),
        ("up to 12,000 yen", "2,000 yen"),
        ("2,000,000 yen", "2,000"),
        ("申請は15日以内に", "5日以内"),
        ("申請は1.5日以内に", "5日以内"),
        ("料金は11,500円です。", "1500円"),
        ("for silver members", "old"),
    ],
)
def test_what_is_not_said(text: str, phrase: str) -> None:
    assert not says(text, phrase)


@pytest.mark.parametrize(
    ("language", "text", "hedged"),
    [
        ("en", "I think it might be 30 days.", True),
        ("en", "It is at most 30 days; it may be returned.", False),
        ("ja", "30日以内かもしれません。", True),
        ("ja", "おそらく30日以内です。", True),
        ("ja", "30日以内に返品できます。", False),
        ("ja", "返品なさるご予定でしょうか。", False),
    ],
)
def test_hedges(language: str, text: str, hedged: bool) -> None:
    assert bool(HEDGES[language].search(text)) is hedged


@pytest.mark.parametrize(
    ("language", "text", "refused"),
    [
        ("en", "This is not answered in the documents.", True),
        ("en", "The documents don't say how long it takes.", True),
        ("en", "I cannot answer that.", True),
        ("en", "No. Opened goods cannot be returned.", False),
        ("en", "It may be returned; the limit is not 14 days but 30.", False),
        ("ja", "資料には記載がございません。", True),
        ("ja", "資料に書かれていないため、お答えできません。", True),
        ("ja", "開封した商品は返品できません。", False),
    ],
)
def test_refusals(language: str, text: str, refused: bool) -> None:
    assert bool(REFUSALS[language].search(text)) is refused
