"""
How an answer sounds, by rules and SudachiPy, without a model: register, honorifics, phrases, reading level, hedging.

Japanese: a sentence is polite when its predicate ends in です or ます (でしょう, ません, ました, ください too),
plain when it ends in だ, である or a bare verb or adjective; one that ends in a noun (体言止め) is neither. Honorific
(尊敬語) and humble (謙譲語) forms are counted, doubled ones (二重敬語, おっしゃられる) named, after the guidelines
of the Agency for Cultural Affairs (敬語の指針, 2007). English: the Flesch-Kincaid grade (Kincaid et al. 1975), with
syllables counted by groups of vowels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from ryorin_index.sentences import Strength, find_cuts
from ryorin_index.words import morphemes
from ryorin_train.judging.cases import Tone, plain
from ryorin_train.judging.wording import counted

_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)?")
_LATIN = r"[0-9a-zà-öø-ɏ]"
_WIDE_SPACE = re.compile(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])")
_IN_BRACKETS = re.compile(
    r"(?:\s*[（(\[［][^（()）\[\]］]*[)）\]］])+(?=[\s。！!？?]*\Z)"
)  # citations too: no predicate
_VOWELS = re.compile(r"[aeiouy]+")
_POLITE = {"です", "ます"}
# fmt: off
_HONORIFIC = frozenset({
    "いらっしゃる", "おっしゃる", "仰る", "なさる", "為さる", "くださる", "下さる", "召し上がる",
    "ご覧", "御覧", "お見え", "お越し",
})
_HUMBLE = frozenset({
    "いたす", "致す", "申す", "申し上げる", "伺う", "参る", "いただく", "頂く", "頂戴", "存じる", "存ずる",
    "差し上げる", "拝見", "拝読", "拝聴", "拝借", "承る", "おる", "居る",
})
# fmt: on
_DOUBLED = re.compile(
    r"(?:おっしゃ|仰)ら?られ|いらっしゃられ|召し上がられ|なされられ|ご覧になられ|お(?:\w{1,6}?)になられ|お召し上がりになられ"
    r"|お見えになられ|お越しになられ|拝見させていただ|お伺いいたし|お伺い致し"
)
_SUBJECT_POLITE = re.compile(
    r"(?:お|ご|御)\w{1,8}?(?:になり|になる|になっ|いたし|致し|申し上げ|ください|下さい)|ございま"
)
# Words that leave it open whether what is said holds. A limit ('at most', '以内') is none of them.
HEDGES = {
    "en": re.compile(
        r"\b(?:i (?:think|believe|guess|suppose|assume)|i(?:'m| am) not (?:entirely |quite )?(?:sure|certain)|"
        r"it (?:seems|appears)|seems to|might|perhaps|maybe|possibly|probably|presumably|likely|"
        r"as far as i know|to my knowledge|in my opinion|as an ai)\b",
        re.IGNORECASE,
    ),
    "ja": re.compile(
        r"かもしれ(?:ない|ません)|と思(?:う|います|われます)|でしょう(?!か)|だろう|おそらく|恐らく|たぶん|多分|"
        r"可能性が(?:あ|ござい)|ようです|みたいです|らしいです|はずです|もしかする|と推測|と考えられ"
    ),
}
# How an answer says that the documents do not tell.
REFUSALS = {
    "en": re.compile(
        r"\bnot (?:be )?(?:stated|answered|covered|mentioned|described|found|contained|included|specified|available|"
        r"written|given) (?:there\b|here\b|in|by|within)|"
        r"\bdo(?:es)? not (?:say|state|mention|cover|answer|contain|include|specify|describe|tell|provide|address)|"
        r"\bdo(?:es)?n['’]t (?:say|state|mention|cover|answer|contain|include|specify|describe|tell|provide|address)|"
        r"\b(?:cannot|can['’]?t|can not|unable to|not able to) (?:answer|help|find|tell|say|provide|assist)|"
        r"\bi (?:do not|don['’]t) (?:know|have (?:that|this|the|any) information)|"
        r"\bno (?:information|answer) (?:about|on|in|for|is)",
        re.IGNORECASE,
    ),
    "ja": re.compile(
        r"(?:記載|記述|情報|回答|規定|定め)(?:が|は|も)?(?:ありません|ございません|ない|見当たりません|見つかりません)|"
        r"書かれて(?:い|お)(?:ません|りません|ない)|載って(?:い|お)(?:ません|りません|ない)|記載されて(?:い|お)(?:ません|りません|ない)|"
        r"(?:お答え|回答)(?:することは|は|が)?(?:できません|できない|出来ません|いたしかねます|致しかねます|しかねます)|"
        r"(?:わかりません|分かりません|分かりかねます|わかりかねます|存じません|不明です)"
    ),
}


@dataclass(frozen=True)
class Heard:
    """
    How one answer sounds.

    polite, plain: its Japanese sentences of that register. honorifics: Japanese sentences with 尊敬語 or 謙譲語.
    doubled: 二重敬語 as they stand. hedges: phrases that hedge. grade: Flesch-Kincaid, of English only.
    broken: rules of the house that are broken, in words; None when the house has none for this language.
    """

    sentences: int
    polite: int
    plain: int
    honorifics: int
    doubled: tuple[str, ...]
    hedges: tuple[str, ...]
    grade: float | None
    characters: int
    broken: tuple[str, ...] | None

    @property
    def polite_share(self) -> float | None:
        """Polite of polite and plain sentences; None when the answer has neither."""
        judged = self.polite + self.plain
        return self.polite / judged if judged else None


def listen(text: str, language: str, tone: Tone | None) -> Heard:
    """How the text of an answer sounds in its language ('en' or 'ja'), and what of the house's tone it breaks."""
    sentences = sentences_of(text)
    registers = [register(sentence) for sentence in sentences] if language == "ja" else []
    doubled = tuple(match[0] for match in _DOUBLED.finditer(text)) if language == "ja" else ()
    polite, bare = registers.count("polite"), registers.count("plain")
    grade = reading_grade(text) if language == "en" else None
    return Heard(
        sentences=len(sentences),
        polite=polite,
        plain=bare,
        honorifics=sum(has_honorific(sentence) for sentence in sentences) if language == "ja" else 0,
        doubled=doubled,
        hedges=tuple(match[0] for match in HEDGES[language].finditer(text)),
        grade=grade,
        characters=len(text),
        broken=None if tone is None else tuple(_broken(text, tone, bare, doubled, grade)),
    )


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, without the white space around them."""
    starts = [at for at, strength in find_cuts(text, 0, len(text)) if strength >= Strength.SENTENCE]
    found = (text[start:end].strip() for start, end in zip(starts, [*starts[1:], len(text)], strict=True))
    return [sentence for sentence in found if sentence]


def register(sentence: str) -> str:
    """'polite', 'plain', or 'neither': the register of a Japanese sentence by the end of its predicate."""
    words = morphemes(_IN_BRACKETS.sub("", sentence))
    while words and words[-1].part_of_speech()[0] in ("補助記号", "記号", "空白"):
        words.pop()
    while words and words[-1].part_of_speech()[:2] == ("助詞", "終助詞"):  # ですか, ですね, だよ
        words.pop()
    while words and words[-1].part_of_speech()[:2] == ("助詞", "接続助詞"):  # 〜ですが。 〜ますので。
        words.pop()
    if not words:
        return "neither"
    last = words[-1]
    ending = [word for word in words[-3:] if word.part_of_speech()[0] == "助動詞"]
    if any(word.dictionary_form() in _POLITE or word.surface() in ("でしょう", "ましょう") for word in ending):
        return "polite"
    if last.dictionary_form() == "くださる" or sentence.rstrip("。！!　 ").endswith(("くださいませ", "下さいませ")):
        return "polite"
    kind, form = last.part_of_speech()[0], last.part_of_speech()[5]
    goes_on = form.startswith("連用形") or last.surface() == "ず"  # 〜して, 〜しており、, 〜せず
    if kind in ("動詞", "形容詞", "助動詞") and not goes_on:
        return "plain"
    return "neither"


def has_honorific(sentence: str) -> bool:
    """Whether a Japanese sentence has an honorific or humble form."""
    if _SUBJECT_POLITE.search(sentence):
        return True
    for word in morphemes(sentence):
        form = word.dictionary_form()
        if form in ("おる", "居る") and word.surface() not in ("おり", "おる"):  # おります, not います
            continue
        if form in _HONORIFIC or form in _HUMBLE:
            return True
    return False


def reading_grade(text: str) -> float | None:
    """The Flesch-Kincaid grade: 0.39 words a sentence + 11.8 syllables a word - 15.59. None for a text of no words."""
    words = _WORD.findall(text)
    if not words:
        return None
    sentences = max(1, len([sentence for sentence in sentences_of(text) if _WORD.search(sentence)]))
    return 0.39 * len(words) / sentences + 11.8 * sum(map(syllables, words)) / len(words) - 15.59


def syllables(word: str) -> int:
    """The syllables of an English word by its groups of vowels; a silent e at the end does not count."""
    lower = word.lower()
    count = len(_VOWELS.findall(lower))
    if lower.endswith("e") and not lower.endswith(("le", "ee", "ye")) and count > 1:
        count -= 1
    if lower.endswith("ed") and not lower.endswith(("ted", "ded")) and count > 1:
        count -= 1
    return max(1, count)


class Spoken:
    """A text in which phrases are sought, made ready once."""

    def __init__(self, text: str) -> None:
        spoken = plain(text).casefold()
        # Japanese is written with and without the spaces beside digits and Latin letters.
        self._forms = (spoken, _WIDE_SPACE.sub("", spoken))

    def says(self, phrase: str) -> bool:
        """
        Whether the text has a phrase: width, case and white space aside, and as whole words and numbers. '30 days' is
        not said by '130 days', nor '5日' by '15日' or '1.5日', while '申請は5日以内に' says '5日以内'.
        """
        pairs = zip(_sought(phrase), self._forms, strict=True)
        return any(wanted in form and pattern.search(form) is not None for (wanted, pattern), form in pairs)


def says(text: str, phrase: str) -> bool:
    """Whether a text has a phrase, see `Spoken`."""
    return Spoken(text).says(phrase)


@lru_cache(maxsize=4096)
def _sought(phrase: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """A phrase as it is sought in each form of a text."""
    wanted = plain(phrase).casefold()
    return tuple(
        (form, re.compile(_edge(form, 0, "<") + re.escape(form) + _edge(form, -1, "")))
        for form in (wanted, _WIDE_SPACE.sub("", wanted))
    )


def _edge(wanted: str, at: int, behind: str) -> str:
    """What may not stand beside a phrase: more of the word or of the number that it begins or ends with."""
    if wanted[at].isdigit():
        point = r"[.,]" if behind else r"[.,]\d"
        return rf"(?{behind}!{_LATIN})(?{behind}!{point})"
    return rf"(?{behind}!{_LATIN})" if re.match(_LATIN, wanted[at]) else ""


def _broken(text: str, tone: Tone, bare: int, doubled: tuple[str, ...], grade: float | None) -> list[str]:
    """The rules of the house that the text breaks."""
    broken = [f"says {phrase!r}" for phrase in tone.banned if says(text, phrase)]
    broken += [f"does not say {phrase!r}" for phrase in tone.required if not says(text, phrase)]
    if tone.register == "polite":
        if bare:
            broken.append(f"{counted(bare, 'sentence')} not in です or ます")
        broken += [f"doubled honorific {form!r}" for form in doubled]
    if tone.max_grade is not None and grade is not None and grade > tone.max_grade:
        broken.append(f"reading grade {grade:.1f} above {tone.max_grade:g}")
    if tone.max_characters is not None and len(text) > tone.max_characters:
        broken.append(f"{len(text)} characters, at most {tone.max_characters}")
    return broken
