"""
Which characters the bytes of a text are.

UTF-8 and marked UTF-16 tell by themselves; ISO-2022-JP by its escapes. Shift_JIS and EUC-JP are weighed against each
other by the kinds of characters they give, since charset_normalizer takes short Japanese for Chinese, Korean or Latin;
what is none of these is left to it.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from ryorin_index.parse.document import invalid

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ESCAPE = re.compile(rb"\x1b\$[@B]|\x1b\$\(|\x1b\([IJ]")
_KANA = re.compile("[ぁ-んァ-ヶー、。「」]")
_KANJI = re.compile("[一-龥々]{2,}")
_LONE_KANJI = re.compile("(?<![一-龥々ぁ-んァ-ヶー])[一-龥々](?![一-龥々ぁ-んァ-ヶー])")
_HALF_WIDTH = re.compile("[｡-ﾟ]")
_ODD = re.compile("[\ue000-\uf8ff\u0080-\u009f]|[Ѐ-ӿͰ-Ͽ─-╿]")
_BEYOND_ASCII = re.compile("[^\0-\x7f]+")
_SOUND_FOR_DAMAGED = 8  # characters beyond ASCII; of a text in another encoding hardly one in ten is sound
_WEIGHED = 200_000  # bytes that decide
_WITHOUT_KANA = 40  # so many kanji without one kana are not Japanese
# What pages call an encoding is often a subset of what they use: https://encoding.spec.whatwg.org/#names-and-labels
_NATIONAL = re.compile("cp|iso8859|koi8|euc|shift|gb|big5|iso2022|tis|mac")  # not Python's own, such as punycode
_WIDER = {"shift_jis": "cp932", "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030"}


def prepare() -> None:
    """Import what detection needs."""
    import charset_normalizer  # noqa: F401


def decode(path: Path, data: bytes, declared: str | None = None) -> str:
    """
    The text of `data`. declared: the encoding the file claims; believed where the bytes fit it.

    Raises InvalidInput where the bytes are no text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    if b"\0" in data[:4096]:
        raise invalid(path, "is not text, though its name says so")
    if _ESCAPE.search(data[:_WEIGHED]) and (text := _strict(data, "iso2022_jp_2004", "iso2022_jp_ext")) is not None:
        return text
    candidates = ["utf-8"]
    if declared and (known := _known(declared)):
        candidates.insert(0, known)
    text = _strict(data, *candidates)
    if text is None:
        text = _nearly_utf8(data)
    return text if text is not None else _detected(path, data)


def in_utf8(data: bytes, declared: str) -> bytes:
    """
    `data` as marked UTF-8, where `declared`, the encoding that was named beside the bytes, fits them; else unchanged.

    Latin letters, which servers name without thought, fit any bytes and are not believed; UTF-8 tells by itself.
    """
    encoding = _known(declared) or ""
    if not _NATIONAL.match(encoding) or encoding == "cp1252" or data.startswith(tuple(mark for mark, _ in _MARKS)):
        return data
    text = _strict(data, encoding)
    return data if text is None else codecs.BOM_UTF8 + text.encode("utf-8", errors="replace")


def _nearly_utf8(data: bytes) -> str | None:
    """UTF-8 of which a character here and there is damaged, or the last one cut off; None where it is not."""
    text = data.decode("utf-8", errors="replace")
    damaged = text.count("\ufffd")
    sound = sum(map(len, _BEYOND_ASCII.findall(text))) - damaged
    return text if sound >= _SOUND_FOR_DAMAGED * damaged else None


def _strict(data: bytes, *encodings: str) -> str | None:
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeError:  # some encodings raise the general one
            continue
    return None


def _known(declared: str) -> str | None:
    try:
        name = codecs.lookup(declared.strip().strip("\"'")).name
        "".encode(name)  # a LookupError where it is no encoding of text, as hex is none
    except (LookupError, ValueError):
        return None
    if name.startswith(("utf-16", "utf-32")):  # a page that says so in ASCII letters is not
        return "utf-8"
    return _WIDER.get(name, name)


def _detected(path: Path, data: bytes) -> str:
    """Bytes that are not UTF-8 and claim nothing, or claim wrongly."""
    part = data[:_WEIGHED]
    weights = {}
    for encoding in ("cp932", "euc_jis_2004"):
        text = _strict_part(part, encoding)
        if text is not None:
            weights[encoding] = _japanese(text)
    best = max(weights, key=weights.__getitem__, default="")
    if best and weights[best] > 0:
        return data.decode(best, errors="replace")
    from charset_normalizer import from_bytes

    match = from_bytes(data).best()
    western = _strict(data, "cp1252")
    letters = sum(byte >= 128 for byte in part)
    if western is not None and (match is None or letters < max(8, len(part) // 10)):
        return western  # few letters beyond ASCII: accents
    if match is None:
        raise invalid(path, "has an unknown character encoding; save it as UTF-8")
    return str(match)


def _strict_part(part: bytes, encoding: str) -> str | None:
    """`part` may end in the middle of a character where it was cut."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(part, final=len(part) < _WEIGHED)
    except UnicodeDecodeError:
        return None


def _japanese(text: str) -> float:
    """How Japanese a text looks; 0 and below is not."""
    kana = len(_KANA.findall(text))
    kanji = sum(map(len, _KANJI.findall(text)))
    if not kana and kanji > _WITHOUT_KANA:
        return 0.0
    odd = len(_ODD.findall(text)) + len(_LONE_KANJI.findall(text))
    half_width = len(_HALF_WIDTH.findall(text))
    return 2.0 * kana + kanji + (0.4 * half_width if half_width > kanji else -1.0 * half_width) - 2.0 * odd
