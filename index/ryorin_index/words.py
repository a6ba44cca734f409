"""
The words of a text, as the lexical index counts them; passages and questions go through the same function.

NFKC and lower case first. Runs of Japanese are cut by SudachiPy and written in its normalised form, so サーバ finds
サーバー and 引越し finds 引っ越し; particles, auxiliaries and marks are dropped. Everything else is words and numbers,
with English endings taken off (Porter's second stemmer, https://snowballstem.org/algorithms/english/stemmer.html).
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

MAX_WORD_CHARACTERS = 64
SUDACHI_CHARACTERS = 8000  # of one call: its limit is 49,149 bytes
SHORT_CHARACTERS, KNOWN_RUNS = 12, 16_384

_JAPANESE = r"\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_IS_JAPANESE = re.compile(f"[{_JAPANESE}]")
# A number with its thousands, a run of Japanese, a word; a letter of scripts without spaces counts as a word each.
# Without groups, a text's pieces are found in one call; for ASCII the shorter pattern gives the same in half the time.
_PIECE = re.compile(rf"\d+(?:[.,]\d+)*|[{_JAPANESE}]+|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]|[^\W\d_{_JAPANESE}]+")
_ASCII_PIECE = re.compile(r"[a-z]+|[0-9]+(?:[.,][0-9]+)*")
_DROPPED = {"助詞", "助動詞", "補助記号", "記号", "空白"}
_LIGHT_VERBS = {"為る", "居る", "有る", "成る", "下さる", "出来る", "御", "言う", "因る"}
# What English questions are made of; they find nothing and crowd out what does in a small store.
_QUESTION_WORDS = (
    "a an the and or but if of to in on at by for from with as is are was were be been being am do does did doing have "
    "has had having i me my mine we us our you your he him his she her it its they them their this that these those "
    "there what which who whom when where why how can could may might must shall should will would not no so than then "
    "s t"
)
_ENGLISH = frozenset(_QUESTION_WORDS.split())
_threads = threading.local()


def words_of(text: str) -> list[str]:
    """The words of `text` in their order, repetitions kept; empty when it has marks only."""
    text = unicodedata.normalize("NFKC", text).lower()
    pieces = (_ASCII_PIECE if text.isascii() else _PIECE).findall(text)
    if "," in text:
        pieces = [piece.replace(",", "") for piece in pieces]
    found = [piece for piece in pieces if piece not in _ENGLISH]
    if not text.isascii():
        found = [word for piece in found for word in (_japanese(piece) if _IS_JAPANESE.match(piece) else (piece,))]
    found = [word[:MAX_WORD_CHARACTERS] for word in found]
    # The stemmer knows the Latin alphabet and leaves other words as they are. It gives one word for each.
    return list(_stemmer().analyze(" ".join(found))) if found else []


def _japanese(run: str) -> Sequence[str]:
    return _known(run) if len(run) <= SHORT_CHARACTERS else _cut(run)


@lru_cache(maxsize=KNOWN_RUNS)
def _known(run: str) -> Sequence[str]:
    """A short run, cut once: between words of other scripts and in tables the same ones come again and again."""
    return _cut(run)


def _cut(run: str) -> Sequence[str]:
    tokenizer, mode = _sudachi()
    return tuple(
        form
        for at in range(0, len(run), SUDACHI_CHARACTERS)
        for morpheme in tokenizer.tokenize(run[at : at + SUDACHI_CHARACTERS], mode)
        if morpheme.part_of_speech()[0] not in _DROPPED
        and (form := morpheme.normalized_form()) not in _LIGHT_VERBS
        and not form.isspace()
    )


def _sudachi() -> tuple[Any, Any]:
    """A tokenizer of this thread's own: one may not be used by two at once."""
    if not hasattr(_threads, "sudachi"):
        from sudachipy import SplitMode  # type: ignore[import-untyped]

        _threads.sudachi = (_dictionary().tokenizer(), SplitMode.A)
    found: tuple[Any, Any] = _threads.sudachi
    return found


@cache
def _dictionary() -> Any:
    from sudachipy import Dictionary

    return Dictionary()


def _stemmer() -> Any:
    if not hasattr(_threads, "stemmer"):
        from tantivy import Filter, TextAnalyzerBuilder, Tokenizer

        _threads.stemmer = TextAnalyzerBuilder(Tokenizer.whitespace()).filter(Filter.stemmer("english")).build()
    return _threads.stemmer


def morphemes(text: str) -> list[Any]:
    """SudachiPy's morphemes of a text, in their order, cut as short as it can (its mode A); for grammar, not search."""
    tokenizer, mode = _sudachi()
    return [
        morpheme
        for at in range(0, len(text), SUDACHI_CHARACTERS)
        for morpheme in tokenizer.tokenize(text[at : at + SUDACHI_CHARACTERS], mode)
    ]
