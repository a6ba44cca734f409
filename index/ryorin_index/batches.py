"""Batches of texts of like length: little padding, and as much in each as the processor's cache bears."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

TOKENS_PER_BATCH = 2048


def by_length(lengths: Sequence[int], budget: int = TOKENS_PER_BATCH) -> Iterator[list[int]]:
    """
    Places of texts in batches, longest first: each batch, padded to its longest text, has `budget` tokens at most.

    lengths: tokens of each text. A text longer than the budget is a batch of its own. Batches are of 1, 2, 4, 8, …
    texts: engines prepare for each shape that they meet.
    """
    left = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    while left:
        most = min(len(left), max(1, budget // max(1, lengths[left[0]])))
        size = 1 << (most.bit_length() - 1)
        yield left[:size]
        left = left[size:]
