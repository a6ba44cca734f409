"""How much is tried: what can still fail in the fast run, much more with RYORIN_LONG_TESTS=1."""

from __future__ import annotations

import os

LONG = bool(os.environ.get("RYORIN_LONG_TESTS"))


def turns(short: int, long: int) -> int:
    """The number of kills, damaged files, random histories or examples of a test."""
    return long if LONG else short
