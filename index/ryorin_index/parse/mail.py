"""E-mail (.eml): who wrote what to whom and when. Attachments are documents of their own (`archive.py`)."""

from __future__ import annotations

import email.policy
import re
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from ryorin_index.parse import encoding, html
from ryorin_index.parse.document import MEDIA_TYPES, ParsedDocument, Section, as_attributes, clean, invalid, one_line

MAX_PARTS = 1_000
MAX_DEPTH = 30
MAX_HEADER_CHARACTERS = 2_000
_SHOWN = ("Subject", "From", "To", "Cc", "Date")
_SUFFIXES = {media_type: suffix for suffix, media_type in reversed(MEDIA_TYPES.items())}


def prepare() -> None:
    """Import what the reader needs."""
    html.prepare()


def read(path: Path, data: bytes) -> ParsedDocument:
    """Its headers and its body: plain text where there is one, else the HTML without its markup."""
    message = parse(path, data)
    headers = {name: _header(message, name) for name in _SHOWN}
    bodies = {"text/plain": "", "text/html": ""}
    for part in parts(path, message):
        kind = part.get_content_type()
        if kind in bodies and not is_attachment(part):
            text = _text(path, part)
            bodies[kind] += (html.from_text(path, text)[0] if kind == "text/html" else clean(text)) + "\n\n"
    body = (bodies["text/plain"].strip() or bodies["text/html"]).strip()
    if not body and not any(headers.values()):
        raise invalid(path, "has no headers and no text of an e-mail")
    head = "\n".join(f"{name}: {value}" for name, value in headers.items() if value)
    try:
        date = parsedate_to_datetime(headers["Date"]).isoformat()
    except (ValueError, TypeError, OverflowError, IndexError):  # what the standard library raises of odd dates
        date = ""
    known = {"from": headers["From"], "to": headers["To"], "date": date}
    # One section: a line that begins with '#' is no heading in an e-mail.
    text = f"{head}\n\n{body}".strip()
    whole = (Section(0, len(text)),)
    return ParsedDocument(text, headers["Subject"], "", whole, as_attributes(known))


def parse(path: Path, data: bytes) -> Message:
    """The message's tree of parts. Raises InvalidInput where it nests without end."""
    try:
        return BytesParser(policy=email.policy.compat32).parsebytes(data)
    except RecursionError:
        raise invalid(path, f"nests more than {MAX_DEPTH} levels deep") from None


def parts(path: Path, message: Message) -> Iterator[Message]:
    """The leaves of a message in order; messages within are leaves. Raises InvalidInput for too many or too deep."""
    stack = [(message, 0)]
    count = 0
    while stack:
        part, depth = stack.pop()
        count += 1
        if count > MAX_PARTS or depth > MAX_DEPTH:
            raise invalid(path, f"has more than {MAX_PARTS:,} parts or nests more than {MAX_DEPTH} levels deep")
        content: Any = part.get_payload()
        if part.get_content_maintype() == "multipart" and isinstance(content, list):
            stack.extend((child, depth + 1) for child in reversed(content))
        else:
            yield part


def is_attachment(part: Message) -> bool:
    """Whether a part is a file of its own, not a body."""
    disposition = str(part.get("Content-Disposition", "")).strip().lower()
    return disposition.startswith("attachment") or _name(part) != "" or part.get_content_maintype() == "message"


def attachments(path: Path, message: Message) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of each attachment; one without a name is called by its number and kind."""
    number = 0
    for part in parts(path, message):
        if not is_attachment(part):
            continue
        number += 1
        kind = part.get_content_type()
        content: Any = part.get_payload()
        if kind == "message/rfc822" and isinstance(content, list) and content:
            data = content[0].as_bytes(policy=email.policy.compat32)
            name = _name(part) or _header(content[0], "Subject") or f"message {number}"
            yield (name if name.lower().endswith(".eml") else f"{name}.eml"), data
        else:
            decoded = part.get_payload(decode=True)
            name = _name(part) or f"attachment {number}{_SUFFIXES.get(kind, '')}"
            yield name, decoded if isinstance(decoded, bytes) else b""


def _name(part: Message) -> str:
    try:
        return one_line(clean(_decoded(part.get_filename() or "")))
    except (ValueError, LookupError, TypeError):
        return ""


def _header(message: Message, name: str) -> str:
    try:
        return " ".join(clean(_decoded(str(message.get(name, ""))[:MAX_HEADER_CHARACTERS])).split())
    except (ValueError, LookupError, TypeError):
        return ""


def _decoded(value: str) -> str:
    """A header's words as text: RFC 2047, or bytes in an encoding of its time."""
    from email.header import decode_header

    pieces = []
    for word, charset in decode_header(re.sub(r"\n\s+", " ", value)):
        if isinstance(word, str):
            raw = word.encode("utf-8", "surrogateescape")
            pieces.append(word if raw.isascii() or b"\0" in raw else encoding.decode(Path("header"), raw))
        elif word:
            pieces.append(encoding.decode(Path("header"), word, charset) if b"\0" not in word else "")
    return "".join(pieces)


def _text(path: Path, part: Message) -> str:
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes) or not content:
        return ""
    return encoding.decode(path, content.replace(b"\0", b""), part.get_content_charset())
