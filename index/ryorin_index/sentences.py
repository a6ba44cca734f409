"""
Where a text may be cut: before paragraphs, list items and sentences, and where that is not enough, within them.

English and Japanese. A sentence ends at 。！？ or at .!? before white space, its closing brackets included; not inside
「…」 or (…), not after an abbreviation, and not where the text goes on in lower case. Text that is wrapped into lines,
as in a PDF, is read across its line ends; lines of tables and of code are never joined.
"""

from __future__ import annotations

import re
import unicodedata
from enum import IntEnum

Cut = tuple[int, "Strength"]


class Strength(IntEnum):
    """How good a place is to cut before it."""

    LETTER = 0  # inside a word: for a run of letters without end
    WORD = 1
    CLAUSE = 2
    LINE = 3  # a line within a sentence
    INNER = 4  # a sentence inside brackets
    SENTENCE = 5  # also a row of a table, a line of code
    ITEM = 6
    PARAGRAPH = 7


_FENCE = re.compile(r"\s*(```|~~~)")
_ITEM = re.compile(
    r"\s*(?:[-*+•・●○■□◆▪–]|\(?\d{1,3}[.)]|（\d{1,3}）|\d{1,3}[．）]|[a-z][.)]|[①-⑳])(?:\s|(?<=[・●○■□◆①-⑳．）]))"
)
_OPEN, _CLOSE = "「『（(【［〔〈《", "」』）)】］〕〉》"
_MARK = re.compile(
    rf"(?P<open>[{re.escape(_OPEN)}])|(?P<close>[{re.escape(_CLOSE)}])"
    r"|(?P<wide>[。！？｡]+|．(?!\d))"
    r"|(?P<end>[.!?…]+)"
)
_CLOSING = re.compile(rf"[{re.escape(_CLOSE)}\"'”’*_]*")
_AFTER_WIDE_QUOTE = re.compile(r"[ぁ-ん、。，．]")  # と言った, という, は: the sentence goes on behind its quotation
_WIDE = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]")
_WORD_BEFORE = re.compile(r"[A-Za-z.]+\Z")
_ABBREVIATIONS = (
    "mr mrs ms dr prof sr jr st mt rev gen col lt sgt capt hon inc ltd co corp dept univ vs cf al approx est ca viz "
    "ref ed eds tel ext jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun"
)
_BEFORE_NUMBERS = "no nos art ch fig figs eq sec secs vol par pp min max"
_INITIALS = re.compile(r"(?:[a-z]\.)+[a-z]")
_NUMBER_OF_ITEM = re.compile(r"(?:\A|\n)\s*\d+\Z")
_CLAUSE = re.compile(r"[、，；：]|[,;:](?=\s)")
_LINE_END = re.compile(r"\n+")
_SPACE = re.compile(r"\s+")


def find_cuts(text: str, start: int, end: int) -> list[Cut]:
    """
    The places in text[start:end] where a sentence, an item or a paragraph begins; the first is `start`.

    Linear in the text's length.
    """
    cuts: list[Cut] = [(start, Strength.PARAGRAPH)]
    blank = code = False
    prose = -1  # where the present run of wrapped lines begins
    at = start
    while at < end:
        line_end = text.find("\n", at, end)
        line_end = end if line_end < 0 else line_end + 1
        line = text[at:line_end]
        fence = _FENCE.match(line) is not None
        if code or fence:
            kind = Strength.SENTENCE
            code = code != fence
        elif not line.strip():
            kind = Strength.LETTER  # a blank line, no place to cut before
        elif _ITEM.match(line):
            kind = Strength.ITEM
        elif " | " in line or "\t" in line.strip() or line.lstrip().startswith("|"):
            kind = Strength.SENTENCE
        else:
            kind = Strength.LINE
        goes_on = kind is Strength.LINE and prose >= 0 and not blank
        if prose >= 0 and not goes_on:
            cuts += _sentences(text, prose, at)
            prose = -1
        if kind is Strength.LETTER:
            blank = True
        else:
            if not goes_on and at > start:
                cuts.append((at, Strength.PARAGRAPH if blank else max(kind, Strength.SENTENCE)))
            if kind in (Strength.LINE, Strength.ITEM) and prose < 0:
                prose = at
            blank = False
        at = line_end
    if prose >= 0:
        cuts += _sentences(text, prose, end)
    return cuts


