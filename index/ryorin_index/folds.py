"""
Telling passages that say the same: a key that they share.

The key is made from the passage alone, so it needs no look-up, is the same whatever came first, and stays right when
documents go. Passages fold when they are equal but for how they are written: case, white space, width, punctuation,
Markdown marks, contractions, politeness, kanji or kana for the same word. They do not fold when any other word
differs: a likeness in part, as MinHash or SimHash measure it, cannot tell '30 days' from '45 days' or 'opened' from
'unopened' in a text of a hundred words, and to hide a passage that says something else costs an answer. For the same
reason the heading path counts too ('Opened goods' and 'Unopened goods' may have the same words below them); the
document's title does not, as the same notice stands in many documents.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

KEY_CHARACTERS = 32

_NUMERAL = "〇一二三四五六七八九十百千万億兆"
_CJK = "々〆ぁ-ゖァ-ヺー㐀-鿿豈-﫿"
_SUPERSCRIPT = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")  # 10² is not 102
# What says nothing. Everything else stays, and so do these marks where they belong to a number or a name: 3.5, .5,
# 1,000, (5), 二、三, e.g, snake_case, 5".
_MARK = re.compile(
    r"^[ \t]*(?:[-–—+>][ \t]+|\#{1,6}[ \t]+|[-=|: ]{3,}$|[•●○■□◆▪・][ \t]*)"
    r"|[「」『』【】〔〕〈〉《》\[\]{}`“”…]"
    rf"|[.,:;、。・](?![0-9a-z{_NUMERAL}])|(?<=[{_CJK}])(?<![{_NUMERAL}])[,:;、。・](?!\d)"
    rf"|(?<=[{_CJK}])(?<![{_NUMERAL}])[、。](?=\d)"
    r"|(?<![0-9a-z])[*_]|[*_](?![0-9a-z])"
    rf"|(?<!\d)[!\")]|\((?!\d)|(?<!\w)'|(?<=[{_CJK}])'|(?<=[a-z])'(?!(?![{_CJK}])\w)"
    r"|(?<!\S)\|+(?!\S)|^\||\|$",
    re.MULTILINE,
)
_BESIDE_CJK = re.compile(rf"(?<=[{_CJK}])(?<![{_NUMERAL}]) | (?=[{_CJK}])(?![{_NUMERAL}])")
_VARIANTS = {
    "can't": "can not",
    "cannot": "can not",
    "won't": "will not",
    "shan't": "shall not",
    "it's": "it is",
    "let's": "let us",
    "e-mail": "email",
    "e-mails": "emails",
    "web-site": "website",
    "e.g": "for example",
    "i.e": "that is",
    "okay": "ok",
}
_ENDINGS = (("n't", " not"), ("'re", " are"), ("'ve", " have"), ("'ll", " will"))
_NOTHING = frozenset({"the", "please", "kindly", "hereby", "simply", "furthermore", "moreover", "additionally"})
_JAPANESE = (  # ways of writing, and of being polite
    ("下さい", "ください"),
    ("くださいませ", "ください"),
    ("致し", "いたし"),
    ("お願いいたします", "お願いします"),
    ("出来る", "できる"),
    ("出来ま", "できま"),
    ("頂", "いただ"),
    ("又は", "または"),
    ("及び", "および"),
    ("並びに", "ならびに"),
    ("何卒", ""),
    ("どうぞ", ""),
)


def fold_key(heading: str, text: str) -> str:
    """The key of a passage under a heading path. Hexadecimal, 32 characters."""
    plain = f"{folded_text(heading)}\0{folded_text(text)}"
    return hashlib.blake2b(plain.encode(errors="surrogatepass"), digest_size=KEY_CHARACTERS // 2).hexdigest()


def folded_text(text: str) -> str:
    """The text as it is compared: how it is written taken out, every word that says something left in."""
    text = _SUPERSCRIPT.sub(lambda match: f"^{unicodedata.normalize('NFKC', match[0])}", text)
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    text = "\n".join(line.strip() for line in text.split("\n"))
    words: list[str] = []
    for word in _MARK.sub(" ", text).split():
        if word in _NOTHING or word in _VARIANTS or "'" in word:
            words += _written(word)
        else:
            words.append(word)
    joined = _BESIDE_CJK.sub("", " ".join(words))
    for variant, standard in _JAPANESE:
        joined = joined.replace(variant, standard)
    return joined


def _written(word: str) -> list[str]:
    """A word in the one way of writing that is compared."""
    if word in _NOTHING:
        return []
    if word in _VARIANTS:
        return _VARIANTS[word].split()
    for ending, standard in _ENDINGS:
        if word.endswith(ending) and len(word) > len(ending):
            return [word[: -len(ending)], *standard.split()]
    return [word]
