"""
What a connector is: it lists items cheaply and reads one of them.

A connector does not know what the store has, how documents are parsed, or what is done with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from ryorin.errors import InvalidInput

MAX_FILE_BYTES = 512 * 1024 * 1024  # the limit of OpenAI's files API


class Item(NamedTuple):
    """
    Something a source holds, not yet read.

    source: the name of its document in the store. filename: with the suffix that gives its format.
    fingerprint: begins with '<size>:' where the size is known; equal for what did not change.
    size: in bytes, -1 where it is not known before it is read.
    """

    source: str
    filename: str
    fingerprint: str
    size: int


class Content(NamedTuple):
    """An item's bytes, and the fingerprint of what was read: it may have changed since it was listed."""

    data: bytes
    fingerprint: str


class Connector(Protocol):
    """
    One kind of source. `items` is called once, then `read` for some of them, also from several threads.

    named_by_content: whether items of equal fingerprints have equal bytes, wherever they lie.
    state: what is to be kept in the source's row for the next run; complete once `items` is exhausted.
    notes: what the operator is told of a run, then too.
    """

    named_by_content: bool
    state: dict[str, Any]
    notes: Sequence[str] = ()

    def items(self) -> Iterator[Item]:
        """
        What the source holds.

        Raises InvalidInput or OSError when the source is not there, Unavailable when it does not answer.
        """
        ...

    def read(self, item: Item) -> Content:
        """The bytes of one item. Raises InvalidInput, OSError or Unavailable."""
        ...

    def is_gone(self, source: str) -> bool:
        """Whether a document that `items` did not list is gone; no where this run could not see everything."""
        return True

    def close(self) -> None:
        """End processes and connections, remove scratch files."""
        ...


def check_size(filename: str, size: int) -> None:
    """Raises InvalidInput for a file that is too large to be taken."""
    if size > MAX_FILE_BYTES:
        raise InvalidInput(f"{filename} has {size:,} bytes, the limit is {MAX_FILE_BYTES:,}", code="invalid_file")
