"""How cases are asked. Every default is written here once; the command line reads it from here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ryorin.errors import InvalidInput


@dataclass(frozen=True)
class How:
    """
    How cases are asked.

    temperature: of the answers that are graded. max_tokens: of an answer. samples: answers to each case at the served
    temperature, for consistency; 0 for none. seed: of those answers.
    """

    temperature: float = 0.0
    max_tokens: int = 256
    samples: int = 3
    seed: int = 0
    concurrency: int = 16

    def __post_init__(self) -> None:
        if self.samples == 1 or not 0 <= self.samples <= 16:
            raise InvalidInput(f"samples is {self.samples}; it must be 2 to 16, or 0 for none", param="samples")

    def spec(self) -> dict[str, Any]:
        """What the figures depend on, as JSON; how many are asked at once is told beside the times."""
        return asdict(self)
