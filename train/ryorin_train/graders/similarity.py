"""
How alike two texts are, from 0 to 1, for `text_similarity`.

Words are runs of letters and digits in lower case; each Chinese or Japanese character is a word. Texts without any word
are alike when both have none.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
MAX_ORDER = 4


def similarity(metric: str, text: str, reference: str) -> float:
    """By one of `ryorin.graders.definition.METRICS`."""
    if metric == "fuzzy_match":
        return fuzzy(text, reference)
    ours, theirs = words(text), words(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    if metric == "bleu":
        return bleu(ours, theirs)
    if metric == "gleu":
        return gleu(ours, theirs)
    if metric == "rouge_l":
        return _f1(common_subsequence(ours, theirs), len(ours), len(theirs))
    return rouge(ours, theirs, int(metric.removeprefix("rouge_")))


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.lower())


def fuzzy(text: str, reference: str) -> float:
    """2 * (characters in common, in order) / (all characters): rapidfuzz's `ratio`, as a share."""
    if not text and not reference:
        return 1.0
    return _f1(common_subsequence(text, reference), len(text), len(reference))


def common_subsequence(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """
    The length of the longest common subsequence, a bit a place: Hyyrö, 'Bit-parallel LCS-length computation revisited',
    2004.
    """
    places: dict[str, int] = {}
    for at, each in enumerate(ours):
        places[each] = places.get(each, 0) | 1 << at
    all_ones = (1 << len(ours)) - 1
    row = all_ones
    for each in theirs:
        matched = row & places.get(each, 0)
        row = ((row + matched) | (row - matched)) & all_ones
    return len(ours) - row.bit_count()


def rouge(ours: Sequence[str], theirs: Sequence[str], order: int) -> float:
    """ROUGE-N as F1 over n-grams: https://aclanthology.org/W04-1013/."""
    mine, wanted = _grams(ours, order), _grams(theirs, order)
    return _f1(sum((mine & wanted).values()), sum(mine.values()), sum(wanted.values()))


def bleu(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """
    Sentence BLEU to order 4, one added to both counts above order 1: https://aclanthology.org/P02-1040/, smoothed as by
    Lin and Och, https://aclanthology.org/C04-1072/.
    """
    logs = 0.0
    for order in range(1, MAX_ORDER + 1):
        mine, wanted = _grams(ours, order), _grams(theirs, order)
        same, all_ours = sum((mine & wanted).values()), max(1, sum(mine.values()))
        if order > 1:
            same, all_ours = same + 1, all_ours + 1
        if not same:
            return 0.0
        logs += math.log(same / all_ours) / MAX_ORDER
    brevity = 1.0 if len(ours) > len(theirs) else math.exp(1 - len(theirs) / len(ours))
    return brevity * math.exp(logs)


def gleu(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """The lower of precision and recall over all n-grams to order 4: https://arxiv.org/abs/1609.08144, section 6."""
    mine: Counter[tuple[str, ...]] = Counter()
    wanted: Counter[tuple[str, ...]] = Counter()
    for order in range(1, MAX_ORDER + 1):
        mine += _grams(ours, order)
        wanted += _grams(theirs, order)
    return sum((mine & wanted).values()) / max(sum(mine.values()), sum(wanted.values()))


def _grams(text: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[at : at + order]) for at in range(len(text) - order + 1))


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0
