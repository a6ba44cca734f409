"""
The server's own log as lines of JSON, for machines that collect logs (`ryorin serve --log-format json`).

One line for each request that was answered or refused: when, which, whose, how it ended and how long it took; and what
the server warns of. No question, answer, passage or query string is in it, and whatever looks like a key is blotted
out, wherever it comes from.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any

ACCESS = "ryorin.access"
BLOT = "[redacted]"
# Our keys, keys of providers, and whatever follows 'Bearer'; a key's prefix, by which it is known, stays.
_SECRETS = re.compile(r"(?P<known>\bryo-[A-Za-z0-9]{12})[A-Za-z0-9_-]+|\bsk-[A-Za-z0-9_-]{8,}|(?<=Bearer )\S+")
_PASSWORD = re.compile(r"(?<=://)(?P<user>[^\s:/@]*):[^\s@/]+(?=@)")


def redacted(text: str) -> str:
    """The text without keys and passwords of addresses."""
    text = _SECRETS.sub(lambda found: f"{found['known'] or ''}{BLOT}", text)
    return _PASSWORD.sub(lambda found: f"{found['user']}:{BLOT}", text)


class JsonLines(logging.Formatter):
    """A record as one line of JSON; what `extra={"fields": …}` gives stands beside time, level and message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        said: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        for name, value in getattr(record, "fields", {}).items():
            said[name] = redacted(value) if isinstance(value, str) else value
        if record.exc_info:
            said["exception"] = redacted(self.formatException(record.exc_info))
        return json.dumps(said, ensure_ascii=False)


def log_json(stream: Any = None) -> None:
    """From now on everything that is logged goes to standard error (or `stream`) as lines of JSON, requests too."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    for earlier in list(root.handlers):
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("ryorin").setLevel(logging.INFO)


def log_request(fields: dict[str, Any]) -> None:
    """A request is over. Costs next to nothing where nobody logs it."""
    logger = logging.getLogger(ACCESS)
    if logger.isEnabledFor(logging.INFO):
        logger.info("request", extra={"fields": fields})
