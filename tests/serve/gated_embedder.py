"""The index tests' embedder of words, with a gate."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from word_embedder import WordEmbedder, fake_embedder

from ryorin_index.embed import Vectors

__all__ = ["GatedEmbedder", "fake_embedder"]


class GatedEmbedder(WordEmbedder):
    """Words as vectors; while `gate` is closed, no passage is embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def passages(self, texts: Sequence[str]) -> Vectors:
        assert self.gate.wait(60)
        return super().passages(texts)
