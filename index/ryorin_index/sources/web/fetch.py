"""
One request after another to one site, politely: paced, bounded in bytes and time, tried again where the site asks so.

It follows no redirect, keeps no cookie, reads no proxy from the environment and knows nothing of pages.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpcore

from ryorin import __version__
from ryorin.errors import InvalidInput, Unavailable
from ryorin_index.sources.web.door import CONNECT_TIMEOUT_S, Door

USER_AGENT = f"ryorin/{__version__}"
MAX_PAGE_BYTES = 64 << 20
PAGE_TIMEOUT_S = 60.0
DRAINED_BYTES = 64 << 10
SILENCE_S = 20.0  # without a byte
ATTEMPTS = 3
BACK_OFF_S = 1.0  # before the second attempt, doubled before each further one
MAX_RETRY_AFTER_S = 60.0
MOVED_FOR_GOOD = (301, 308)
REDIRECTS = (*MOVED_FOR_GOOD, 302, 303, 307)
GONE = (404, 410)
NOT_THERE = tuple(f"http_{status}" for status in GONE)  # the codes of their errors
_ASK_LATER = (429, 503)
_TIMEOUTS = {"connect": CONNECT_TIMEOUT_S, "read": SILENCE_S, "write": SILENCE_S, "pool": PAGE_TIMEOUT_S}


class NoAnswer(Unavailable):
    """The site did not answer at all, or not in time."""


@dataclass(frozen=True)
class Answer:
    """A response. headers: by lower-case name; of several of one name, joined with commas. body: decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def leads_to(self) -> str:
        """Where a redirect points, as it says; empty for what is none."""
        location = self.headers.get("location", "") if self.status in REDIRECTS else ""
        try:
            return location.encode("latin-1").decode()  # many servers send UTF-8 as it is
        except UnicodeDecodeError:
            return location


def refusal(address: str, status: int) -> Unavailable:
    """The error of what was asked for and answered with a status that brings nothing."""
    code = f"http_{status}"
    if status in _ASK_LATER:
        return NoAnswer(f"{address} answers {status}: it asks to come later", code=code)
    if status in GONE:
        return Unavailable(f"{address} answers {status}: it is not there", code=code)
    login = "; pages that need a login are not supported" if status in (401, 403, 407) else ""
    return Unavailable(f"{address} answers {status}{login}", code=code)


class Fetcher:
    """
    Asks for addresses. Any thread may; all share one pace.

    delay_s: from the start of one request to that of the next; may be raised later.
    """

    def __init__(self, allow_private: bool, delay_s: float) -> None:
        self.delay_s = delay_s
        self._door = Door(allow_private)
        self._pool = httpcore.ConnectionPool(
            ssl_context=_certificates(), max_connections=4, keepalive_expiry=30.0, network_backend=self._door
        )
        self._pacing = threading.Lock()
        self._free_at = 0.0

    def get(
        self,
        address: str,
        headers: Mapping[str, str] | None = None,
        wanted: Callable[[Mapping[str, str]], bool] = lambda headers: True,
    ) -> Answer:
        """
        Ask for a normalised address. wanted: told the headers of a 200; where it says no, the body is not read.

        Raises InvalidInput for an address that may not be reached and a body beyond MAX_PAGE_BYTES, NoAnswer when none
        of ATTEMPTS was answered.
        """
        wait_s = BACK_OFF_S
        for attempt in range(1, ATTEMPTS + 1):
            self._pace()
            try:
                answer = self._once(address, headers or {}, wanted)
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as error:
                if attempt == ATTEMPTS:
                    raise NoAnswer(f"{address} does not answer: {error or type(error).__name__}") from error
                pause_s = wait_s
            else:
                pause_s = _retry_after_s(answer.headers.get("retry-after", ""), wait_s)
                if answer.status not in _ASK_LATER or attempt == ATTEMPTS or pause_s > MAX_RETRY_AFTER_S:
                    return answer
            time.sleep(pause_s)
            wait_s *= 2
        raise AssertionError("not reached")

    def close(self) -> None:
        """End the connections."""
        self._pool.close()

    def _once(self, address: str, headers: Mapping[str, str], wanted: Callable[[Mapping[str, str]], bool]) -> Answer:
        sent = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "gzip", **headers}
        with (
            self._door.deadline(PAGE_TIMEOUT_S),
            self._pool.stream(
                "GET", address, headers=list(sent.items()), extensions={"timeout": _TIMEOUTS}
            ) as response,
        ):
            received: dict[str, str] = {}
            for raw_name, raw_value in response.headers:
                name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
                received[name] = f"{received[name]}\n{value}" if name in received else value
            if response.status != 200:
                _drain(response)
                return Answer(response.status, received, b"")
            if not wanted(received):
                return Answer(response.status, received, b"")
            body = _Body(address, received.get("content-encoding", ""))
            for part in response.iter_stream():
                body.add(part)
            return Answer(response.status, received, body.whole())

    def _pace(self) -> None:
        with self._pacing:
            now = time.monotonic()
            mine = max(now, self._free_at)
            self._free_at = mine + self.delay_s
        if mine > now:
            time.sleep(mine - now)


class _Body:
    """A body as it comes in, decompressed piece by piece: what packs a thousandfold is stopped at the limit."""

    def __init__(self, address: str, encoding: str) -> None:
        self._address, self._data, self._empty = address, bytearray(), True
        self._encoding = encoding.strip().lower()
        if self._encoding not in ("", "identity", "gzip", "x-gzip"):
            raise InvalidInput(f"{address} comes in the encoding {encoding[:40]!r}, which was not asked for")
        self._unpacker = zlib.decompressobj(wbits=31) if self._encoding not in ("", "identity") else None

    def add(self, part: bytes) -> None:
        """Take in what was received. Raises InvalidInput beyond the limit."""
        self._empty = self._empty and not part
        room = MAX_PAGE_BYTES + 1 - len(self._data)
        if self._unpacker is None:
            self._data += part[:room]
        else:
            try:
                self._data += self._unpacker.decompress(part, room)
            except zlib.error as error:
                raise InvalidInput(f"{self._address} comes in damaged {self._encoding}: {error}") from error
        if len(self._data) > MAX_PAGE_BYTES:
            raise InvalidInput(
                f"{self._address} has more than {MAX_PAGE_BYTES:,} bytes, the limit of a page; "
                "leave it out with --exclude",
                code="invalid_file",
            )

    def whole(self) -> bytes:
        """All of it. Raises InvalidInput where a compressed one ends too early."""
        if self._unpacker is not None and not self._empty and not self._unpacker.eof:
            raise InvalidInput(f"{self._address} ends in the middle of its {self._encoding} data")
        return bytes(self._data)


def _drain(response: httpcore.Response) -> None:
    """Read what an error says, if it is short: the connection can then be used again."""
    read = 0
    for part in response.iter_stream():
        read += len(part)
        if read > DRAINED_BYTES:
            return


def _certificates() -> ssl.SSLContext:
    """The system's authorities, an organisation's own among them, and Mozilla's where a system has none."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _retry_after_s(value: str, otherwise_s: float) -> float:
    """What a Retry-After asks for (RFC 9110, 10.2.3): seconds, or a date."""
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return otherwise_s
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
