"""
The language of a document and of each of its passages, as ISO 639-1 codes.

Japanese is told by its kana and English by its small words, at once and surely; other languages by py3langid
(https://pypi.org/project/py3langid/), which takes five times as long.
A text that is short, or of which that is not sure (a table, code), has the language of its document.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

SAMPLE_CHARACTERS = 160  # of a passage: more did not change the answer, and each costs time
DOCUMENT_SAMPLE_CHARACTERS = 2000
MIN_LETTERS = 24
SURE = 0.9
_KANA = re.compile(r"[ぁ-ゖァ-ヺｦ-ﾟ]")
_LETTER = re.compile(r"[^\W\d_]")
# No other language has three of these; alone each may be one of its words, such as the Dutch of and the Danish and.
_ENGLISH = frozenset(
    {"the", "and", "of", "to", "that", "this", "with", "which", "from", "are", "have", "has", "not", "will", "when"}
)
_ENGLISH_ENOUGH = 3
_WORD = re.compile(r"[a-z]+")
KANA_SHARE = 0.1  # of the letters; a Japanese text of laws has a fifth and more, a Chinese one that names a の less


def document_language(text: str) -> str:
    """The document's language by samples of its text, Japanese where it has some; '' where nothing tells it."""
    third = DOCUMENT_SAMPLE_CHARACTERS // 3
    middle = len(text) // 2
    sample = text if len(text) <= 3 * third else f"{text[:third]}\n{text[middle : middle + third]}\n{text[-third:]}"
    return _language(sample, 1) or ""


def passage_language(text: str, document: str) -> str:
    """The passage's language; `document`, that of its document, where the passage does not tell."""
    return _language(text[:SAMPLE_CHARACTERS], MIN_LETTERS) or document


def _language(text: str, min_letters: int) -> str | None:
    letters = len(_LETTER.findall(text))
    kana = len(_KANA.findall(text))
    if kana >= 2 and kana >= KANA_SHARE * letters:
        return "ja"
    if letters < min_letters:
        return None
    if len(_ENGLISH.intersection(_WORD.findall(text.lower()))) >= _ENGLISH_ENOUGH:
        return "en"
    language, probability = _identifier().classify(text)
    return str(language) if probability >= SURE else None


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
