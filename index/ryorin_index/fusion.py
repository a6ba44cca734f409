"""Putting ranked lists together, and choosing from them what is not all the same. Numbers only: no SQL, no models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from ryorin_index.embed import Vectors

RRF_K = 60  # Cormack, Clarke and Büttcher 2009, https://doi.org/10.1145/1571941.1572114


def fuse(lists: Sequence[tuple[float, Sequence[int]]]) -> dict[int, float]:
    """
    Reciprocal rank fusion: passage id → score, best first; equal scores by id.

    lists: (weight, passage ids best first). A list of weight 0 adds nothing.
    """
    scores: dict[int, float] = defaultdict(float)
    for weight, ranked in lists:
        if weight:
            for rank, passage in enumerate(ranked, start=1):
                scores[passage] += weight / (RRF_K + rank)
    return dict(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0])))


def diversify(relevance: Mapping[int, float], vectors: Mapping[int, Vectors], count: int, trade: float) -> list[int]:
    """
    Maximal marginal relevance (Carbonell and Goldstein 1998, https://doi.org/10.1145/290941.291025): `count` passages,
    each the best by `trade` × relevance - (1 - trade) × its greatest cosine with one chosen before.

    relevance: any scale, it is stretched to 0..1. vectors: unit length. trade: 1 is relevance alone, 0 variety alone.
    """
    left = list(relevance)
    if not left:
        return []
    worth = np.asarray([relevance[passage] for passage in left], dtype=np.float64)
    spread = float(worth.max() - worth.min())
    worth = (worth - worth.min()) / spread if spread else np.ones_like(worth)
    matrix = np.stack([vectors[passage] for passage in left]).astype(np.float64)
    nearest = np.zeros(len(left))
    chosen: list[int] = []
    while len(chosen) < min(count, len(left)):
        gain = trade * worth - (1 - trade) * nearest
        gain[chosen] = -np.inf
        best = int(np.argmax(gain))
        nearest = np.maximum(nearest, matrix @ matrix[best]) if chosen else matrix @ matrix[best]
        chosen.append(best)
    return [left[at] for at in chosen]