def finer_cuts(text: str, start: int, end: int, strength: Strength) -> list[Cut]:
    """The places of exactly that strength in text[start:end], `start` left out; for a sentence that is too long."""
    if strength is Strength.INNER:
        found = _sentences(text, start, end, brackets=False)
    elif strength is Strength.LINE:
        found = [(match.end(), strength) for match in _LINE_END.finditer(text, start, end)]
    elif strength is Strength.CLAUSE:
        found = [(match.end(), strength) for match in _CLAUSE.finditer(text, start, end)]
    else:
        found = [(match.end(), strength) for match in _SPACE.finditer(text, start, end)]
    return [(at, strength) for at, _ in found if start < at < end]


def whole_letter(text: str, at: int, start: int) -> int:
    """A place at or before `at`, behind `start`, that does not part a letter from its combining marks."""
    while at > start + 1 and (unicodedata.combining(text[at]) or text[at] in "\u200d\ufe0e\ufe0f"):
        at -= 1
    return at


def _sentences(text: str, start: int, end: int, *, brackets: bool = True) -> list[Cut]:
    """Where sentences begin within a paragraph, but for its first."""
    found: list[Cut] = []
    depth = 0
    position = start
    while match := _MARK.search(text, position, end):
        position = match.end()
        if match["open"]:
            depth += brackets
            continue
        if match["close"]:
            depth = max(0, depth - 1)
            inside = text[max(start, match.start() - 8) : match.start()].rstrip(_CLOSE)
            if not inside.endswith(tuple("。！？｡")) or _AFTER_WIDE_QUOTE.match(text, position, end):
                continue
        elif depth or (match["end"] and not _ends_sentence(text, match, start, end)):
            continue
        if depth:
            continue
        if not match["close"]:
            position = _closed(text, position, end)
            if match["wide"] and _AFTER_WIDE_QUOTE.match(text, position, end) and text[position - 1] in _CLOSE:
                continue
        next_at = position
        while next_at < end and text[next_at].isspace():
            next_at += 1
        if next_at < end:
            found.append((next_at, Strength.SENTENCE))
    if depth and brackets:  # a bracket that is never closed says nothing
        return _sentences(text, start, end, brackets=False)
    return found


def _closed(text: str, at: int, end: int) -> int:
    """Behind the closing brackets and quotation marks that stand at `at`."""
    match = _CLOSING.match(text, at, end)
    return match.end() if match else at


def _ends_sentence(text: str, match: re.Match[str], start: int, end: int) -> bool:
    """Whether . ! ? or … ends a sentence there."""
    after = _closed(text, match.end(), end)
    if after < end and not text[after].isspace():
        return match[0] != "." and _WIDE.match(text, after) is not None
    following = _SPACE.match(text, after, end)
    behind = text[following.end() : following.end() + 1] if following else ""
    if behind.islower():
        return False
    if match[0] != ".":
        return True
    before = text[max(start, match.start() - 20) : match.start()]
    word = _WORD_BEFORE.search(before)
    if word is None:
        return not _NUMBER_OF_ITEM.search(before)
    name = word[0].lower()
    if len(name) == 1 or _INITIALS.fullmatch(name):  # J. Smith, U.S., 9 a.m.: the last may end a sentence
        return name in ("a.m", "p.m") and behind.isupper()
    if name in _BEFORE_NUMBERS.split():
        return not behind.isdigit()
    return name not in _ABBREVIATIONS.split()
