"""A working embedder of no model: texts that share words are near."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from ryorin.models.registry import Embedder
from ryorin_index.embed import Vectors

DIMENSIONS = 64


class WordEmbedder:
    """Counts hashed words and Japanese characters; texts that share words are near. Counts what it embeds."""

    def __init__(self) -> None:
        self.embedded: list[str] = []
        self.asked = 0  # questions that came many at once

    def query(self, text: str) -> Vectors:
        return self._vector(text)

    def queries(self, texts: Sequence[str]) -> Vectors:
        self.asked += len(texts)
        return np.stack([self.query(text) for text in texts])

    def passages(self, texts: Sequence[str]) -> Vectors:
        self.embedded += texts
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> Vectors:
        vector = np.zeros(DIMENSIONS, dtype=np.float32)
        for word in re.findall(r"[぀-ヿ㐀-鿿]|[a-z0-9]+", text.lower()):
            vector[int(hashlib.sha256(word.encode()).hexdigest(), 16) % DIMENSIONS] += 1
        return vector / max(float(np.linalg.norm(vector)), 1e-9)


def fake_embedder() -> Embedder:
    """What the registry would say of it."""
    return Embedder(name="words", kind="sentence-transformers", digest="0" * 64, dimensions=DIMENSIONS)
