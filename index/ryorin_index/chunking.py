"""How long passages are: the settings of a store or a document, their defaults and their limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ryorin.digests import digest_of
from ryorin.errors import InvalidInput

MIN_TOKENS, MAX_TOKENS = 100, 4096  # of OpenAI's static chunking strategy
DEFAULT_MAX_TOKENS = 320  # E5 reads 512; the title, which is embedded with every passage, takes some of them
DEFAULT_OVERLAP_TOKENS = 40  # a sentence or two: what 'it' and 'this' at a passage's beginning stand for
TITLE_ROOM = 64  # tokens that a passage of the default size leaves for its title


@dataclass(frozen=True)
class Chunking:
    """
    Sizes in tokens of the store's embedder.

    max_tokens: the longest passage, 100 to 4096. overlap_tokens: how much of its end a passage shares with the next one
    at most, in whole sentences; half of max_tokens at most. Raises InvalidInput that names the field.
    """

    max_tokens: int = DEFAULT_MAX_TOKENS
    overlap_tokens: int = DEFAULT_OVERLAP_TOKENS

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int:
                raise InvalidInput(f"{name} is {value!r}; give a whole number of tokens", param=name)
        if not MIN_TOKENS <= self.max_tokens <= MAX_TOKENS:
            raise InvalidInput(f"max_tokens is {self.max_tokens}; use {MIN_TOKENS} to {MAX_TOKENS}", param="max_tokens")
        if not 0 <= self.overlap_tokens <= self.max_tokens // 2:
            raise InvalidInput(
                f"overlap_tokens is {self.overlap_tokens}; use 0 to {self.max_tokens // 2}, half of max_tokens",
                param="overlap_tokens",
            )

    def to_json(self) -> dict[str, Any]:
        """As it lies in the catalog."""
        return asdict(self)


def chunking_from_json(value: Mapping[str, Any]) -> Chunking:
    """Settings from the catalog. Raises InvalidInput for a field that is not one of them."""
    unknown = set(value) - set(Chunking.__dataclass_fields__)
    if unknown:
        name = min(unknown)
        raise InvalidInput(f"{name!r} is no chunking setting; there are max_tokens and overlap_tokens", param=name)
    return Chunking(**value)


def default_chunking(limit: int | None) -> Chunking:
    """
    What a store without settings of its own uses.

    limit: how many tokens the embedder reads at once. One that reads few gets shorter passages, so that they and their
    titles are read whole.
    """
    if limit is None:
        return Chunking()
    return Chunking(max_tokens=max(MIN_TOKENS, min(DEFAULT_MAX_TOKENS, limit - TITLE_ROOM)))


def make_chunking(max_tokens: int | None, overlap_tokens: int | None) -> Chunking | None:
    """Settings of which one may be left out; None when both are. An overlap that is left out fits the size."""
    if max_tokens is None and overlap_tokens is None:
        return None
    size = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
    overlap = min(DEFAULT_OVERLAP_TOKENS, size // 2) if overlap_tokens is None else overlap_tokens
    return Chunking(size, overlap)


def cut_mark(embedder_digest: str, chunking: Chunking) -> str:
    """What a fingerprint says of how its document was cut: by whose tokens, and how long."""
    return f"|{digest_of([embedder_digest, chunking.to_json()])[:8]}"


def cut_otherwise(fingerprint: str, wanted: str) -> bool:
    """Whether two fingerprints speak of different cuts; one that does not speak of any differs from none."""
    marks = [each.rpartition("|")[2] for each in (fingerprint, wanted) if "|" in each]
    return len(marks) == 2 and marks[0] != marks[1]
