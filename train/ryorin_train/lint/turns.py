"""
Rows as turns, a question and the answer to learn, and what an answer says: its labels, numbers, citations, whether it
refuses.

What an answer says is told by rules that a person can check, for English and Japanese; they know common ways to write a
decision and a refusal, not all.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ryorin.digests import digest_of
from ryorin.prompt import MARKER, Message, PromptPassage
from ryorin_train.data import Example, Rating, Row

MAX_LABEL_CHARACTERS = 24
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?|(?<=[^\W\d_a-zA-Z])\d[\d,]*(?:\.\d+)?")
_THEY = r"(?:documents?|passages?|materials?|sources?|handbook|manual|texts?)"
_REFUSAL = re.compile(
    rf"\b{_THEY}\b[^.\n]{{0,40}}\b(?:do|does|did) ?(?:not|n't) (?:answer|contain|say|mention|cover|tell|include|state)"
    rf"|\bnot (?:in|covered by|mentioned in|stated in|found in|answered (?:in|by)) (?:the|these|our|any) {_THEY}"
    rf"|\bno (?:information|passage|document)s?\b[^.\n]{{0,60}}\b{_THEY}"
    rf"|\b(?:can ?not|can't|could not|couldn't|unable to) (?:be answered|answer|find)\b"
    r"|\bI (?:do not|don't) know\b"
    r"|記載(?:が|は)?(?:あり|ござい|され)\w{0,3}ません|記載(?:が|は)ない|見(?:つか|当た)りません|(?:お答え|回答)(?:が|は)?(?:でき(?:ません|ない)"
    r"|(?:いた)?しかね)|[分わ]かりかね|(?:資料|文書|規程|規定|マニュアル)(?:に|から)は?[^。\n]{0,30}"
    r"(?:ありません|ございません|書かれていません|確認できません|[分わ]かりません|ない)|情報(?:が|は)(?:あり|ござい)ません",
    re.IGNORECASE,
)
_STATED = re.compile(
    r"(?:decision|answer|verdict|result|判定|結論|可否)\s*[:：]\s*\W{0,3}(\w[\w-]{0,20})", re.IGNORECASE
)
_YES = re.compile(r"^(?:yes|はい|可能です)\b|^(?:はい|可能です)|できます|可能です", re.IGNORECASE)
_NO = re.compile(r"^no\b|^(?:いいえ|不可)|できません|できかねます|いたしかねます|認められません", re.IGNORECASE)


@dataclass(frozen=True)
class Turn:
    """A question and the answer that is learned. earlier: the messages before the question; passages: as of the row."""

    row: Row
    earlier: tuple[Message, ...]
    question: str
    answer: str

    @property
    def line(self) -> int:
        """The row's line."""
        return self.row.line

    @property
    def passages(self) -> tuple[PromptPassage, ...] | None:
        """What retrieval had found; None when it was off."""
        return self.row.passages

    @cached_property
    def setting(self) -> str:
        """A digest of all that the answer may rest on but the question."""
        passages = None if self.passages is None else [[each.title, each.text] for each in self.passages]
        return digest_of([passages, [dict(message) for message in self.earlier]])

    @cached_property
    def said(self) -> Said:
        """What the answer says."""
        return Said(self.answer)


@dataclass(frozen=True)
class Said:
    """What an answer says."""

    answer: str

    @cached_property
    def value(self) -> Any:
        """The answer's JSON value when it is an object or a list, else None."""
        if not self.answer.strip().startswith(("{", "[")):
            return None
        try:
            return json.loads(self.answer, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return None

    @cached_property
    def texts(self) -> list[str]:
        """The answer, or the texts in its JSON value."""
        return [self.answer] if self.value is None else list(_texts_in(self.value))

    @cached_property
    def refuses(self) -> bool:
        """Whether it says that the documents hold no answer."""
        return any(_REFUSAL.search(text) for text in self.texts)

    @cached_property
    def numbers(self) -> frozenset[str]:
        """Its numbers, without thousands' commas; citation markers are none."""
        text = MARKER.sub(" ", "\n".join(self.texts))
        return numbers_in(text)

    @cached_property
    def labels(self) -> dict[str, str]:
        """
        The decisions in it by name: true, false and words in capitals of a JSON object; `decision` of a text that says
        'Decision: …', yes or no; `answer` when the whole answer is one word.
        """
        if isinstance(self.value, dict):
            return {
                name: json.dumps(item) if isinstance(item, bool) else item
                for name, item in self.value.items()
                if isinstance(item, bool) or (isinstance(item, str) and re.fullmatch(r"[A-Z][A-Z_-]{1,23}", item))
            }
        text = unicodedata.normalize("NFKC", self.answer).strip()
        if stated := _STATED.search(text):
            return {"decision": stated[1].upper()}
        yes, no = _YES.search(text), _NO.search(text)
        if bool(yes) != bool(no):
            return {"decision": "YES" if yes else "NO"}
        longest = MAX_LABEL_CHARACTERS if text.isascii() else MAX_LABEL_CHARACTERS // 3  # Japanese writes no spaces
        if len(text) <= longest and re.fullmatch(r"[\w-]+[.。!]?", text) and not self.refuses:
            return {"answer": text.rstrip(".。!").casefold()}
        return {}


def turns_of(rows: Sequence[Row]) -> list[Turn]:
    """Every learned answer with its question, in order; of a preference the better one, of ratings the good ones."""
    turns = []
    for row in rows:
        messages = row.messages
        if isinstance(row, Rating):
            answers = [(len(messages), row.answer)] if row.good else []
        elif not isinstance(row, Example):
            answers = [(len(messages), answer) for answer in row.answers[:1]]
        else:
            pairs = enumerate(zip(messages, row.learned, strict=True))
            answers = [(at, message["content"]) for at, (message, learned) in pairs if learned]
        for at, answer in answers:
            asked = messages[at - 1]["content"] if at else ""
            turns.append(Turn(row, tuple(messages[: max(at - 1, 0)]), asked, answer))
    return turns


def difference(one: Said, other: Said) -> str:
    """What two answers to one question disagree about; empty when they may both be right."""
    for name, label in one.labels.items():
        if name in other.labels and other.labels[name] != label:
            return f"{name}: {label} and {other.labels[name]}"
    if one.refuses != other.refuses:
        return "one answers, one says that the documents do not"
    if not one.numbers <= other.numbers and not other.numbers <= one.numbers:
        only, others = sorted(one.numbers - other.numbers), sorted(other.numbers - one.numbers)
        return f"numbers: {', '.join(only[:3])} and {', '.join(others[:3])}"
    return ""


def numbers_in(text: str) -> frozenset[str]:
    """The numbers of a text, of any width, without thousands' commas."""
    plain = unicodedata.normalize("NFKC", text)
    return frozenset(match[0].replace(",", "") for match in _NUMBER.finditer(plain))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _texts_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts_in(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts_in(item)]
    return [str(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []
