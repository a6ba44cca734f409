"""
The server's own log as lines of JSON, for machines that collect logs (`ryorin serve --log-format json`).

One line for each request that was answered or refused: when, which, whose, how it ended and how long it took; and what
the server warns of. No question, answer, passage or query string is in it, and whatever looks like a key is blotted
out, wherever it comes from.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

ACCESS = "ryorin.access"
BLOT = "[redacted]"
# Our keys, keys of providers, and whatever follows 'Bearer'; a key's prefix, by which it is known, stays.
_SECRETS = re.compile(r"(?P<known>\bryo-[A-Za-z0-9]{12})[A-Za-z0-9_-]+|\bsk-[A-Za-z0-9_-]{8,}|(?<=Bearer )[^\s\"\\]+")
_PASSWORD = re.compile(r"(?<=://)(?P<user>[^\s:/@\"]*):[^\s@/\"]+(?=@)")


def redacted(text: str) -> str:
    """The text without keys and passwords of addresses; JSON stays JSON."""
    text = _SECRETS.sub(lambda found: f"{found['known'] or ''}{BLOT}", text)
    return _PASSWORD.sub(lambda found: f"{found['user']}:{BLOT}", text)


def log_json(stream: Any = None) -> None:
    """From now on everything that is logged goes to standard error (or `stream`) as lines of JSON, requests too."""
    from pythonjsonlogger.json import JsonFormatter

    class Redacted(JsonFormatter):
        def format(self, record: logging.LogRecord) -> str:
            return redacted(super().format(record))

    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        Redacted(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            timestamp="time",
            json_ensure_ascii=False,
        )
    )
    root = logging.getLogger()
    for earlier in list(root.handlers):
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("ryorin").setLevel(logging.INFO)


def log_request(fields: dict[str, Any]) -> None:
    """A request is over. Costs next to nothing where nobody logs it."""
    logging.getLogger(ACCESS).info("request", extra=fields)
