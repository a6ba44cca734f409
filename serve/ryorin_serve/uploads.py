"""
A file on its way in: multipart/form-data, written into the blob folder as it comes and never held as a whole.

Its parts are what OpenAI's clients send: one `file`, and short fields.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from ryorin.blobs import BlobWriter
from ryorin.errors import InvalidInput
from ryorin_serve.requests import BodyTooLarge, unknown

MAX_FIELDS_BYTES = 64 * 1024  # of everything but the file
MAX_FILENAME_CHARACTERS = 255
WRITE_BYTES = 1 << 20
_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Upload:
    """What came: the fields, and the file's name. Its bytes are with the writer."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None


async def receive(
    request: Request,
    writer: BlobWriter,
    limit: int,
    fields: tuple[str, ...],
    in_thread: Callable[..., Awaitable[Any]],
) -> Upload:
    """
    Read the request's body to its end.

    Raises BodyTooLarge when the file is over `limit` bytes, InvalidInput when the body is not multipart, has a field
    that is not in `fields`, or no file.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidInput("Send the file as multipart/form-data, with the fields 'file' and 'purpose'.", param="file")
    too_large = BodyTooLarge(
        f"The file is over the limit of {limit} bytes for one file; split it.", code="file_too_large", param="file"
    )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit + MAX_FIELDS_BYTES:
        raise too_large
    parts = _Parts(fields)
    parser = MultipartParser(options[b"boundary"], parts.callbacks())  # type: ignore[arg-type]
    try:
        async for chunk in request.stream():
            parser.write(chunk)
            if writer.length + len(parts.pending) > limit:
                raise too_large
            if len(parts.pending) >= WRITE_BYTES:
                await in_thread(writer.write, parts.take())
        parser.finalize()
    except FormParserError as error:
        raise InvalidInput(f"The request's body is not multipart/form-data: {error}.", code="invalid_form") from None
    await in_thread(writer.write, parts.take())
    if not parts.ended:
        raise InvalidInput("The request's body ends in the middle of the form.", code="invalid_form")
    if parts.upload.filename is None:
        raise InvalidInput("The form has no 'file'.", param="file")
    return parts.upload


class _Parts:
    """The parser's callbacks; the file's bytes gather in `pending`."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        self.upload = Upload()
        self.pending = bytearray()
        self.ended = False
        self._allowed = fields
        self._spent = 0
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._field = ""
        self._value: bytearray | None = None

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end_part,
            "on_header_field": lambda data, start, end: self._spend(self._header[0], data[start:end]),
            "on_header_value": lambda data, start, end: self._spend(self._header[1], data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._head,
            "on_end": self._end,
        }

    def take(self) -> bytes:
        """What of the file has come since the last time."""
        taken = bytes(self.pending)
        self.pending.clear()
        return taken

    def _spend(self, into: bytearray, data: bytes) -> None:
        self._spent += len(data)
        if self._spent > MAX_FIELDS_BYTES:
            raise BodyTooLarge(f"The form's fields are over the limit of {MAX_FIELDS_BYTES} bytes.")
        into += data

    def _begin(self) -> None:
        self._spend(bytearray(), b"\0" * 64)  # a form of empty parts without end is too large too
        self._disposition = b""

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        name.clear()
        value.clear()

    def _head(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode(errors="replace")
        named = b"filename" in options
        if self._field == "file" and named and self.upload.filename is None:
            self.upload.filename = _safe_name(options[b"filename"].decode(errors="replace"))
            self._value = None
        elif self._field in self._allowed and not named and self._field not in self.upload.fields:
            self._value = bytearray()
        elif self._field in (*self._allowed, "file"):
            raise InvalidInput(
                f"The form's field {self._field!r} must be given once, "
                + ("as a file with a name." if self._field == "file" else "as text."),
                param=self._field,
            )
        else:
            raise unknown(self._field[:64], ("file", *self._allowed))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._value is None:
            self.pending += data[start:end]
        else:
            self._spend(self._value, data[start:end])

    def _end_part(self) -> None:
        if self._value is not None:
            self.upload.fields[self._field] = self._value.decode(errors="replace")

    def _end(self) -> None:
        self.ended = True


def _safe_name(given: str) -> str:
    """The name of the file without folders; it is kept as data and never becomes a path."""
    name = _NOT_IN_NAMES.sub("", re.split(r"[/\\]", given)[-1]).strip()
    if name in ("", ".", "..") or len(name) > MAX_FILENAME_CHARACTERS:
        raise InvalidInput(
            f"The file's name has {len(name)} characters; use 1 to {MAX_FILENAME_CHARACTERS}, and not '.' or '..'.",
            param="file",
        )
    return name
