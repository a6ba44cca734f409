"""
Telling personal data and secrets in a text, and masking them.

Only what can be told surely by its form: numbers with check digits are checked, and example domains are none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

EMAIL, PHONE, CARD, MY_NUMBER, SECRET, ADDRESS = (
    "e-mail address",
    "telephone number",
    "card number",
    "My Number",
    "secret",
    "postal address",
)
# ASCII: in Japanese no space stands before or behind it.
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[a-z0-9-]{1,63}\.)+[a-z]{2,24}(?![\w-])", re.IGNORECASE | re.ASCII)
_EXAMPLE = re.compile(r"@(?:.*\.)?(?:example|test|invalid|localhost)(?:\.[a-z]+)?$", re.IGNORECASE)  # RFC 2606
_PHONE = re.compile(
    r"(?<![\d-])(?:\+\d{1,3}[ -]?\(?\d{1,4}\)?(?:[ -]?\d{2,4}){2,4}"
    r"|0\d{1,4}-\d{1,4}-\d{3,4}|0\d{1,3}\(\d{1,4}\)\d{4}|\(0\d{1,4}\) ?\d{1,4}-\d{4}|0[5789]0\d{8}"
    r"|\(\d{3}\) ?\d{3}-\d{4}|[2-9]\d{2}-\d{3}-\d{4})(?![\d-])"
)
_DIGITS = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){11,18}(?![\d-])")
_MY_NUMBER_NAMED = re.compile(r"マイナンバー|個人番号|my ?number", re.IGNORECASE)
_CARD_STARTS = re.compile(r"4|5[1-5]|2[2-7]|3[47]|3[0689]|35|6011|65|62")
_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{40,}"
    r"|\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bAIza[0-9A-Za-z_-]{35}\b|\bhf_[A-Za-z0-9]{30,}\b"
    r"|\bryo-[0-9a-f]{12}[\w-]{43}|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    r"|(?:\b(?:password|passwd|api[_-]?key|secret)|パスワード)\s*[:=：]\s*(?=[!-~]*\d)[!-~]{8,}",
    re.IGNORECASE | re.ASCII,  # a Japanese letter beside it is no part of a key
)
_ADDRESS = re.compile(
    r"〒\s?\d{3}-?\d{4}"
    r"|(?:東京都|北海道|(?:京都|大阪)府|[一-鿿]{2,3}県)[一-鿿ぁ-んァ-ヶ]{1,12}?[市区町村郡][一-鿿ぁ-んァ-ヶ0-9]{0,20}?"
    r"(?:\d+丁目|\d+番地?|\d+-\d+)"
)


def values_in(text: str) -> Iterator[tuple[str, str]]:
    """(kind, value) of all personal data and secrets in a text, as NFKC writes it."""
    plain = unicodedata.normalize("NFKC", text)
    for match in _EMAIL.finditer(plain):
        if not _EXAMPLE.search(match[0]):
            yield EMAIL, match[0]
    taken = []
    for match in _DIGITS.finditer(plain):
        digits = re.sub(r"\D", "", match[0])
        if len(digits) >= 13 and _CARD_STARTS.match(digits) and luhn(digits):
            taken.append(match.span())
            yield CARD, match[0]
        elif len(digits) == 12 and my_number(digits) and _says_so(plain, match):
            taken.append(match.span())
            yield MY_NUMBER, match[0]
    for match in _PHONE.finditer(plain):
        enough = 9 <= len(re.sub(r"\D", "", match[0])) <= 15
        if enough and not any(start <= match.start() < end for start, end in taken):
            yield PHONE, match[0]
    for match in _SECRETS.finditer(plain):
        yield SECRET, match[0]
    for match in _ADDRESS.finditer(plain):
        yield ADDRESS, match[0]


def luhn(digits: str) -> bool:
    """Whether a card number's check digit is right (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def my_number(digits: str) -> bool:
    """
    Whether the check digit of a Japanese individual number is right.

    11 - (sum of digit n from the right times n+1, or n-5 from the seventh on) mod 11, 0 where that is over 9
    (平成26年総務省令第85号, article 5).
    """
    total = sum(
        int(digit) * (place + 1 if place <= 6 else place - 5)
        for place, digit in enumerate(reversed(digits[:11]), start=1)
    )
    remainder = total % 11
    return int(digits[11]) == (0 if remainder <= 1 else 11 - remainder)


def masked(value: str) -> str:
    """A value of which no more than its first two and last two signs can be read."""
    if len(value) <= 8:
        return value[:1] + "*" * (len(value) - 1)
    return value[:2] + "".join("*" if sign.isalnum() else sign for sign in value[2:-2]) + value[-2:]


def redacted(text: str) -> str:
    """The text with all personal data and secrets in it masked; as it was when it holds none."""
    found = list(values_in(text))
    if not found:
        return text
    text = unicodedata.normalize("NFKC", text)
    for _, value in found:
        text = text.replace(value, masked(value))
    return text


def _says_so(text: str, match: re.Match[str]) -> bool:
    """Whether a number with a right check digit, which one in eleven has by chance, is called or written as one."""
    near = text[max(0, match.start() - 40) : match.end() + 20]
    return bool(_MY_NUMBER_NAMED.search(near)) or bool(re.fullmatch(r"\d{4}([ -])\d{4}\1\d{4}", match[0]))
