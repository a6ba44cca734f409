"""The kinds of grounded rows, and how many there are to be of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ryorin.digests import digest_of
from ryorin.errors import InvalidInput

Kind = Literal["right", "wrong", "none"]
KINDS: tuple[Kind, ...] = ("right", "wrong", "none")
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Shares:
    """The shares of rows with the right passage, with wrong ones only, and with none; they add up to 1."""

    right: float = 0.7
    wrong: float = 0.2
    none: float = 0.1

    def __post_init__(self) -> None:
        for kind in KINDS:
            if not 0 <= getattr(self, kind) <= 1:
                raise InvalidInput(f"--{kind} is {getattr(self, kind):g}; it must be 0 to 1", param=kind)
        total = self.right + self.wrong + self.none
        if abs(total - 1) > _ROUNDING:
            raise InvalidInput(
                f"--right {self.right:g}, --wrong {self.wrong:g} and --none {self.none:g} add up to {total:g}; they "
                "must add up to 1",
                param="right",
            )

    @property
    def refusing(self) -> float:
        """The share whose right answer is the refusal."""
        return self.wrong + self.none

    def kind_of(self, content: Any, seed: int) -> Kind:
        """The kind of a row by its content: it stays what it is when rows are added."""
        place = int(digest_of([seed, "kind", content])[:16], 16) / 16**16
        if place < self.right:
            return "right"
        return "wrong" if place < self.right + self.wrong or self.none <= 0 else "none"
